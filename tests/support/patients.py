"""Installations for the doctor: one that is well, and whatever is done to it, on a running stack."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.local.edge.keys import legacy_key
from infra.local.faults.remote import EDGE, FaultControl
from tests.support.installations import Installation, Run

MIGRATION = "20261120101600"
SEE_ALL = ("DATABASE_URL",)


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor said.

    Attributes:
        run: the command's end.
        status: of all together.
        checks: by name.
    """

    run: Run
    status: str
    checks: dict[str, dict[str, Any]]

    def not_ok(self) -> dict[str, str]:
        """The lines that aren't ok, and their states."""
        return {name: check["state"] for name, check in self.checks.items() if check["state"] != "ok"}


@dataclass
class Patient:
    """A running installation, and the environment that the doctor is given."""

    installation: Installation

    @property
    def environment(self) -> dict[str, str]:
        """All that an operator may have, with everything right."""
        stack = self.installation.stack
        return {**stack.functions_environment, "DATABASE_URL": stack.database_url}

    async def sql(self, statement: str, *parameters: object) -> None:
        """Does something to the database, as superuser."""
        await self.installation.database.run(statement, parameters)

    async def examine(self, changes: Mapping[str, str | None] | None = None, *words: str) -> Diagnosis:
        """Runs the doctor with these variables changed; None takes one away. It never shows a secret."""
        changed = {**self.environment, **(changes or {})}
        environment = {name: value for name, value in changed.items() if value is not None}
        run = await self.installation.run("doctor", "--json", *words, environment=environment)
        self.shows_no_secret(run, changes or {})
        report = json.loads(run.out)
        assert set(report) == {"version", "status", "checks"}
        assert report["version"] == 1
        return Diagnosis(run, report["status"], {check["name"]: check for check in report["checks"]})

    def shows_no_secret(self, run: Run, changes: Mapping[str, str | None]) -> None:
        """Nothing of what is secret is in what was printed, be it right or wrong."""
        secrets = [*self.installation.stack.secrets.all_values(), *(value for value in changes.values() if value)]
        assert [secret for secret in secrets if len(secret) >= 16 and secret in run.out + run.err] == []
        assert "Traceback" not in run.said

    def legacy_keys(self) -> dict[str, str]:
        """The pair of legacy keys."""
        secret = self.installation.stack.secrets.legacy_jwt_secret
        return {
            "SUPABASE_PUBLISHABLE_KEY": legacy_key(secret, "anon"),
            "SUPABASE_SECRET_KEY": legacy_key(secret, "service_role"),
        }

    async def switch_legacy(self, *, enabled: bool) -> None:
        """As in the dashboard: both or none."""
        url = f"{self.installation.stack.supabase_url}/edge/legacy-keys"
        answer = await self.installation.http.put(url, json={"enabled": enabled}, headers={"X-Edge-Control": "1"})
        assert answer.status_code == 204

    def edge_faults(self) -> FaultControl:
        """Orders faults of the gateway."""
        return FaultControl(EDGE, self.installation.stack.supabase_url)

    async def insert_key(self, limit_micros: int, sealing_key_id: str = "k1") -> None:
        """Somebody's live key, of which OpenRouter knows nothing."""
        user_id = await self.installation.database.insert_user(confirmed=False)
        await self.sql(
            "insert into public.openrouter_user_keys (key_hash, user_id, key_name, limit_micros, attempt)"
            " values (repeat('a', 64), %s, 'doorkey-local-somebody-1', %s, 1)",
            user_id,
            limit_micros,
        )
        await self.sql(
            "insert into doorkey.sealed_secrets (key_hash, sealed_secret) values (repeat('a', 64), %s)",
            f"v1.{sealing_key_id}.AAAA",
        )

    async def give_up(self, error: str, users: int = 1) -> None:
        """Users whose provisioning was given up."""
        for _ in range(users):
            user_id = await self.installation.database.insert_user(confirmed=False)
            await self.sql(
                "update doorkey.provisioning set state = 'dead', last_error = %s where user_id = %s", error, user_id
            )

    async def heal(self) -> None:
        """Everything as it should be, whatever was done."""
        stack = self.installation.stack
        await self.installation.database.migrate()
        for statement in (
            "delete from doorkey.sealed_secrets",
            "delete from doorkey.key_requests",
            "delete from public.openrouter_user_keys",
            "delete from doorkey.provisioning",
        ):
            await self.sql(statement)
        await self.sql(
            "update doorkey.settings set webhook_url = %s, webhook_secret = %s, last_sweep_at = now(),"
            " held_reason = null, held_until = null, max_keys_per_hour = 500",
            self.installation.url,
            stack.secrets.webhook_secret,
        )
        await self.sql(
            "insert into supabase_migrations.schema_migrations (version, name) values (%s, 'doctor')"
            " on conflict do nothing",
            MIGRATION,
        )
        await self.switch_legacy(enabled=True)
        await self.edge_faults().clear()
