"""What the Data API can be asked, and what its answers stand for.

A call that failed is named by whether the transaction may have happened: before it (retry freely), at it (the answer
was lost, nobody knows), or refused. The surprising thing: that a key of ours is *rejected* is a verdict with an exact
test, because the access ladder acts on it. A missing grant, a time-out or a refused connection is never one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import httpx

from functions.kit.errors import DoorkeyError, RlsDenied, UserTokenRejected

Json = Any
Role = Literal["service_role", "authenticated"]

REFUSAL_PREFIX = "PT"
# A door's words for: the functions did not show that it is they who ask.
PROOF_WORDS = "proof_"
INSUFFICIENT_PRIVILEGE = "42501"
# Deadlock, serialization failure, lock not available, statement cancelled: rolled back, and worth another try.
BUSY_CODES = ("40P01", "40001", "55P03", "57014")
# Not a value of the argument's type, or more than it holds.
BAD_VALUE_CODES = ("22P02", "22003")
# A JWT that can't be verified, or whose claims don't hold: a legacy key that ran out is one of these too.
BAD_TOKEN_CODES = ("PGRST301", "PGRST303")
ANONYMOUS_DISABLED = "PGRST302"
LOST_STATUSES = (502, 503, 504, 520, 522, 524)
LOST_CODES = ("PGRST000", "PGRST001", "PGRST002", "PGRST003")

# How the gateway's sentences begin, and what each says of the key (supabase.md 3). Its words change; that they speak
# of an API key, in a body without a code, does not.
GATEWAY_SENTENCES = {
    "no api key found": "no key was sent",
    "invalid api key": "no key of this project",
    "unregistered api key": "deleted, rotated, or another project's",
    "legacy api keys are disabled": "the legacy keys are switched off, both of them",
    "secret api key required": "a publishable key where a secret one is needed",
    "forbidden use of secret api key": "taken for a browser's",
}
SPEAKS_OF_A_KEY = "api key"


class SupabaseError(DoorkeyError):
    """Supabase did not do what was asked."""

    code = "supabase_failed"
    status = 502


class SupabaseUnreachable(SupabaseError):
    """The database can't be reached at the moment. Try again shortly; nothing was lost."""

    code = "supabase_unreachable"
    status = 503


class SupabaseAnswerLost(SupabaseError):
    """The database did not answer in time. What you asked for may have happened."""

    code = "supabase_answer_lost"
    status = 504


class DatabaseBusy(SupabaseError):
    """The database is too busy at the moment. Nothing happened; try again shortly."""

    code = "database_busy"
    status = 503


class ValueRefused(SupabaseError):
    """The database does not understand what was asked: a value is not of the kind that belongs there.

    Before any door is open. Whoever knows which value can only be meant says it in better words.
    """

    code = "value_refused"
    status = 422


class ServiceKeyRejected(SupabaseError):
    """The server's key for the database is not accepted. Its operators have been told; nothing was lost."""

    code = "service_key_rejected"
    status = 503


class PublishableKeyRejected(SupabaseError):
    """The server's public key for the database is not accepted. Its operators have been told."""

    code = "publishable_key_rejected"
    status = 503


class ProofRejected(SupabaseError):
    """The server could not show the database that it is the one who asks. Nothing was lost; its operators must act."""

    code = "proof_rejected"
    status = 503


class DatabaseRefused(SupabaseError):
    """The database refused, with a word that says why.

    Attributes:
        word: the stable word, such as ``lease_lost``.
        hint: what goes with it.
    """

    code = "database_refused"
    status = 409

    def __init__(self, word: str, status: int, hint: str = "") -> None:
        super().__init__(f"{word} ({status})")
        self.word = word
        self.hint = hint
        self.http_status = status


@dataclass(frozen=True)
class Rpc:
    """A door in the database, declared once in the `store.py` of its noun.

    Attributes:
        name: of the function in `public`.
        arguments: their names, all of them; scalars and arrays only.
        role: who may call it, and so whose credentials carry the call.
        own_door: the person's own way to the same, when the service key is rejected; None: there is none. It takes
            the same arguments but `user_id`, and the proof of a function of ours (proofs.py).
        service_door: of a door that is the person's own from the start, the functions' way to the same, when the
            publishable key is rejected; None: there is none. It takes `user_id` besides, and is declared itself, too.
        is_exact: amounts in its result have fractions of a micro-dollar. They come as Decimals, as they are written: a
            double would lose what stands behind its last place.
    """

    name: str
    arguments: tuple[str, ...]
    role: Role
    own_door: str | None = None
    service_door: str | None = None
    is_exact: bool = False


def gateway_says(body: Json) -> str | None:
    """What the gateway says of the key that was sent, in our own words; None: it says nothing of a key."""
    if not isinstance(body, dict) or "code" in body or "error_code" in body:
        return None
    message = str(body.get("message", "")).lower()
    for beginning, meaning in GATEWAY_SENTENCES.items():
        if message.startswith(beginning):
            return meaning
    return "in words that are new to us" if SPEAKS_OF_A_KEY in message else None


def body_of(response: httpx.Response) -> Json:
    """The JSON of an answer; None: it has none."""
    try:
        return response.json()
    except ValueError:
        return None


def failure(response: httpx.Response, door: str, role: Role) -> SupabaseError | RlsDenied | UserTokenRejected:
    """The error that a failed answer stands for.

    Args:
        response: the answer.
        door: what was called, for the log.
        role: as whom: it decides whose credentials a 401 is about.
    """
    status = response.status_code
    body = body_of(response)
    code = body.get("code") if isinstance(body, dict) else None
    where = f"{door}: {status} {code or 'without a code'}"
    if isinstance(code, str) and code.startswith(REFUSAL_PREFIX):
        word = str(body.get("message", ""))
        if word.startswith(PROOF_WORDS):
            return ProofRejected(f"{door}: {word}")
        return DatabaseRefused(word, status, str(body.get("hint") or ""))
    if code == INSUFFICIENT_PRIVILEGE:
        return RlsDenied(where)
    if code in BUSY_CODES:
        return DatabaseBusy(where)
    if code in BAD_VALUE_CODES:
        return ValueRefused(where)
    if status == 401:
        verdict = _verdict(body, code, where, role)
        if verdict is not None:
            return verdict
    if status in LOST_STATUSES or code in LOST_CODES:
        # A gateway's words for "no answer": the transaction may have happened.
        return SupabaseAnswerLost(where)
    return SupabaseError(where)


def _verdict(body: Json, code: object, where: str, role: Role) -> SupabaseError | UserTokenRejected | None:
    """What a 401 says of credentials; None: nothing."""
    meaning = gateway_says(body)
    if meaning is not None:
        detail = f"{where}: {meaning}"
        return ServiceKeyRejected(detail) if role == "service_role" else PublishableKeyRejected(detail)
    if role == "service_role":
        return ServiceKeyRejected(where) if code in BAD_TOKEN_CODES else None
    return UserTokenRejected(where) if code in (*BAD_TOKEN_CODES, ANONYMOUS_DISABLED) else None
