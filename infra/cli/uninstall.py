"""``doorkey uninstall``: takes doorkey out of a database, and leaves the host as it was before.

It needs a connection of role `postgres`, because the service key may not change tables. The surprising thing is the
order in which keys are deleted: first nobody may make keys any more, because a function that finds a key missing would
make another one; then the keys go, each noted at once, so that a run that was stopped goes on where it was; and only
then, in one transaction, everything else.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import psycopg
import typer
from psycopg.rows import dict_row
from psycopg.sql import SQL, Identifier
from rich.console import Console
from rich.table import Table

from functions.kit.counting import counted
from infra.cli.key_deletion import delete_keys, openrouter_account
from infra.local.stack import CHECKOUT

UNINSTALL = CHECKOUT / "supabase" / "uninstall.sql"
MIGRATIONS = CHECKOUT / "supabase" / "migrations"
CONNECT_SECONDS = 10
LOCK_SECONDS = 5
# Signups wait as long as this takes, and no longer. Dropping tables doesn't depend on what is in them.
STATEMENT_SECONDS = 15
MARKER = "doorkey: everything internal"

SURVEY = SQL("""
select count(*) filter (where status <> 'deleted') as live_keys,
       coalesce(sum(greatest(limit_micros - reported_usage_micros, 0)) filter (where status = 'active'), 0)::bigint
         as spendable_micros,
       bool_or(status = 'active' and limit_micros is null) as is_uncapped
  from {}
""")
FORGET = """
delete from supabase_migrations.schema_migrations as h
 using unnest(%s::text[], %s::text[]) as ours (version, name) where h.version = ours.version and h.name = ours.name
"""
# Functions of the host's whose text speaks of something of ours: they fail afterwards, and Postgres can't know. What is
# ours goes by the names in uninstall.sql, as there.
MENTIONS = r"""
select p.oid::regprocedure::text as name from pg_proc as p
 where p.pronamespace not in ('doorkey'::regnamespace, 'pg_catalog'::regnamespace, 'information_schema'::regnamespace)
   and p.prosrc ~ '\m(doorkey\.|credit_accounts|credit_transactions|openrouter_(user_keys|key_|provisioning_status))'
   and not (p.pronamespace = 'public'::regnamespace and p.proname = any (%s) and p.prosrc like '%%doorkey.%%')
 order by 1 limit 20
"""


class UninstallStopped(Exception):
    """It could not be done; the message says why, and what was changed."""


@dataclass(frozen=True)
class UninstallPlan:
    """What was asked for.

    Attributes:
        keeps_ledger: the tables of money stay, as an archive.
        deletes_keys: the live keys are deleted at OpenRouter first.
    """

    keeps_ledger: bool
    deletes_keys: bool


@dataclass(frozen=True)
class Installed:
    """What is there.

    Attributes:
        keys_table: where the keys stand.
        is_archive: only a kept ledger is left.
        live_keys: how many are not deleted.
        spendable_micros: what those that are enabled may still spend, as far as the database knows.
        is_uncapped: one of them has no limit.
        mentions: functions of the host's that speak of something of ours.
    """

    keys_table: Identifier
    is_archive: bool
    live_keys: int
    spendable_micros: int
    is_uncapped: bool
    mentions: tuple[str, ...]


def _own_doors() -> list[str]:
    _, _, listed = UNINSTALL.read_text().partition("c_doors constant text[] := array[")
    return re.findall(r"'(\w+)'", listed.partition("];")[0])


def database_url(given: str | None, environment: Mapping[str, str]) -> str:
    """Where to connect: what was given, else DATABASE_URL.

    Raises:
        UninstallStopped: neither, or a password where everybody on the machine can read it.
    """
    if given is not None and (urlsplit(given).password or "password=" in given):
        raise UninstallStopped(
            "Everybody on this machine can read a command line: put the address with its password into DATABASE_URL, or"
            " the password alone into PGPASSWORD."
        )
    url = given or environment.get("DATABASE_URL")
    if not url:
        raise UninstallStopped("Say which database: set DATABASE_URL to a Postgres address of its role postgres.")
    return url


class Uninstallation:
    """One run of the command: look, have it confirmed, do it.

    Args:
        console: for what is shown.
        url: of role `postgres`.
        plan: what was asked for.
        environment: where the management key is, if keys are to be deleted.
    """

    def __init__(self, console: Console, url: str, plan: UninstallPlan, environment: Mapping[str, str]) -> None:
        self._console = console
        self._url = url
        self._plan = plan
        self._environment = environment
        self.installed: Installed | None = None

    @property
    def name(self) -> str:
        """What an operator types to go on: the project's reference, or else the host and the database."""
        parts = psycopg.conninfo.conninfo_to_dict(self._url)
        host, user = str(parts.get("host") or "localhost"), str(parts.get("user") or "")
        if host.endswith((".supabase.co", ".pooler.supabase.com")):
            return user.partition(".")[2] or host.removeprefix("db.").partition(".")[0]
        return f"{host}/{parts.get('dbname') or 'postgres'}"

    @property
    def is_needed(self) -> bool:
        """Whether something is there that was asked to go; known once it has looked."""
        found, plan = self.installed, self._plan
        if found is None:
            return False
        return not (found.is_archive and plan.keeps_ledger) or (plan.deletes_keys and found.live_keys > 0)

    async def look(self) -> None:
        """Shows what would go and what would stay, or says that nothing is to be done.

        Raises:
            UninstallStopped: the database can't be reached.
        KeysNotDeleted: the management key is missing.
        """
        if self._plan.deletes_keys:
            openrouter_account(self._environment)
        async with await self._connect() as connection:
            try:
                self.installed = await installed_in(connection)
            except psycopg.Error as error:
                raise UninstallStopped(_sentence(error)) from None
        if self.installed is None:
            self._console.print("doorkey is not installed in this database. There is nothing to do.")
            return
        if not self.is_needed:
            self._console.print(_nothing_to_do(self.installed))
            return
        self._console.print(_summary(self.name, self._plan, self.installed))
        if self.installed.mentions:
            names = ", ".join(self.installed.mentions)
            self._console.print(f"These functions of yours speak of doorkey and will fail: {names}.", style="yellow")

    def confirm(self) -> None:
        """Has the operator type the name.

        Raises:
            UninstallStopped: they typed something else.
        """
        typed = typer.prompt(f"This can't be undone. Type {self.name} to go on")
        if typed.strip() != self.name:
            raise UninstallStopped("That is another name. Nothing was changed.")

    async def run(self) -> None:
        """Does it.

        Raises:
            UninstallStopped: it could not be done; the message says what was.
            KeysNotDeleted: attempts are under way still.
            DoorkeyError: OpenRouter refuses; the keys deleted so far are.
        """
        if self.installed is None or not self.is_needed:
            return
        deleted = 0
        async with await self._connect() as connection:
            try:
                if self._plan.deletes_keys:
                    deleted = await delete_keys(
                        self._console, connection, self.installed.keys_table, openrouter_account(self._environment)
                    )
                with self._console.status("Uninstalling"):
                    await uninstall_from(connection, keeps_ledger=self._plan.keeps_ledger)
            except psycopg.Error as error:
                raise UninstallStopped(_sentence(error)) from None
            except asyncio.CancelledError:
                if self._plan.deletes_keys:
                    self._console.print("Stopped. Nobody gets a key any more: run it again to go on.")
                raise
        self._console.print(self._conclusion(self.installed.live_keys - deleted, deleted))

    def _conclusion(self, left: int, deleted: int) -> str:
        sentences = ["doorkey is uninstalled."]
        if self._plan.keeps_ledger:
            sentences.append("The ledger is kept in schema doorkey, for role postgres only.")
        if deleted:
            sentences.append(f"{counted(deleted, 'key is', 'keys are')} deleted at OpenRouter.")
        if left > 0:
            sentences.append(
                f"{counted(left, 'live key stays', 'live keys stay')} at OpenRouter and can still spend:"
                f" {'it is' if left == 1 else 'they are'} called doorkey-<project>-..., and only you can delete"
                f" {'it' if left == 1 else 'them'} there now."
            )
        sentences.append("Take the functions away too, if they still run: make remove STAGE=...")
        return " ".join(sentences)

    async def _connect(self) -> psycopg.AsyncConnection[dict[str, Any]]:
        try:
            return await psycopg.AsyncConnection.connect(
                self._url,
                autocommit=True,
                connect_timeout=CONNECT_SECONDS,
                row_factory=dict_row,
                # A pooler may give every transaction another session.
                prepare_threshold=None,
                application_name="doorkey uninstall",
            )
        except psycopg.Error as error:
            # Only the kind: the driver's message may quote the address with its password.
            raise UninstallStopped(
                f"The database does not let us in ({type(error).__name__}). Is DATABASE_URL right?"
            ) from None


async def installed_in(connection: psycopg.AsyncConnection[dict[str, Any]]) -> Installed | None:
    """What of doorkey is in this database; None: nothing."""
    (row,) = await (
        await connection.execute(
            """select obj_description(to_regnamespace('doorkey')::oid, 'pg_namespace') as marker,
                      to_regclass('doorkey.settings') is null as is_archive"""
        )
    ).fetchall()
    if row["marker"] != MARKER:
        return None
    keys_table = Identifier("doorkey" if row["is_archive"] else "public", "openrouter_user_keys")
    (found,) = await (await connection.execute(SURVEY.format(keys_table))).fetchall()
    mentions = await (await connection.execute(MENTIONS, (_own_doors(),))).fetchall()
    return Installed(
        keys_table=keys_table,
        is_archive=row["is_archive"],
        live_keys=found["live_keys"],
        spendable_micros=found["spendable_micros"],
        is_uncapped=bool(found["is_uncapped"]),
        mentions=tuple(mention["name"] for mention in mentions),
    )


async def uninstall_from(connection: psycopg.AsyncConnection[dict[str, Any]], *, keeps_ledger: bool) -> None:
    """Takes everything of ours out of the database and of the history of migrations, in one transaction.

    Raises:
        psycopg.Error: nothing was changed.
    """
    applied = [path.stem.partition("_") for path in sorted(MIGRATIONS.glob("*.sql"))]
    async with connection.transaction():
        await connection.execute(
            f"set local lock_timeout = '{LOCK_SECONDS}s'; set local statement_timeout = '{STATEMENT_SECONDS}s'".encode()
        )
        await connection.execute(
            "select set_config('doorkey.keeps_ledger', %s, true)", ("on" if keeps_ledger else "off",)
        )
        await connection.execute(UNINSTALL.read_bytes())
        # So that another installation applies them all. The host's own stay.
        found = await connection.execute(
            "select to_regclass('supabase_migrations.schema_migrations') is not null as is_there"
        )
        if (await found.fetchall())[0]["is_there"]:
            await connection.execute(FORGET, ([version for version, _, _ in applied], [name for _, _, name in applied]))
        # The Data API forgets the doors.
        await connection.execute("notify pgrst, 'reload schema'")


def _summary(name: str, plan: UninstallPlan, installed: Installed) -> Table:
    table = Table(title=f"doorkey in {name}", title_justify="left", show_header=False)
    if not installed.is_archive:
        table.add_row("Goes", "the triggers on auth.users, every function of doorkey's, settings and desired states")
        table.add_row("Goes", "the users' sealed keys: nobody can see theirs again")
        table.add_row("Goes", "our columns of public.profiles; the table too, if it is ours and you added nothing")
    if plan.keeps_ledger:
        table.add_row("Stays", "the ledger, the records of keys and the audit log, as an archive in schema doorkey")
    else:
        table.add_row("Goes", "the ledger: who was given what, and what they spent. --keep-ledger keeps it")
    if plan.deletes_keys:
        table.add_row("Goes", f"{counted(installed.live_keys, 'live key')} at OpenRouter")
    elif installed.live_keys:
        table.add_row("Stays", f"{_still_spending(installed)}. --delete-keys")
    table.add_row("Stays", "your tables, your users, extensions, and all else that is yours")
    return table


def _nothing_to_do(installed: Installed) -> str:
    sentences = [
        "doorkey is uninstalled already: what is left is the ledger that was kept, as an archive in schema doorkey."
        " There is nothing to do; without --keep-ledger it goes too."
    ]
    if installed.live_keys:
        sentences.append(f"{_still_spending(installed)}; with --delete-keys they go.")
    return " ".join(sentences)


def _still_spending(installed: Installed) -> str:
    spendable = "without a limit" if installed.is_uncapped else f"${installed.spendable_micros / 1_000_000:,.2f}"
    return f"{counted(installed.live_keys, 'live key')} at OpenRouter, which can still spend: {spendable}"


def _sentence(error: psycopg.Error) -> str:
    """What went wrong; never the statement, and of the details only names."""
    if isinstance(
        error, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected | psycopg.errors.QueryCanceled
    ):
        return (
            f"Somebody is using auth.users or a table of doorkey's, and did not let go within {LOCK_SECONDS} seconds."
            " Nothing was uninstalled: try again at a quieter moment."
        )
    if isinstance(error, psycopg.errors.DependentObjectsStillExist):
        return (
            "Something of yours is built on something of doorkey's. Nothing was uninstalled; change or drop this first:"
            f" {' '.join((error.diag.message_detail or '').split())}"
        )
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return "This role may not do it: DATABASE_URL must be of the role that installed doorkey, postgres."
    return f"The database did not do it ({type(error).__name__}, {error.sqlstate}). Nothing was uninstalled."
