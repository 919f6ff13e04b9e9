"""Supabase Lite: the Data API and Auth in front of the database, as two processes.

Two, because on hosted they are two: Auth signs in as supabase_auth_admin and the Data API as authenticator, and
what a trigger or a policy sees depends on that.

The surprising things (Lite 0.10.0):
- At its start it makes tables, so its login must be a superuser then; afterwards both are demoted to what they are
  on hosted.
- At its first request it grants everything on schemas with row level security to the API roles, if it has the power.
  So the demotion must come first. That one request fails then, and every later one runs as it should.
- It decides at that first request, once, whether there is row level security: it must start after the migrations.
- It knows only the tables that its login may read itself, at that first request; authenticator may read none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg

from infra.local.supervisor import Part, PartFailed, answers

LOGINS = {"rest": "authenticator", "auth": "supabase_auth_admin"}


@dataclass(frozen=True, repr=False)
class LiteKeys:
    """What the two processes and the edge in front of them share. Nobody else ever sees these."""

    publishable: str
    secret: str
    jwt_secret: str


def part(name: str, checkout: Path, folder: Path, port: int, database_url: str, keys: LiteKeys) -> Part:
    """One Lite process; its configuration is written below `folder`."""
    home = folder / f"lite-{name}"
    config = home / "supabase" / "config.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.touch(mode=0o600)
    config.write_text(_config(port, database_url, keys))
    return Part(
        name=name,
        command=[
            "node",
            "--require",
            str(Path(__file__).with_name("lite_quiet.cjs")),
            str(checkout / "node_modules" / "@supabase" / "lite" / "dist" / "cli" / "index.js"),
            "--no-telemetry",
            "start",
            # Without this, a request without a key would run as service_role.
            "--no-admin",
            "--config",
            str(config),
        ],
        folder=home,
        environment={"HOME": str(home), "DO_NOT_TRACK": "1", "NODE_ENV": "production", "NO_COLOR": "1"},
        # It greets with its keys, and prints the mails it would send.
        is_stdout_logged=False,
        # Not below /rest/v1: that would be the first request.
        is_ready=answers(f"http://127.0.0.1:{port}/"),
    )


def _config(port: int, database_url: str, keys: LiteKeys) -> str:
    # JSON strings are TOML strings.
    quote = json.dumps
    return "\n".join(
        [
            'project_id = "doorkey"',
            "[api]",
            f"port = {port}",
            'schemas = ["public"]',
            "max_rows = 1000",
            "[db]",
            'driver = "postgres"',
            f"url = {quote(database_url)}",
            "[auth]",
            'site_url = "http://127.0.0.1:3000"',
            f"publishable_key = {quote(keys.publishable)}",
            f"secret_key = {quote(keys.secret)}",
            f"jwt_secret = {quote(keys.jwt_secret)}",
            "jwt_expiry = 3600",
            "enable_signup = true",
            "[auth.email]",
            "enable_signup = true",
            "enable_confirmations = false",
            "",
        ]
    )


async def promote(database: psycopg.AsyncConnection[object]) -> None:
    """Makes both logins superusers, for the time of Lite's start."""
    for login in LOGINS.values():
        await database.execute(f"alter role {login} superuser")


async def demote(database: psycopg.AsyncConnection[object], rest_port: int, keys: LiteKeys) -> None:
    """Makes both logins what they are on hosted, and lets the Data API's first request pass.

    Raises:
        PartFailed: the Data API doesn't switch roles, so nothing shown on it would mean anything.
    """
    for login in LOGINS.values():
        await database.execute(f"alter role {login} nosuperuser")
    rest_url = f"http://127.0.0.1:{rest_port}/rest/v1"
    async with httpx.AsyncClient(trust_env=False, timeout=10.0) as client:

        async def ask(method: str, path: str, key: str) -> int:
            return (await client.request(method, f"{rest_url}/{path}", headers={"apikey": key})).status_code

        # Lent for the moment in which it learns the tables. That request must go no further, hence for a table that
        # isn't there. (Before Postgres 16 it is the role that inherits, not the membership.)
        await database.execute("alter role authenticator inherit")
        await database.execute("grant pg_read_all_data to authenticator")
        try:
            await ask("GET", "no_such_table", keys.publishable)
        finally:
            await database.execute("revoke pg_read_all_data from authenticator")
            await database.execute("alter role authenticator noinherit")
        # The request that would grant, and fails.
        await ask("GET", "plans", keys.publishable)
        as_anon = await ask("POST", "rpc/get_doorkey_health", keys.publishable)
        as_service_role = await ask("POST", "rpc/get_doorkey_health", keys.secret)
        tables = await ask("GET", "plans", keys.publishable)
    if as_anon not in (401, 403) or as_service_role != 200:
        raise PartFailed("rest", f"does not switch roles: anon got {as_anon}, service_role got {as_service_role}")
    if tables != 200:
        raise PartFailed("rest", f"knows no tables: {tables}")
