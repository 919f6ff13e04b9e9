"""What the doctor finds out where it runs, besides what the functions know: with the migrations' files at hand, a
connection of role `postgres` where there is one, and by ringing where the database rings.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from functions.clients.outside import Clients
from functions.health.checks import (
    Facts,
    Finding,
    Judge,
    NotSeen,
    Question,
    ask_all,
    broken,
    ok,
    sentence_of,
    skipped,
    warning,
)
from functions.health.database import PUSH, judge_webhook_secret, values_of
from functions.health.examination import JUDGES, ask_everybody
from functions.health.store import NONCE_BYTES, SecretProof
from infra.connection.ping import NotAnswered, ping
from infra.doctor.places import Place
from infra.doctor.settings import Examined, judge_settings
from infra.local.stack import CHECKOUT

MIGRATIONS = CHECKOUT / "supabase" / "migrations"
CONNECT_SECONDS = 5
RECONNECT = "doorkey connect --url ADDRESS   (of the deployed functions)"
MAX_NAMES = 3
# What it says to a database without doorkey in it, or with an older one.
NOT_THERE = (psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedFunction)
VERSIONS = "select array_agg(version order by version) as versions from supabase_migrations.schema_migrations"


@dataclass(frozen=True)
class Direct:
    """What a connection of role `postgres` shows.

    Attributes:
        values: as `doorkey.health` returns them; None: it isn't there.
        versions: of the migrations that the Supabase CLI noted.
        proof: which signing secret the database has.
        sealed: how many secrets each sealing key has sealed.
    """

    values: dict[str, Any] | None
    versions: list[str] | None
    proof: SecretProof | None
    sealed: dict[str, int]


async def look(place: Place, examined: Examined, clients: Clients) -> Facts:
    """Asks everybody."""
    facts = Facts(examined.settings, unusable=examined.unusable)
    url = place.database_url

    async def direct() -> Direct | None:
        return None if url is None else await ask_directly(url)

    await _both(facts, clients, Question("DATABASE_URL", (), direct))
    found = facts.seen["direct"]
    if isinstance(found, Direct):
        _fill_in(facts, found)

    async def answers() -> tuple[str, ...]:
        stored = values_of(facts)["webhook_url"]
        if stored is None:
            raise NotSeen("The database has no address to ring at.")
        return await ping(
            clients.http, stored, [s.get_secret_value() for s in examined.settings.doorkey_webhook_secrets]
        )

    await ask_all(facts, {"ping": Question("the functions", ("DOORKEY_WEBHOOK_SECRETS",), answers)})
    return facts


async def _both(facts: Facts, clients: Clients, direct: Question) -> None:
    await asyncio.gather(ask_everybody(facts, clients), ask_all(facts, {"direct": direct}))


def _fill_in(facts: Facts, direct: Direct) -> None:
    """Puts what the connection shows where the Data API told nothing."""
    for name, value in (("values", direct.values), ("webhook_proof", direct.proof), ("sealed_secrets", direct.sealed)):
        if isinstance(facts.seen[name], Exception) and value is not None:
            facts.seen[name] = value


async def ask_directly(url: str) -> Direct:
    """Looks into the database as `postgres`, past the Data API.

    Raises:
        psycopg.Error: it can't be reached, or lets us in and not look.
    """
    async with await psycopg.AsyncConnection.connect(
        url,
        autocommit=True,
        connect_timeout=CONNECT_SECONDS,
        row_factory=dict_row,
        prepare_threshold=None,
        application_name="doorkey doctor",
    ) as connection:

        async def rows(statement: str, parameters: tuple[object, ...] = ()) -> list[dict[str, Any]]:
            return await (await connection.execute(statement.encode(), parameters)).fetchall()

        try:
            (history,) = await rows(VERSIONS)
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            history = {"versions": None}
        nonce = secrets.token_hex(NONCE_BYTES)
        try:
            (health,) = await rows("select doorkey.health() as values")
            (proof,) = await rows("select * from doorkey.prove_webhook_secret(%s)", (nonce,))
            sealed = await rows("select * from doorkey.count_sealed_secrets()")
        except NOT_THERE:
            return Direct(None, history["versions"], None, {})
        return Direct(
            health["values"],
            history["versions"],
            SecretProof(f"doorkey.doctor.{proof['database_nonce']}{nonce}".encode(), proof["proof"]),
            {row["sealing_key_id"]: row["sealed_rows"] for row in sealed},
        )


def judge_database_url(facts: Facts) -> Finding:
    """Whether the connection of one's own is to the same database."""
    error = facts.failure("direct")
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return broken("The role in DATABASE_URL may not look at doorkey.", "Use the address of role postgres")
    if error is not None:
        # Only the kind: the driver's message may quote the address with its password.
        reason = sentence_of(error) if isinstance(error, TimeoutError) else f"({type(error).__name__})"
        return broken(
            f"The database does not let us in by DATABASE_URL. {reason}",
            "DATABASE_URL=postgresql://postgres...   (dashboard, Connect, Session pooler; the password by PGPASSWORD)",
        )
    direct: Direct | None = facts.answer("direct")
    if direct is None:
        return skipped(
            "Not given. It is only needed where the Data API does not tell: --database-url, or DATABASE_URL."
        )
    if direct.values is None:
        return skipped("The database lets us in, and there is no doorkey in it, or an older one; see migrations.")
    there = facts.seen["report"]
    if not isinstance(there, Exception) and there.values["installed_at"] != direct.values["installed_at"]:
        return broken(
            "DATABASE_URL and SUPABASE_URL are two different databases.", "Give the address of the same project's"
        )
    return ok("The database lets us in, and it is the same one.")


def judge_migrations(facts: Facts) -> Finding:
    """Whether every migration that is here is applied there."""
    direct = facts.seen["direct"]
    versions = direct.versions if isinstance(direct, Direct) else values_of(facts)["migrations"]
    if versions is None:
        return skipped("The Supabase CLI noted no migrations in this database; see grants for what is missing.")
    files = sorted(path.stem for path in MIGRATIONS.glob("*.sql"))
    missing = [name for name in files if name.partition("_")[0] not in versions]
    if not missing:
        return ok(f"All {len(files)} migrations are applied.")
    names = ", ".join(missing[:MAX_NAMES]) + (f" and {len(missing) - MAX_NAMES} more" if missing[MAX_NAMES:] else "")
    is_or_are = "is" if len(missing) == 1 else "are"
    return broken(f"{len(missing)} of {len(files)} migrations {is_or_are} not applied: {names}.", PUSH)


def judge_webhook_address(facts: Facts) -> Finding:
    """Whether the functions answer where the database rings, and run with the environment that was looked at."""
    error = facts.seen["ping"]
    if isinstance(error, NotSeen):
        if values_of(facts)["webhook_url"] is None:
            return warning(
                "The database doesn't know where to ring: nobody hears of a signup until the next sweep.",
                RECONNECT,
            )
        raise error
    if isinstance(error, NotAnswered):
        return _judge_refusal(facts, error)
    if isinstance(error, Exception):
        return broken(f"Nothing is heard from the address where the database rings. {sentence_of(error)}", RECONNECT)
    sealing_key_ids: tuple[str, ...] = facts.answer("ping")
    here = tuple(key.key_id for key in facts.settings.sealing_keys)
    if "DOORKEY_SEALING_KEYS" not in facts.unusable and sealing_key_ids != here:
        return warning(
            "The functions run with other sealing keys than the environment here.", "make deploy STAGE=STAGE"
        )
    return ok("The functions answer where the database rings, and accept its signature.")


def _judge_refusal(facts: Facts, error: NotAnswered) -> Finding:
    proof = facts.answer("webhook_proof")
    if "don't accept" not in str(error):
        return broken(str(error), RECONNECT)
    if proof.place_among(facts.settings.webhook_secrets) is None:
        return skipped("Something answers there; without the database's secret, more can't be seen from here.")
    return broken(str(error), "make deploy STAGE=STAGE   (docs/operations.md#the-signing-secret)")


def judges(place: Place, examined: Examined, given: Mapping[str, str]) -> dict[str, Judge]:
    """Every line of the doctor's, in the order in which they are read: what others rest on comes first."""
    own: dict[str, Judge] = {
        "settings": lambda _: judge_settings(place.environment, examined, given),
        "database_url": judge_database_url,
        "migrations": judge_migrations,
        "webhook_address": judge_webhook_address,
        # Here the environment is all of the functions'.
        "webhook_secret": judge_webhook_secret,
    }
    every = {**JUDGES, **own}
    behind = {"clock": ("database_url", "migrations"), "webhook_secret": ("webhook_address",)}
    order = ["settings"]
    for name in JUDGES:
        order += [name, *behind.get(name, ())]
    return {name: every[name] for name in order}
