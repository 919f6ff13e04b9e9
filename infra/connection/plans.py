"""What is to be done next, read off from what both sides have: nothing is remembered between two runs.

That is what makes the commands resumable. The surprising thing is how careful the order is: whoever must accept
something gets it first and is asked whether they have it, and only then somebody else begins to use it.

Signing, with the secrets that the functions' environment lists:

    none stored    without an address, one is made              -> deploy, and see what the address is
                   with one, the first is stored: nothing rings yet, so nothing can be lost
    (a)    a signs a new one is put before it                     -> deploy
    (b, a) a signs the functions accept b: now b signs
    (b, a) b signs a new one is put before it, and a goes         -> deploy

Sealing, with the keys that it lists (b is the newer):

    (a)            b is put behind it: everybody can open b       -> deploy
    (a, b)         b is put first: everybody seals with b         -> deploy
    (b, a)         what a sealed is sealed anew; a can be removed
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from functions.connection.store import Connection, fingerprint_of, proof_of
from functions.kit.sealing import SealingKey


class CannotGoOn(Exception):
    """A command can't do its next step; the message is what a person is told."""


class ConnectionStep(Enum):
    """What `doorkey connect` does."""

    PREPARE = "prepare"
    STORE = "store"
    SWITCH = "switch"
    ROTATE = "rotate"


@dataclass(frozen=True, repr=False)
class ConnectionPlan:
    """The next step.

    Attributes:
        step: which.
        webhook_url: where the database shall ring; empty: nobody knows yet.
        secrets: what the functions' environment shall list.
        signing_secret: what the database signs with after the step; before it, for a rotation, too.
        proof: of what signs now; None: nothing does.
    """

    step: ConnectionStep
    webhook_url: str
    secrets: tuple[str, ...]
    signing_secret: str
    proof: str | None


def plan_connection(
    secrets: tuple[str, ...], connection: Connection, webhook_url: str | None, generate: Callable[[], str]
) -> ConnectionPlan:
    """The next step of connecting.

    Args:
        secrets: what the functions' environment lists, the current one first.
        connection: what the database has.
        webhook_url: where it shall ring; None: where it does.
        generate: makes a secret.

    Raises:
        CannotGoOn: the secret that signs isn't among those of the functions.
    """
    url = webhook_url or connection.webhook_url
    if url is None or connection.fingerprint is None:
        # On AWS the address is known after the first deployment, which needs the secrets.
        listed = secrets or (generate(),)
        step = ConnectionStep.STORE if url else ConnectionStep.PREPARE
        return ConnectionPlan(step, url or "", listed, listed[0], None)
    known = current_secret(secrets, connection)
    if (url, known) != (connection.webhook_url, secrets[0]):
        return ConnectionPlan(ConnectionStep.SWITCH, url, secrets, secrets[0], proof_of(known))
    return ConnectionPlan(ConnectionStep.ROTATE, url, (generate(), known), known, proof_of(known))


def current_secret(secrets: tuple[str, ...], connection: Connection) -> str:
    """That of the secrets which signs at present.

    Raises:
        CannotGoOn: none of them does.
    """
    for secret in secrets:
        if fingerprint_of(secret) == connection.fingerprint:
            return secret
    raise CannotGoOn(
        "The database signs with a secret that is not in DOORKEY_WEBHOOK_SECRETS here. Give the environment that the "
        "functions run with. If that secret is lost, run this in the database as postgres: update doorkey.settings set "
        "webhook_secret = null. Then run doorkey connect again, and deploy; meanwhile the sweep does the work."
    )


class SealingStep(Enum):
    """What `doorkey rotate-sealing-key` does."""

    ADD = "add"
    PROMOTE = "promote"
    RESEAL = "reseal"


def plan_sealing(
    keys: tuple[SealingKey, ...], generate: Callable[[], SealingKey]
) -> tuple[SealingStep, tuple[SealingKey, ...]]:
    """The next step, and the keys that the functions' environment shall list after it."""
    if len(keys) == 1:
        return SealingStep.ADD, (keys[0], generate())
    first, second = keys
    if second.is_newer_than(first):
        return SealingStep.PROMOTE, (second, first)
    return SealingStep.RESEAL, keys
