"""What goes through the open doors: which rows each table shows to whom, and a call of each function with its answer.

The calls of service doors are about nobody, so they change nothing; an answer of the function's own, even a refusal
in its own word, shows that the caller got in.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tests.database.declared_grants import COLUMNS, FUNCTIONS, TABLES
from tests.support.own_doors import SAMPLES

NOBODY = uuid.UUID("00000000-0000-4000-8000-000000000000")

SubjectName = Literal["anon", "owner", "other", "service_role"]
SUBJECTS: tuple[SubjectName, ...] = ("anon", "owner", "other", "service_role")
PEOPLE: tuple[SubjectName, ...] = ("owner", "other")


def role_of(subject: SubjectName) -> str:
    """The database role that a subject acts as."""
    return "authenticated" if subject in PEOPLE else subject


def readable_columns(table: str, role: str, columns: list[str]) -> list[str]:
    """Which of the table's columns the role may read."""
    if role in TABLES[table]:
        return columns
    granted = COLUMNS.get(table, {}).get(role, ())
    return [column for column in columns if column in granted]


class Function(NamedTuple):
    """A function's name taken apart; types as the catalog writes them."""

    schema: str
    name: str
    types: tuple[str, ...]

    @staticmethod
    def parse(signature: str) -> Function:
        """From `schema.name(type, type)`."""
        path, _, types = signature.rstrip(")").partition("(")
        schema, name = path.split(".")
        return Function(schema, name, tuple(types.split(", ")) if types else ())


@dataclass(frozen=True)
class Readable:
    """A table that somebody may read.

    Attributes:
        key: the column that names a row.
        person: the column that holds whose it is; None: nobody's, and all see what is `visible`.
        visible: which rows are to be seen by others than service_role.
    """

    key: str
    person: str | None = None
    visible: str = "true"

    def condition_for(self, subject: SubjectName, people: Mapping[SubjectName, uuid.UUID]) -> str:
        """Which rows the subject sees, in SQL."""
        if subject == "service_role":
            return "true"
        return f"{self.visible} and {self.person} = '{people[subject]}'" if self.person else self.visible


READABLE = {
    "public.plans": Readable("id", visible="is_active"),
    "public.profiles": Readable("id", person="id"),
    "public.credit_accounts": Readable("user_id", person="user_id"),
    "public.credit_transactions": Readable("id", person="user_id"),
    "public.openrouter_user_keys": Readable("key_hash", person="user_id"),
}


@dataclass(frozen=True)
class Call:
    """A call that its callers may make.

    Attributes:
        arguments: by position.
        answer: `account`: the caller's own; `health`, `progress`: a report; `rows`: some; `nothing`: no rows;
            `null`: no value; `true`: that; else a refusal of REFUSALS.
    """

    arguments: tuple[object, ...]
    answer: Literal[
        "account",
        "health",
        "progress",
        "rows",
        "nothing",
        "lease_lost",
        "page_out_of_range",
        "delay_out_of_range",
        "no_key",
        "webhook_url_invalid",
        "profile_not_found",
        "hold_not_found",
        "transaction_not_found",
        "proof_invalid",
        "nonce_invalid",
        "amount_out_of_range",
        "days_out_of_range",
        "review_not_found",
        "offer_invalid",
        "offer_not_found",
        "unknown_plan",
        "arm_invalid",
        "domain_invalid",
        "null",
        "true",
        "there",
    ]


# The function's own words, and the HTTP status that each asks for.
REFUSALS = {
    "lease_lost": 409,
    "no_key": 404,
    "page_out_of_range": 422,
    "delay_out_of_range": 422,
    "webhook_url_invalid": 422,
    "profile_not_found": 404,
    "hold_not_found": 404,
    "transaction_not_found": 404,
    "proof_invalid": 403,
    "nonce_invalid": 422,
    "amount_out_of_range": 422,
    "days_out_of_range": 422,
    "review_not_found": 404,
    "offer_invalid": 422,
    "offer_not_found": 404,
    "unknown_plan": 404,
    "arm_invalid": 422,
    "domain_invalid": 422,
}

_CALLS = {
    "my_account": Call((), "account"),
    "my_transactions": Call((None, None, None, None, None, 10), "rows"),
    "account_of": Call((NOBODY,), "null"),
    "usage_of": Call((NOBODY, "2026-01-01", "2026-01-31", None, None, 10), "nothing"),
    "my_usage": Call(("2026-01-01", "2026-01-31", None, None, 10), "nothing"),
    "transactions_of": Call((NOBODY, None, None, None, None, None, 10), "nothing"),
    "create_my_profile": Call((), "true"),
    "enrol_me": Call((), "there"),
    "my_new_profile": Call((), "rows"),
    "claim_provisioning": Call((NOBODY, 60, "door", "lazy"), "nothing"),
    "finish_provisioning": Call((NOBODY, 1, "0" * 64, "door", None, 1, "v1.k1.AAAA", "door"), "lease_lost"),
    "finish_key_update": Call((NOBODY, 1, "0" * 64, 1, True, 0, "door"), "lease_lost"),
    "finish_key_deletion": Call((NOBODY, 1, "0" * 64, "door"), "lease_lost"),
    "hold_provisioning": Call((NOBODY, 1, "door", "door"), "lease_lost"),
    "redrive_provisioning": Call((NOBODY, "door", 0, "door"), "page_out_of_range"),
    "start_sweep": Call((0,), "page_out_of_range"),
    "list_due_provisioning": Call((0,), "page_out_of_range"),
    "classify_keys": Call(([], [], []), "nothing"),
    "recheck_key": Call((NOBODY, "door"), "null"),
    "request_key_rotation": Call((NOBODY, 0, "door"), "no_key"),
    "defer_provisioning": Call((NOBODY, 1, "door", 0, False, False, "door"), "lease_lost"),
    "reveal_key": Call((NOBODY, "door"), "nothing"),
    "health": Call((), "health"),
    "prove_webhook_secret": Call(("door",), "nonce_invalid"),
    "preview_backfill": Call((None, NOBODY, None, None, 0), "page_out_of_range"),
    "backfill_users": Call((None, NOBODY, None, None, 0, 1, "door"), "page_out_of_range"),
    "backfill_progress": Call((), "progress"),
    "grant_promised_credits": Call((0, "door"), "page_out_of_range"),
    "list_welcome_offers": Call((None, 0), "page_out_of_range"),
    "add_welcome_offer": Call(("No code", 1, None, None, None, "door", "door"), "offer_invalid"),
    "end_welcome_offer": Call(("no-code", "door", "door"), "offer_not_found"),
    "list_plans": Call((None, 0), "page_out_of_range"),
    "set_plan": Call(("nothing", False, ["name"], ["door"], "door", "door"), "unknown_plan"),
    "list_welcome_arms": Call((None, None, 0), "page_out_of_range"),
    "set_welcome_arm": Call(("door", "door", -1, 0, None, "door", "door"), "arm_invalid"),
    "list_disposable_domains": Call((None, 0), "page_out_of_range"),
    "set_disposable_domain": Call(("door", True, "door", "door"), "domain_invalid"),
    "list_reviews": Call((None, 0), "page_out_of_range"),
    "release_welcome": Call((NOBODY, "door", "door"), "review_not_found"),
    "claw_back_welcome": Call((NOBODY, "door", "door", "door"), "review_not_found"),
    "signup_report": Call(("2026-01-02", "2026-01-01"), "days_out_of_range"),
    "connection": Call((), "rows"),
    "store_connection": Call(("nowhere", "door", None, "door"), "webhook_url_invalid"),
    "count_sealed_secrets": Call((), "rows"),
    "list_sealed_secrets": Call(("f" * 64, 1), "nothing"),
    "reseal_secrets": Call(([], [], ["door", "door"], "door"), "page_out_of_range"),
    "reserve_credits": Call((NOBODY, 1, 60, "door", None, "door"), "profile_not_found"),
    "settle_hold": Call((NOBODY, NOBODY, 1, None, None, None, None, "door"), "hold_not_found"),
    "settle_credits": Call((NOBODY, 1, None, None, None, None, "door"), "hold_not_found"),
    "release_hold": Call((NOBODY, NOBODY, "door"), "hold_not_found"),
    "release_credits": Call((NOBODY, "door"), "hold_not_found"),
    "expire_holds": Call((0, "door"), "page_out_of_range"),
    "post_credits": Call((NOBODY, "bonus", 1, "door", "door", "door", None, "door"), "profile_not_found"),
    "verify_ledger": Call((None, None, None, 0, 1), "page_out_of_range"),
    "verify_receipts": Call((None, None, 0), "page_out_of_range"),
    "reverse_transaction": Call((0, "door", "door", "door", "door"), "transaction_not_found"),
    "renew_periods": Call((0, "door"), "page_out_of_range"),
    "expire_lots": Call((0, "door"), "page_out_of_range"),
    "change_plan": Call((NOBODY, "trial", "now", "door", "door", "door", "door"), "profile_not_found"),
    "report_drift": Call((None, None, 1), "page_out_of_range"),
    "drift_report": Call((None, None, 1), "page_out_of_range"),
    "list_last_words": Call((0,), "page_out_of_range"),
    "record_last_word": Call(("door", "2026-01-01", -1, "door"), "amount_out_of_range"),
    "begin_usage_sync": Call((0,), "delay_out_of_range"),
    "record_usage": Call(
        (0, 0, None, None, False, ["door"], [], [], [], [], [], "2026-01-01T00:00:00Z", "door"), "page_out_of_range"
    ),
}
# By hand, the doors that want a proof open to nobody.
_CALLS |= {
    door: Call((*arguments.values(), "door", 0, "v1,door"), "proof_invalid") for door, arguments in SAMPLES.items()
}
# Those whose public name is another.
_CALLS |= {
    "get_my_account": _CALLS["my_account"],
    "list_my_transactions": _CALLS["my_transactions"],
    "list_transactions": _CALLS["transactions_of"],
    "get_account": _CALLS["account_of"],
    "get_usage": _CALLS["usage_of"],
    "get_my_usage": _CALLS["my_usage"],
    "get_doorkey_health": _CALLS["health"],
    "get_backfill_progress": _CALLS["backfill_progress"],
    "report_signups": _CALLS["signup_report"],
    "get_doorkey_connection": _CALLS["connection"],
    "store_doorkey_connection": _CALLS["store_connection"],
}


def call_of(function: Function) -> Call:
    """How to call it. Only what has a caller has a call."""
    return _CALLS[function.name]


def without_a_call() -> set[str]:
    """Declared functions that somebody may call, and nobody here knows how."""
    return {
        signature
        for signature, callers in FUNCTIONS.items()
        if callers and Function.parse(signature).name not in _CALLS
    }


def without_rows() -> set[str]:
    """Declared tables that somebody may read, and nobody here knows which rows."""
    return {table for table, readers in TABLES.items() if readers or table in COLUMNS} ^ READABLE.keys()
