"""The doors of `doorkey connect` and of sealing anew: what a service key may do with them, and what it may not."""

from __future__ import annotations

import base64
from hashlib import sha256

import psycopg
import pytest

from tests.support.databases import Database, Row
from tests.support.doors import Doors, key_hash, refused

URL = "https://api.example.com/webhooks/supabase"
FIRST = "whsec_" + base64.b64encode(bytes(range(32))).decode()
SECOND = "whsec_" + base64.b64encode(bytes(range(1, 33))).decode()


def proof(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


async def called(database: Database, statement: str, *arguments: object) -> list[Row]:
    """As service_role."""
    async with database.acting_as("service_role") as connection:
        return await (await connection.execute(statement, arguments)).fetchall()


async def store(database: Database, url: str | None, secret: str | None, proof_sent: str | None) -> None:
    await called(database, "select public.store_doorkey_connection(%s, %s, %s, 'r')", url, secret, proof_sent)


async def stored(database: Database) -> tuple[str, str]:
    (row,) = await database.rows("select webhook_url, webhook_secret from doorkey.settings")
    return row["webhook_url"], row["webhook_secret"]


async def reseal(database: Database, old: list[str], new: list[str | None], *, proof_sent: str = proof(FIRST)) -> int:
    """For the keys called key-0, key-1, …"""
    hashes = [key_hash(f"key-{n}") for n in range(len(old))]
    (row,) = await called(
        database, "select public.reseal_secrets(%s, %s, %s, %s) as count", hashes, old, new, proof_sent
    )
    return int(row["count"])


@pytest.fixture
async def connected(database: Database) -> Database:
    """Signs with FIRST."""
    await store(database, URL, FIRST, None)
    return database


@pytest.fixture
async def sealed(connected: Database) -> Database:
    """With three sealed secrets: two of key k1, one of k2."""
    doors = Doors(connected)
    for n in range(3):
        await doors.finish(await doors.claimed(await connected.insert_user()), f"key-{n}")
    await connected.run(
        "update doorkey.sealed_secrets set sealed_secret = 'v1.k2.AA' where key_hash = %s", (key_hash("key-2"),)
    )
    return connected


async def test_the_secret_goes_in_and_only_a_fingerprint_comes_out(connected: Database) -> None:
    assert await called(connected, "select * from public.get_doorkey_connection()") == [
        {"webhook_url": URL, "webhook_secret_fingerprint": proof(FIRST)[:16]}
    ]
    assert FIRST not in str(await connected.rows("select * from doorkey.audit_log"))


async def test_before_anything_is_stored_there_is_nothing_to_see(database: Database) -> None:
    assert await called(database, "select * from public.get_doorkey_connection()") == [
        {"webhook_url": None, "webhook_secret_fingerprint": None}
    ]


@pytest.mark.parametrize("proof_sent", [None, proof(FIRST)[:16], proof(SECOND), FIRST, ""])
async def test_a_service_key_alone_changes_neither_address_nor_secret(
    connected: Database, proof_sent: str | None
) -> None:
    for url, secret in ((URL, SECOND), ("https://elsewhere.example.com", FIRST)):
        with refused("PT409", "secret_not_known"):
            await store(connected, url, secret, proof_sent)
    assert await stored(connected) == (URL, FIRST)


async def test_the_secret_is_switched_once_and_storing_it_again_changes_nothing(connected: Database) -> None:
    await store(connected, URL, SECOND, proof(FIRST))
    assert await stored(connected) == (URL, SECOND)
    # An answer that was lost is asked for again.
    await store(connected, URL, SECOND, proof(FIRST))
    # Somebody who comes late with what was true before.
    with refused("PT409", "secret_not_known"):
        await store(connected, URL, FIRST, proof(FIRST))
    assert await stored(connected) == (URL, SECOND)


@pytest.mark.parametrize(
    ("url", "secret", "word"),
    [
        (None, FIRST, "webhook_url_invalid"),
        ("ftp://example.com", FIRST, "webhook_url_invalid"),
        ("https://me:mine@example.com", FIRST, "webhook_url_invalid"),
        ("https://example.com/a b", FIRST, "webhook_url_invalid"),
        (URL, None, "webhook_secret_invalid"),
        (URL, "whsec_short", "webhook_secret_invalid"),
        (URL, "whsec_" + "A" * 33, "webhook_secret_invalid"),
        (URL, "whsec_" + base64.b64encode(bytes(66)).decode(), "webhook_secret_invalid"),
        (URL, FIRST.removeprefix("whsec_"), "webhook_secret_invalid"),
    ],
)
async def test_what_is_no_use_is_refused_and_no_error_quotes_a_secret(
    connected: Database, url: str | None, secret: str | None, word: str
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        await store(connected, url, secret, proof(FIRST))
    assert (caught.value.sqlstate, caught.value.diag.message_primary) == ("PT422", word)
    everything = " ".join(str(getattr(caught.value.diag, name)) for name in dir(caught.value.diag) if name[0] != "_")
    for value in (FIRST, secret):
        assert value is None or value not in everything
    assert await stored(connected) == (URL, FIRST)


async def test_sealed_secrets_are_counted_by_key_and_listed_by_page(sealed: Database) -> None:
    counts = await called(sealed, "select * from public.count_sealed_secrets()")
    assert counts == [{"sealing_key_id": "k1", "sealed_rows": 2}, {"sealing_key_id": "k2", "sealed_rows": 1}]
    everything: list[str] = []
    after = None
    for _ in range(3):
        (row,) = await called(sealed, "select * from public.list_sealed_secrets(%s, 1)", after)
        everything.append(row["key_hash"])
        after = everything[-1]
    assert everything == sorted(key_hash(f"key-{n}") for n in range(3))
    assert await called(sealed, "select * from public.list_sealed_secrets(%s, 1)", after) == []
    rows = await called(sealed, "select * from public.list_sealed_secrets(null, 1000)")
    (row,) = [row for row in rows if row["key_hash"] == key_hash("key-2")]
    assert row["sealed_secret"] == "v1.k2.AA"
    assert row["user_id"] == await sealed.value(
        "select user_id from public.openrouter_user_keys where key_hash = %s", (key_hash("key-2"),)
    )


@pytest.mark.parametrize("rows", [None, 0, 1001])
async def test_a_page_has_a_bound(sealed: Database, rows: int | None) -> None:
    with refused("PT422", "page_out_of_range"):
        await called(sealed, "select * from public.list_sealed_secrets(null, %s)", rows)


async def test_only_what_was_opened_is_replaced(sealed: Database) -> None:
    assert await reseal(sealed, ["v1.k1.AAAA", "v1.k1.other", "v1.k2.AA"], ["v1.k3.A", "v1.k3.B", "v1.k3.C"]) == 2
    assert await reseal(sealed, ["v1.k1.AAAA"], ["v1.k3.A"]) == 0
    rows = await sealed.rows("select key_hash, sealed_secret from doorkey.sealed_secrets")
    assert {row["key_hash"]: row["sealed_secret"] for row in rows} == {
        key_hash("key-0"): "v1.k3.A",
        key_hash("key-1"): "v1.k1.AAAA",
        key_hash("key-2"): "v1.k3.C",
    }


async def test_a_service_key_alone_overwrites_no_sealed_secret(sealed: Database) -> None:
    with refused("PT409", "secret_not_known"):
        await reseal(sealed, ["v1.k1.AAAA"], ["v1.k3.A"], proof_sent=proof(SECOND))
    await sealed.run("update doorkey.settings set webhook_secret = null")
    for proof_sent in (None, proof(FIRST)):
        with refused("PT409", "secret_not_known"):
            await called(sealed, "select public.reseal_secrets('{}', '{}', '{}', %s)", proof_sent)


async def test_what_is_not_sealed_is_not_stored_nor_quoted(sealed: Database) -> None:
    for new in ("sk-or-v1-plain", None, ""):
        with refused("PT422", "not_sealed"):
            await reseal(sealed, ["v1.k1.AAAA"], [new])
    with refused("PT422", "page_out_of_range"):
        await reseal(sealed, ["v1.k1.AAAA"] * 1001, ["v1.k3.A"] * 1001)
    with refused("PT422", "page_out_of_range"):
        await reseal(sealed, ["v1.k1.AAAA"], [])


async def test_a_deleted_key_is_not_missed(sealed: Database) -> None:
    await sealed.run("delete from doorkey.sealed_secrets where key_hash = %s", (key_hash("key-0"),))
    assert await reseal(sealed, ["v1.k1.AAAA", "v1.k1.AAAA"], ["v1.k3.A", "v1.k3.B"]) == 1
