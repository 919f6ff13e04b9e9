"""The whole SQL vocabulary of the connection: what the database and the functions must agree on.

The signing secret can be stored and never read: both sides are compared by fingerprint. Whoever changes something
proves that they hold the functions' environment, and not only the service key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from uuid import UUID

from functions.clients.supabase import Rpc, Supabase

GET_CONNECTION = Rpc("get_doorkey_connection", (), "service_role")
STORE_CONNECTION = Rpc(
    "store_doorkey_connection", ("webhook_url", "webhook_secret", "proof", "request_id"), "service_role"
)
COUNT_SEALED_SECRETS = Rpc("count_sealed_secrets", (), "service_role")
LIST_SEALED_SECRETS = Rpc("list_sealed_secrets", ("after_key_hash", "listed_rows"), "service_role")
RESEAL_SECRETS = Rpc("reseal_secrets", ("key_hashes", "old_sealed", "new_sealed", "proof"), "service_role")

# The words of a refusal: another secret signs by now.
SECRET_NOT_KNOWN = "secret_not_known"  # noqa: S105  a word
FINGERPRINT_CHARACTERS = 16


def proof_of(webhook_secret: str) -> str:
    """Shows the database that one holds the secret that signs its hints."""
    return sha256(webhook_secret.encode()).hexdigest()


def fingerprint_of(webhook_secret: str) -> str:
    """Tells secrets apart, and proves nothing."""
    return proof_of(webhook_secret)[:FINGERPRINT_CHARACTERS]


@dataclass(frozen=True)
class Connection:
    """Where the database rings.

    Attributes:
        webhook_url: the address; None: nowhere.
        fingerprint: of the secret that signs; None: there is none.
    """

    webhook_url: str | None
    fingerprint: str | None


@dataclass(frozen=True)
class SealedSecret:
    """The sealed secret of one key.

    Attributes:
        key_hash: which key.
        user_id: whose.
        sealed: the ciphertext.
    """

    key_hash: str
    user_id: UUID
    sealed: str

    @property
    def sealing_key_id(self) -> str:
        """Which key has sealed it: it stands in the ciphertext, which the database holds to its form."""
        return self.sealed.split(".")[1]


async def get_connection(database: Supabase) -> Connection:
    """Where the database rings and what it signs with."""
    (row,) = await database.call(GET_CONNECTION, {})
    return Connection(webhook_url=row["webhook_url"], fingerprint=row["webhook_secret_fingerprint"])


async def store_connection(
    database: Supabase, *, webhook_url: str, webhook_secret: str, proof: str | None, request_id: str
) -> None:
    """Has the database ring there and sign with this. Repeatable.

    Args:
        database: which.
        webhook_url: where.
        webhook_secret: what signs.
        proof: of the secret before; None: there was none.
        request_id: for the audit log.

    Raises:
        DatabaseRefused: `secret_not_known`: somebody else was faster.
    """
    arguments = {"webhook_url": webhook_url, "webhook_secret": webhook_secret, "proof": proof, "request_id": request_id}
    await database.call(STORE_CONNECTION, arguments)


async def count_sealed_secrets(database: Supabase) -> dict[str, int]:
    """How many secrets each sealing key has sealed, by the key's id."""
    return {row["sealing_key_id"]: row["sealed_rows"] for row in await database.call(COUNT_SEALED_SECRETS, {})}


async def list_sealed_secrets(database: Supabase, *, after_key_hash: str | None, rows: int) -> list[SealedSecret]:
    """A page of all of them, in the order of the hashes."""
    found = await database.call(LIST_SEALED_SECRETS, {"after_key_hash": after_key_hash, "listed_rows": rows})
    return [SealedSecret(row["key_hash"], UUID(row["user_id"]), row["sealed_secret"]) for row in found]


async def reseal_secrets(
    database: Supabase, opened: Sequence[SealedSecret], new_sealed: Sequence[str], *, proof: str
) -> int:
    """Replaces exactly what was opened; how many. Repeatable; what is another by now is left alone."""
    count = await database.call(
        RESEAL_SECRETS,
        {
            "key_hashes": [secret.key_hash for secret in opened],
            "old_sealed": [secret.sealed for secret in opened],
            "new_sealed": list(new_sealed),
            "proof": proof,
        },
    )
    return int(count)
