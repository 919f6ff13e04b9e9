"""Searches the logs of a stack for everything that must not stand in them."""

from __future__ import annotations

from infra.local.stack import Stack
from tests.support.people import database_of
from tests.support.secrets_used import leaks, remember, remembered


async def search_logs(stack: Stack) -> None:
    """No log of any part shows a secret of the stack, of its people, or one that a test remembered."""
    for value in stack.secrets.all_values():
        remember("a secret of the stack", value)
        if value.startswith("whsec_") or ":" in value:
            remember("a secret of the stack", value.replace("whsec_", "").partition(":")[2] or value[6:])
    (pem,) = [value for value in stack.secrets.all_values() if "PRIVATE KEY" in value]
    remember("the signing key", pem.splitlines()[1])
    database = database_of(stack)
    for row in await database.rows("select email, encrypted_password, confirmation_token from auth.users"):
        remember("an e-mail address of a person", row["email"])
        remember("a password's hash of a person", row["encrypted_password"])
        remember("a confirmation token", row["confirmation_token"])
    for row in await database.rows("select token from auth.refresh_tokens"):
        remember("a refresh token", row["token"])
    for row in await database.rows("select sealed_secret from doorkey.sealed_secrets"):
        remember("a sealed secret", row["sealed_secret"])
    assert remembered() > len(stack.secrets.all_values())
    logs = sorted(stack.log_folder.iterdir())
    assert {log.stem for log in logs} >= set(stack.parts) | {"postgres"}
    found = {log.name: sorted(leaks(log.read_bytes())) for log in logs}
    assert {name: kinds for name, kinds in found.items() if kinds} == {}
