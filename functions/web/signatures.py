"""Whether a webhook comes from where it should.

Two ways: our own trigger signs by the Standard Webhooks scheme (HMAC over id, timestamp and the exact bytes); a
Database Webhook made in the Supabase dashboard can't sign and carries a shared secret in a header. Without a
configured secret a way is closed: an empty secret is one that anybody can use. All garbage is one refusal.

Not the `standardwebhooks` package: on several kinds of garbage it raises something other than its own error, and it
takes one secret, not two.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping, Sequence

TOLERANCE_SECONDS = 5 * 60
MAX_SIGNATURES = 8
SHARED_SECRET_HEADER = "x-webhook-secret"  # noqa: S105  a header's name


class SignatureWrong(Exception):
    """Not signed, wrongly signed, or too old or new; the message says which, for the log."""


def verify_signature(headers: Mapping[str, str], body: bytes, secrets: Sequence[bytes], *, now_seconds: float) -> None:
    """Accepts a body signed with any of the secrets within five minutes.

    Args:
        headers: names in lower case.
        body: the exact bytes.
        secrets: the keys; none refuses everything.
        now_seconds: the time.

    Raises:
        SignatureWrong: otherwise.
    """
    usable = [secret for secret in secrets if secret]
    if not usable:
        raise SignatureWrong("no signing secret is configured")
    message_id = headers.get("webhook-id", "")
    timestamp = headers.get("webhook-timestamp", "")
    if not (
        message_id and message_id.isascii() and timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12
    ):
        raise SignatureWrong("unsigned")
    if abs(now_seconds - int(timestamp)) > TOLERANCE_SECONDS:
        raise SignatureWrong("signed too long ago or in the future")
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    candidates = _signatures(headers.get("webhook-signature", ""))
    for secret in usable:
        expected = hmac.digest(secret, signed, "sha256")
        if any(hmac.compare_digest(expected, candidate) for candidate in candidates):
            return
    raise SignatureWrong("no signature matches")


def sign(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The signature of a message, as its header has it. Several, for several secrets, are joined by a space."""
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    return "v1," + base64.b64encode(hmac.digest(secret, signed, "sha256")).decode()


def verify_shared_secret(headers: Mapping[str, str], secret: str | None) -> None:
    """Accepts the configured shared secret, compared in constant time.

    Raises:
        SignatureWrong: it is another one, or none is configured.
    """
    if not secret:
        raise SignatureWrong("no shared secret is configured")
    sent = headers.get(SHARED_SECRET_HEADER, "")
    # Half a surrogate pair can't be encoded as it is, and an event may hold one.
    if not hmac.compare_digest(sent.encode("utf-8", "surrogatepass"), secret.encode()):
        raise SignatureWrong("another shared secret")


def _signatures(header: str) -> list[bytes]:
    """The v1 signatures of the header, which may hold several: secrets are rotated with both valid."""
    found = []
    for word in header.split()[:MAX_SIGNATURES]:
        version, _, encoded = word.partition(",")
        if version == "v1":
            try:
                found.append(base64.b64decode(encoded, validate=True))
            except (binascii.Error, ValueError):
                continue
    return found
