"""The SQL in docs/operations.md runs, and says who has a key, and who has none and why, of people in every state."""

from __future__ import annotations

import re
import uuid

import pytest

from infra.local.stack import CHECKOUT
from tests.support.databases import Database
from tests.support.doors import Doors

PAGE = (CHECKOUT / "docs" / "operations.md").read_text()
STATEMENTS = re.findall(r"^```sql\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def under(heading: str) -> str:
    """The first statement under a heading."""
    found = re.search(rf"^## {re.escape(heading)}$.*?^```sql\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def test_the_page_has_statements() -> None:
    assert len(STATEMENTS) >= 7


@pytest.mark.parametrize("statement", STATEMENTS)
async def test_every_statement_runs_as_postgres(database: Database, statement: str) -> None:
    await database.insert_user()
    await database.run(statement, role="postgres")


async def test_each_user_has_a_key_or_a_reason(database: Database) -> None:
    doors = Doors(database)

    async def row(user_id: uuid.UUID, changes: str) -> uuid.UUID:
        await database.run(f"update doorkey.provisioning set {changes} where user_id = %s", (user_id,))
        return user_id

    async def user(user_id: uuid.UUID, changes: str) -> uuid.UUID:
        await database.run(f"update auth.users set {changes} where id = %s", (user_id,))
        return user_id

    ready, disabled = await database.insert_user(), await database.insert_user()
    for user_id in (ready, disabled):
        await doors.make_ready(user_id)
    await user(disabled, "banned_until = now() + interval '1 day'")
    claim = await doors.claimed(disabled)
    await doors.finish_key_update(claim)

    working = await database.insert_user()
    await doors.claimed(working)
    missed = await database.insert_user()
    await database.run("delete from doorkey.provisioning where user_id = %s", (missed,))
    manual = await database.insert_user()
    await row(manual, "state = 'waiting'")
    failed = await database.insert_user()
    await doors.defer(await doors.claimed(failed), delay_seconds=600)
    reasons = {
        working: "being made now",
        missed: "missed by the trigger",
        manual: "has not confirmed",
        failed: "failed: openrouter_refused; next try at",
        await row(await database.insert_user(), "state = 'dead', last_error = 'x'"): "given up: x; doorkey redrive",
        await database.insert_user(confirmed=False): "has not confirmed",
        await database.insert_user(is_anonymous=True): "anonymous",
        await database.insert_user(created_at="2020-01-01"): "from before the installation",
        await database.insert_user(): "due: the next sweep",
        await row(await database.insert_user(), "due_at = now() + interval '1 h'"): "the hour is full",
        await row(
            await database.insert_user(), "due_at = now() + interval '1 h', backfill_at = now() + interval '1 h'"
        ): "backfill: at",
        await user(await database.insert_user(), "banned_until = now() + interval '1 day'"): "banned until",
        await user(await database.insert_user(), "deleted_at = now()"): "deleted",
    }
    have = await database.rows(under("Who has a key"))
    assert {row["id"]: row["status"] for row in have} == {ready: "active", disabled: "disabled"}
    have_none = {row["id"]: row["why"] for row in await database.rows(under("Who has none, and why"))}
    assert have_none.keys() == reasons.keys()
    assert {user_id: why for user_id, why in have_none.items() if not why.startswith(reasons[user_id])} == {}

    await database.run("update doorkey.settings set held_reason = 'openrouter_account_empty', held_until = now()")
    await database.run("update doorkey.settings set provision_on = 'manual'")
    held = {row["id"]: row["why"] for row in await database.rows(under("Who has none, and why"))}
    assert held[failed] == "the queue is held: openrouter_account_empty"
    assert held[manual].startswith("only by hand")
