"""What the database tells the doctor: a proof that proves nothing else, and a report whose parts hide no others."""

from __future__ import annotations

import time

import psycopg
import pytest

from functions.health.store import SecretProof
from functions.kit.settings import decode_webhook_secret
from functions.web.signatures import SignatureWrong, verify_signature
from tests.support.databases import Database
from tests.support.environment import OTHER_WEBHOOK_SECRET, WEBHOOK_SECRET

NONCE = "0123456789abcdef" * 2


async def prove(database: Database, nonce: str | None = NONCE) -> SecretProof:
    (row,) = await database.rows("select * from doorkey.prove_webhook_secret(%s)", (nonce,))
    return SecretProof(f"doorkey.doctor.{row['database_nonce']}{nonce}".encode(), row["proof"])


async def test_the_proof_is_of_the_secret_that_signs_the_hints_and_never_twice_the_same(database: Database) -> None:
    keys = [decode_webhook_secret(secret) for secret in (OTHER_WEBHOOK_SECRET, WEBHOOK_SECRET)]
    assert (await prove(database)).signature is None
    await database.run("update doorkey.settings set webhook_secret = %s", (WEBHOOK_SECRET,))
    first, second = await prove(database), await prove(database)
    assert first.place_among(keys) == second.place_among(keys) == 1
    assert first.place_among(keys[:1]) is None
    assert first.signature != second.signature


async def test_what_is_signed_as_a_proof_is_no_hint_however_it_is_cut(database: Database) -> None:
    await database.run("update doorkey.settings set webhook_secret = %s", (WEBHOOK_SECRET,))
    proof = await prove(database, "0" * 40 + str(int(time.time())))
    words = proof.signed.decode().split(".")
    cuts = [(".".join(words[:i]), ".".join(words[i:j]), ".".join(words[j:])) for i in range(4) for j in range(i, 5)]
    for message_id, timestamp, body in cuts:
        headers = {"webhook-id": message_id, "webhook-timestamp": timestamp, "webhook-signature": proof.signature or ""}
        with pytest.raises(SignatureWrong):
            verify_signature(headers, body.encode(), [decode_webhook_secret(WEBHOOK_SECRET)], now_seconds=time.time())


@pytest.mark.parametrize("nonce", [None, "", "0" * 31, "0" * 65, "x" * 32, "A" * 32, "0" * 31 + ".", f"{NONCE}\n"])
async def test_only_hexadecimal_digits_are_signed(database: Database, nonce: str | None) -> None:
    with pytest.raises(psycopg.Error, match="nonce_invalid"):
        await prove(database, nonce)


async def test_the_report_is_whole_for_the_owner_and_where_parts_can_not_be_seen(database: Database) -> None:
    async with database.connect("postgres") as connection:
        (row,) = await (await connection.execute("select doorkey.health() as health")).fetchall()
    health = row["health"]
    assert health["migrations"] is None
    assert len(health["triggers"]) == 3
    assert {"get_doorkey_health", "claim_provisioning"} <= {door["name"] for door in health["doors"]}
    # A history that is another's to read.
    await database.run(
        "drop schema if exists supabase_migrations cascade; create schema supabase_migrations;"
        " create table supabase_migrations.schema_migrations (version text)"
    )
    async with database.connect("postgres") as connection:
        (row,) = await (await connection.execute("select doorkey.health() as health")).fetchall()
    assert row["health"]["migrations"] is None
    await database.run("grant usage on schema supabase_migrations to postgres")
    await database.run("grant select on supabase_migrations.schema_migrations to postgres")
    await database.run("insert into supabase_migrations.schema_migrations values ('2'), ('1')")
    assert await database.value("select doorkey.health() -> 'migrations'") == ["1", "2"]


async def of_postgres(database: Database) -> object:
    """What the owner of the function, who is no superuser, is told of pg_net."""
    return await database.value("select doorkey.health() -> 'pg_net'")


async def test_pg_net_is_missing_dead_or_alive(database: Database) -> None:
    await database.run("drop schema if exists net cascade")
    assert await of_postgres(database) is None
    await database.run("create schema net")
    assert await of_postgres(database) == {"is_worker_up": None, "waiting": None}
    await database.run(
        "grant usage on schema net to public; create table net.http_request_queue (id int);"
        " insert into net.http_request_queue select generate_series(1, 1200)"
    )
    assert await of_postgres(database) == {"is_worker_up": None, "waiting": None}
    await database.run("grant select on net.http_request_queue to public")
    assert await of_postgres(database) == {"is_worker_up": None, "waiting": 1000}
    await database.run(
        "create function net.check_worker_is_up() returns void language plpgsql as"
        " $$ begin raise exception 'it is not'; end $$; delete from net.http_request_queue"
    )
    assert await of_postgres(database) == {"is_worker_up": False, "waiting": 0}
    await database.run("create or replace function net.check_worker_is_up() returns void language sql as $$ select $$")
    assert await database.value("select (doorkey.health() -> 'pg_net' -> 'is_worker_up')::boolean") is True
