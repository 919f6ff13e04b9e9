"""supabase/schema.sql says what the migrations come to, and the migrations can be applied again without harm."""

from __future__ import annotations

import asyncio
import re
import sys
from datetime import datetime
from pathlib import Path

import pytest

from infra.local.migrations import migrate
from infra.local.schema_export import SCHEMA_FILE, export_schema
from infra.local.stack import CHECKOUT
from infra.local.supervisor import PartFailed
from tests.database.catalog import Catalog
from tests.database.declared_grants import declared_grants
from tests.support.databases import MIGRATIONS, Database

OUTDATED = "supabase/schema.sql is not what the migrations come to: run `make schema`, and look at what changed"
NAME = re.compile(r"(\d{14})_[a-z]+(?:_[a-z]+)*\.sql")
HEADING = re.compile(r"^-- ([a-z_.]+)$", re.MULTILINE)
EXPORT_SECONDS = 90


async def test_make_schema_writes_the_committed_file(tmp_path: Path) -> None:
    """The command itself: a database of its own, the real CLI, the export."""
    output = tmp_path / "schema.sql"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "infra.local.schema_export", "--output", str(output)),
        cwd=CHECKOUT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(EXPORT_SECONDS):
        out, err = await process.communicate()
    assert (process.returncode, out) == (0, b""), err.decode()
    assert output.read_text() == SCHEMA_FILE.read_text(), OUTDATED


async def test_the_cli_installs_as_postgres_and_again_changes_nothing(hosted_database: Database) -> None:
    url, catalog = hosted_database.url("postgres"), Catalog(hosted_database.superuser_url)
    await migrate(CHECKOUT, url)
    history = await hosted_database.rows("select version, name from supabase_migrations.schema_migrations order by 1")
    assert [f"{row['version']}_{row['name']}.sql" for row in history] == [path.name for path in MIGRATIONS]
    once = await export_schema(url)
    assert once == SCHEMA_FILE.read_text(), OUTDATED

    user_id = await hosted_database.insert_user()
    await hosted_database.migrate()
    await migrate(CHECKOUT, url)
    assert await export_schema(url) == once
    assert await catalog.grants() == declared_grants()
    assert await catalog.owners() == {"postgres"}
    assert await hosted_database.value("select user_id from doorkey.provisioning") == user_id


async def test_the_file_holds_everything_of_ours_and_nothing_else(database: Database) -> None:
    objects = await Catalog(database.superuser_url).objects()
    functions = {signature.partition("(")[0] for signature in objects["function"]}
    headings = HEADING.findall(SCHEMA_FILE.read_text())
    # Sequences come with the columns that they number.
    assert set(headings) == {"doorkey", "auth.users"} | objects["table"] | objects["type"] | functions, OUTDATED
    assert len(headings) == len(set(headings))


async def test_the_export_leaves_nothing_out_silently(database: Database) -> None:
    await database.run("create view public.who_knows with (security_invoker) as select 1 as one", role="postgres")
    with pytest.raises(PartFailed, match=r"views/who_knows\.sql"):
        await export_schema(database.url("postgres"))


async def test_the_export_shows_a_grant_a_policy_and_a_function_that_changed(database: Database) -> None:
    before = await export_schema(database.url("postgres"))
    for change in (
        "grant select on doorkey.settings to service_role",
        "grant execute on function public.reveal_key(uuid, text) to anon",
        'drop policy "Users may read their own keys" on public.openrouter_user_keys',
        "alter function doorkey.health() security invoker",
        "drop trigger zz_doorkey_user_created on auth.users",
        "drop index doorkey.provisioning_due",
        "alter table doorkey.provisioning drop constraint leased_exactly_while_working",
    ):
        # Only the superuser may drop a trigger of a table that belongs to Auth.
        await database.run(change)
        after = await export_schema(database.url("postgres"))
        assert after != before, change
        before = after


def test_migrations_are_called_by_their_moment_and_their_noun() -> None:
    moments = []
    for path in MIGRATIONS:
        match = NAME.fullmatch(path.name)
        assert match, f"{path.name} is not YYYYMMDDHHMMSS_noun.sql"
        moments.append(datetime.strptime(match[1], "%Y%m%d%H%M%S"))  # noqa: DTZ007  only whether it is one
    assert len(moments) == len(set(moments)) >= 8
    assert sorted(path.name for path in (CHECKOUT / "supabase" / "migrations").iterdir()) == [
        p.name for p in MIGRATIONS
    ]


@pytest.mark.parametrize("path", MIGRATIONS, ids=lambda path: path.stem)
def test_migrations_wait_for_no_lock_and_change_no_defaults(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("-- "), "say what it is for"
    assert re.search(r"^set (local )?lock_timeout = '5s';$", text, re.MULTILINE), "the host's tables are in use"
    statements = re.sub(r"--[^\n]*", "", text).lower()
    assert "alter default privileges" not in statements, "that changes what the host's own objects may do"
    assert not re.search(r"\bon all (tables|functions|sequences|routines)\b", statements), "name the object"
