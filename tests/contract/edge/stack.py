"""Boots what the edge stands in front of: a Postgres, two Lites, and the edge as a process.

Kept apart from the tests, which only know `Edge`: any stack that can fill one in will do.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt
import psycopg
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from infra.local import hosted, lite, postgres
from infra.local.edge import CONTROL_HEADER, legacy_key
from infra.local.supervisor import Part, Supervisor, answers, free_port

CHECKOUT = Path(__file__).parents[3]
SCHEMA = Path(__file__).with_name("schema.sql")
LOGIN_PASSWORD = "login-of-a-throw-away-stack"
KEYS = lite.LiteKeys("sb_publishable_inner", "sb_secret_inner", "inner-jwt-secret-" + "0" * 32)


def new_signing_key() -> str:
    """An ES256 private key as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@dataclass(frozen=True)
class Edge:
    """An edge that runs, with everything its operator knows."""

    url: str
    database_url: str = field(repr=False)
    log: Path
    signing_key: str = field(default_factory=new_signing_key, repr=False)
    publishable: str = "sb_publishable_outer"
    secret: str = "sb_secret_outer_one"
    other_secret: str = "sb_secret_outer_two"
    legacy_secret: str = "legacy-jwt-secret-" + "1" * 32

    @property
    def legacy_anon(self) -> str:
        return legacy_key(self.legacy_secret, "anon")

    @property
    def legacy_service_role(self) -> str:
        return legacy_key(self.legacy_secret, "service_role")

    @property
    def issuer(self) -> str:
        return f"{self.url}/auth/v1"

    def environment(self) -> dict[str, str]:
        """What the edge's process is started with."""
        return {
            "EDGE_PUBLISHABLE_KEY": self.publishable,
            "EDGE_SECRET_KEYS": f"{self.secret},{self.other_secret}",
            "EDGE_UPSTREAM_PUBLISHABLE_KEY": KEYS.publishable,
            "EDGE_UPSTREAM_SECRET_KEY": KEYS.secret,
            "EDGE_UPSTREAM_JWT_SECRET": KEYS.jwt_secret,
            "EDGE_SIGNING_KEY": self.signing_key,
            "EDGE_LEGACY_JWT_SECRET": self.legacy_secret,
            "EDGE_DATABASE_URL": self.database_url,
        }

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Claims of a user's token that is good for an hour, with changes; None removes one."""
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": "authenticated",
            "role": "authenticated",
            "sub": "7d8d9c9e-1111-4222-8333-444455556666",
            "iat": now,
            "exp": now + 3600,
        } | changes
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, **changes: Any) -> str:
        """A token signed with the project's own key."""
        key = load_pem_private_key(self.signing_key.encode(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return jwt.encode(self.claims(**changes), key, algorithm="ES256")

    async def rows(self, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
        """Runs SQL as the superuser."""
        async with await psycopg.AsyncConnection.connect(self.database_url, autocommit=True) as connection:
            cursor = await connection.execute(statement.encode(), arguments or None)
            return await cursor.fetchall() if cursor.description is not None else []

    async def control(self, method: str, path: str, body: object) -> None:
        """Turns one of the switches under /edge."""
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as client:
            headers = {CONTROL_HEADER: "1"}
            answer = await client.request(method, f"/edge{path}", json=body, headers=headers)
            answer.raise_for_status()


@asynccontextmanager
async def running_edge() -> AsyncIterator[Edge]:
    """The whole stack, gone again at the end."""
    with tempfile.TemporaryDirectory(prefix="edge_contract_") as name:
        folder = Path(name)
        os.chmod(name, 0o755)  # noqa: PTH101, S103 - Postgres may run as another user
        supervisor = Supervisor(folder / "logs")
        try:
            yield await _boot(supervisor, folder)
        finally:
            await supervisor.stop_all()


async def _boot(supervisor: Supervisor, folder: Path) -> Edge:
    cluster = postgres.prepare(CHECKOUT, folder, "of-a-throw-away-server", free_port())
    await supervisor.start(postgres.part(cluster))
    await hosted.install(cluster.superuser_url, LOGIN_PASSWORD, folder, supervisor, KEYS)
    async with await psycopg.AsyncConnection.connect(cluster.superuser_url, autocommit=True) as database:
        await database.execute(SCHEMA.read_bytes())
        await lite.promote(database)
        ports = {name: free_port() for name in lite.LOGINS}
        for name, login in lite.LOGINS.items():
            url = cluster.url(login, LOGIN_PASSWORD)
            await supervisor.start(lite.part(name, CHECKOUT, folder, ports[name], url, KEYS))
        await _demote(database, ports["rest"])
    return await _start_edge(supervisor, cluster.superuser_url, ports)


async def _start_edge(supervisor: Supervisor, database_url: str, ports: dict[str, int]) -> Edge:
    port = free_port()
    edge = Edge(f"http://127.0.0.1:{port}", database_url, supervisor.log_path("edge"))
    upstreams = [f"--{name}-url=http://127.0.0.1:{ports[name]}" for name in ("rest", "auth")]
    await supervisor.start(
        Part(
            name="edge",
            command=[sys.executable, "-m", "infra.local.edge", f"--port={port}", *upstreams],
            is_ready=answers(f"{edge.url}/edge/health"),
            environment=edge.environment(),
            folder=CHECKOUT,
        )
    )
    return edge


async def _demote(database: psycopg.AsyncConnection[Any], rest_port: int) -> None:
    """Takes Lite's power away before its first request to the database, which would grant it all.

    Before that it must have looked at the schema, as it can see no table without that power: a
    request for an unknown table makes it look and goes no further.
    """
    headers = {"apikey": KEYS.publishable}
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{rest_port}/rest/v1", headers=headers, trust_env=False
    ) as client:
        await client.get("/no_such_table")
        for login in lite.LOGINS.values():
            await database.execute(f"alter role {login} nosuperuser".encode())
        await client.get("/rpc/who_am_i")  # fails on the grants; from then on roles are switched
