"""Proofs: by them the database knows that a function of ours asks for somebody, and not they by hand.

A person's own token opens the Data API to them, with or without us. So an own door that changes anything also asks
for an HMAC over what is asked, for whom, and until when, which holds once. The surprising thing: it is made with the
secrets that sign the database's hints, because those are what both sides know already. See docs/decisions/0016.
"""

from __future__ import annotations

import base64
import hmac
import uuid
from collections.abc import Mapping, Sequence

from functions.kit.clock import Clock, system_clock

# What else is signed with these secrets begins with `msg_`.
PURPOSE = "doorkey.proof"
# What an own door takes besides its own arguments.
PROOF_ARGUMENTS = ("proof_id", "proof_expires_at", "proof")
# Half of what the database allows: its clock may be behind ours as far as before it.
PROOF_SECONDS = 150

Argument = str | int | bool | None


class Proofs:
    """Makes proofs.

    Args:
        secrets: the signing secrets as bytes; one that the database has among them will do. None: it refuses all.
        clock: the time.
    """

    def __init__(self, secrets: Sequence[bytes], clock: Clock = system_clock) -> None:
        self._secrets = tuple(secrets)
        self._clock = clock

    def sign(self, door: str, user_id: uuid.UUID, arguments: Mapping[str, Argument]) -> dict[str, str | int]:
        """The further arguments that an own door takes. They hold for one call: who calls again signs again.

        Args:
            door: its name in `public`.
            user_id: whose door it is, by their verified token.
            arguments: all others, in the order in which the door declares them. Text stands as the database writes the
                value: a UUID in lower case, a number with a fraction in plain notation.

        Raises:
            TypeError: an argument is of another kind, of which the database may write something else.
        """
        proof_id = str(uuid.uuid4())
        expires_at = int(self._clock()) + PROOF_SECONDS
        content = (PURPOSE, door, str(user_id), *map(_text, arguments.values()), proof_id, str(expires_at))
        signed = b"".join(map(_netstring, content))
        signatures = (base64.b64encode(hmac.digest(secret, signed, "sha256")).decode() for secret in self._secrets)
        return {
            "proof_id": proof_id,
            "proof_expires_at": expires_at,
            "proof": " ".join(f"v1,{signature}" for signature in signatures),
        }


def _text(value: Argument) -> str | None:
    """As Postgres writes it."""
    match value:
        case None | str():
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
    raise TypeError(f"a proof can't be over {type(value).__name__}")


def _netstring(text: str | None) -> bytes:
    """Length and content: whatever stands in one can't be taken for the next."""
    if text is None:
        return b"-,"
    octets = text.encode()
    return b"%d:%b," % (len(octets), octets)
