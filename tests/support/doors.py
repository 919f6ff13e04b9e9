"""The provisioning doors as a worker uses them: through `public`, as service_role, one call one transaction.

A refusal arrives as the database raises it, so that tests see SQLSTATE and word.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import pytest

from tests.support.databases import Database, Row

SEALED = "v1.k1.AAAA"
LEASE_SECONDS = 60
MAX_POLLS = 500
POLL_SECONDS = 0.02


def key_hash(text: str) -> str:
    """A hash as OpenRouter gives it to a key."""
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def refused(sqlstate: str, word: str) -> Iterator[None]:
    """Expects the refusal with this SQLSTATE and this stable word."""
    with pytest.raises(psycopg.Error) as caught:
        yield
    assert (caught.value.sqlstate, caught.value.diag.message_primary) == (sqlstate, word)


async def wait_until_blocked(database: Database, how_many: int) -> None:
    """Waits until so many connections wait for a lock in this database."""
    for _ in range(MAX_POLLS):
        blocked = await database.value(
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        )
        if blocked >= how_many:
            return
        await asyncio.sleep(POLL_SECONDS)
    pytest.fail(f"not {how_many} connections came to wait")


@dataclass(frozen=True)
class Doors:
    """All that a worker may do to a user's row; `wish` and `expire_lease` are what others or time do to it."""

    database: Database

    async def claim(self, user_id: uuid.UUID, lease_seconds: int | None = LEASE_SECONDS) -> Row | None:
        """The claim; None: nothing to do."""
        rows = await self._call("select * from public.claim_provisioning(%s, %s, 'r')", user_id, lease_seconds)
        assert len(rows) <= 1
        return rows[0] if rows else None

    async def claimed(self, user_id: uuid.UUID) -> Row:
        """A claim that must succeed."""
        claim = await self.claim(user_id)
        assert claim is not None, await self.row(user_id)
        return claim

    async def finish(self, claim: Row, key: str | None = None) -> str:
        """Registers the key called `key`, by default the one that this attempt would make."""
        name = key or f"{claim['user_id']}-{claim['attempt']}"
        return await self._word(
            "select public.finish_provisioning(%s, %s, %s, %s, 'sk-or-v1-abc...123', %s, %s, 'r') as word",
            claim["user_id"],
            claim["attempt"],
            key_hash(name),
            name,
            claim["limit_micros"],
            SEALED,
        )

    async def finish_key_update(self, claim: Row, key: str | None = None, usage_micros: int = 0) -> str:
        """Records the limit of the claim's key, or of another one, and what it has spent."""
        return await self._word(
            "select public.finish_key_update(%s, %s, %s, %s, %s, %s, 'r') as word",
            claim["user_id"],
            claim["attempt"],
            key or claim["key_hash"],
            claim["limit_micros"],
            claim.get("is_enabled", True),
            usage_micros,
        )

    async def finish_key_deletion(self, claim: Row, key: str | None = None) -> str:
        """Records that the claim's key, or another one, is no more."""
        return await self._word(
            "select public.finish_key_deletion(%s, %s, %s, 'r') as word",
            claim["user_id"],
            claim["attempt"],
            key or claim["key_hash"],
        )

    async def rotate(self, user_id: uuid.UUID, grace_seconds: int | None = 3600) -> str:
        """The user asks for another key; the state of the row."""
        return await self._word("select public.request_key_rotation(%s, %s, 'r') as word", user_id, grace_seconds)

    async def defer(
        self, claim: Row, delay_seconds: int | None = 0, *, gives_up: bool = False, is_outage: bool = False
    ) -> str:
        """Ends the attempt as failed."""
        return await self._word(
            "select public.defer_provisioning(%s, %s, 'openrouter_refused', %s, %s, %s, 'r') as word",
            claim["user_id"],
            claim["attempt"],
            delay_seconds,
            gives_up,
            is_outage,
        )

    async def make_ready(self, user_id: uuid.UUID) -> Row:
        """Claims and finishes; the claim."""
        claim = await self.claimed(user_id)
        assert await self.finish(claim) == "ready"
        return claim

    async def wish(self, user_id: uuid.UUID) -> None:
        """Something about the wish changed."""
        await self.database.run("select doorkey.want(%s)", (user_id,))

    async def grant(self, user_id: uuid.UUID, amount_micros: int, idempotency_key: str) -> int:
        """Credits from an operator; the id of the transaction."""
        return int(
            await self.database.value(
                "select doorkey.grant_credits(%s, 'bonus', %s, %s, 'A present', 'test', null, 'r')",
                (user_id, amount_micros, idempotency_key),
            )
        )

    async def expire_lease(self, user_id: uuid.UUID) -> None:
        """Lets the lease's time pass."""
        await self.database.run(
            "update doorkey.provisioning set lease_expires_at = now() - interval '1 s' where user_id = %s", (user_id,)
        )

    async def row(self, user_id: uuid.UUID) -> Row | None:
        """The user's row of doorkey.provisioning."""
        rows = await self.database.rows("select * from doorkey.provisioning where user_id = %s", (user_id,))
        return rows[0] if rows else None

    async def state(self, user_id: uuid.UUID) -> str | None:
        """Its state; None: no row."""
        row = await self.row(user_id)
        return None if row is None else str(row["state"])

    async def keys(self, user_id: uuid.UUID) -> list[Row]:
        """The user's keys, oldest first."""
        return await self.database.rows(
            "select k.*, c.cost_micros from public.openrouter_user_keys as k"
            " join doorkey.key_costs as c on c.key_hash = k.key_hash where k.user_id = %s order by k.attempt",
            (user_id,),
        )

    async def notes(self, user_id: uuid.UUID | None) -> set[str]:
        """What the audit log says of trouble."""
        rows = await self.database.rows(
            "select distinct action from doorkey.audit_log where actor = 'trigger' and user_id is not distinct from %s",
            (user_id,),
        )
        return {row["action"] for row in rows}

    async def _word(self, statement: str, *parameters: object) -> str:
        (row,) = await self._call(statement, *parameters)
        return str(row["word"])

    async def _call(self, statement: str, *parameters: object) -> list[Row]:
        async with self.database.acting_as("service_role") as connection:
            return await (await connection.execute(statement, parameters)).fetchall()
