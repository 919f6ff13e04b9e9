"""Who may do what to each object of ours: every grant there is, besides the owner's.

Written by hand, never generated. Whoever adds an object adds its line here, and it is held against the catalog
(test_acls.py), against what the roles can do in SQL and against what they can do at the Data API (test_doors.py).
"""

from __future__ import annotations

from typing import NamedTuple

from tests.database.declared_inside import INSIDE

CLIENT_ROLES = ("anon", "authenticated", "service_role")
OWNER = "postgres"


class Grant(NamedTuple):
    """One privilege of one role on one object. `public` as a grantee is everybody."""

    kind: str
    name: str
    grantee: str
    privilege: str

    def __str__(self) -> str:
        """As SQL would say it, about."""
        return f"grant {self.privilege.lower()} on {self.kind} {self.name} to {self.grantee}"


SCHEMAS: dict[str, tuple[str, ...]] = {
    # May look functions up in it, and create nothing.
    "doorkey": ("authenticated", "service_role"),
}

# Which of the tables are views.
VIEWS = {"doorkey.key_costs", "doorkey.ledger_entries"}

# Who may read the whole table. Nobody may write any, but for INSERTS below.
TABLES: dict[str, tuple[str, ...]] = {
    "public.plans": ("anon", "authenticated", "service_role"),
    "public.profiles": ("authenticated", "service_role"),
    "public.credit_accounts": ("authenticated", "service_role"),
    "public.credit_transactions": ("service_role",),
    "public.openrouter_user_keys": ("service_role",),
    "doorkey.settings": (),
    "doorkey.audit_log": (),
    "doorkey.key_costs": (),
    "doorkey.ledger_entries": (),
    "doorkey.posting_answers": (),
    "doorkey.credit_lots": (),
    "doorkey.credit_holds": (),
    "doorkey.credit_takings": (),
    "doorkey.unheld_costs": (),
    "doorkey.key_usage": (),
    "doorkey.key_usage_days": (),
    "doorkey.usage_findings": (),
    "doorkey.usage_sync": (),
    "doorkey.sealed_secrets": (),
    "doorkey.key_requests": (),
    "doorkey.used_proofs": (),
    "doorkey.provisioning": (),
    "doorkey.welcome_offers": (),
    "doorkey.welcome_arms": (),
    "doorkey.disposable_domains": (),
    "doorkey.welcomes": (),
    "doorkey.promised_credits": (),
    "doorkey.known_people": (),
    "doorkey.signup_ranges": (),
    "doorkey.plan_changes": (),
}

# Where only some columns may be read: by role.
COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "public.credit_transactions": {
        "authenticated": ("id", "user_id", "type", "amount_micros", "reason", "provider", "model", "created_at"),
    },
    "public.openrouter_user_keys": {
        "authenticated": (
            "key_hash",
            "user_id",
            "key_name",
            "key_label",
            "limit_micros",
            "status",
            "created_at",
            "updated_at",
            "retires_at",
            "deleted_at",
        ),
    },
}

SEQUENCES: dict[str, tuple[str, ...]] = {
    "public.credit_transactions_id_seq": (),
    "doorkey.audit_log_id_seq": (),
    "doorkey.credit_lots_id_seq": (),
    "doorkey.promised_credits_id_seq": (),
    "doorkey.plan_changes_id_seq": (),
}

PAGE_OF_TRANSACTIONS = "timestamp with time zone, timestamp with time zone, timestamp with time zone, bigint, integer"

# Who may call it. A door in public has one caller, and so has the function behind it.
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "public.get_my_account()": ("authenticated",),
    f"public.list_my_transactions(text[], {PAGE_OF_TRANSACTIONS})": ("authenticated",),
    "public.get_account(uuid)": ("service_role",),
    "public.get_usage(uuid, date, date, date, text, integer)": ("service_role",),
    "public.get_my_usage(date, date, date, text, integer)": ("authenticated",),
    f"public.list_transactions(uuid, text[], {PAGE_OF_TRANSACTIONS})": ("service_role",),
    "public.create_my_profile()": ("authenticated",),
    "public.claim_my_provisioning(integer, text, text, text, bigint, text)": ("authenticated",),
    "public.finish_my_provisioning(integer, text, text, text, bigint, text, text, text, bigint, text)": (
        "authenticated",
    ),
    "public.finish_my_key_update(integer, text, bigint, boolean, numeric, text, text, bigint, text)": (
        "authenticated",
    ),
    "public.finish_my_key_deletion(integer, text, text, text, bigint, text)": ("authenticated",),
    "public.defer_my_provisioning(integer, text, integer, boolean, boolean, text, text, bigint, text)": (
        "authenticated",
    ),
    "public.hold_my_provisioning(integer, text, text, text, bigint, text)": ("authenticated",),
    "public.recheck_my_key(text, text, bigint, text)": ("authenticated",),
    "public.reveal_my_key(text, text, bigint, text)": ("authenticated",),
    "public.request_my_key_rotation(integer, text, text, bigint, text)": ("authenticated",),
    "public.reserve_my_credits(bigint, integer, text, text, text, text, bigint, text)": ("authenticated",),
    "public.settle_my_hold(uuid, numeric, bigint, text, text, text, text, text, bigint, text)": ("authenticated",),
    "public.release_my_hold(uuid, text, text, bigint, text)": ("authenticated",),
    "public.claim_provisioning(uuid, integer, text, text)": ("service_role",),
    "public.finish_provisioning(uuid, integer, text, text, text, bigint, text, text)": ("service_role",),
    "public.finish_key_update(uuid, integer, text, bigint, boolean, numeric, text)": ("service_role",),
    "public.finish_key_deletion(uuid, integer, text, text)": ("service_role",),
    "public.hold_provisioning(uuid, integer, text, text)": ("service_role",),
    "public.redrive_provisioning(uuid, text, integer, text)": ("service_role",),
    "public.start_sweep(integer)": ("service_role",),
    "public.list_due_provisioning(integer)": ("service_role",),
    "public.classify_keys(text[], uuid[], integer[])": ("service_role",),
    "public.recheck_key(uuid, text)": ("service_role",),
    "public.request_key_rotation(uuid, integer, text)": ("service_role",),
    "public.defer_provisioning(uuid, integer, text, integer, boolean, boolean, text)": ("service_role",),
    "public.reveal_key(uuid, text)": ("service_role",),
    "public.preview_backfill(uuid, uuid, timestamp with time zone, timestamp with time zone, integer)": (
        "service_role",
    ),
    "public.backfill_users(uuid, uuid, timestamp with time zone, timestamp with time zone, integer, integer, text)": (
        "service_role",
    ),
    "public.get_backfill_progress()": ("service_role",),
    "public.report_signups(date, date)": ("service_role",),
    "public.grant_promised_credits(integer, text)": ("service_role",),
    "public.list_welcome_offers(text, integer)": ("service_role",),
    "public.add_welcome_offer(text, bigint, integer, timestamp with time zone, integer, text, text)": ("service_role",),
    "public.end_welcome_offer(text, text, text)": ("service_role",),
    "public.list_plans(text, integer)": ("service_role",),
    "public.set_plan(text, boolean, text[], text[], text, text)": ("service_role",),
    "public.list_welcome_arms(text, text, integer)": ("service_role",),
    "public.set_welcome_arm(text, text, integer, bigint, integer, text, text)": ("service_role",),
    "public.list_disposable_domains(text, integer)": ("service_role",),
    "public.set_disposable_domain(text, boolean, text, text)": ("service_role",),
    "public.list_reviews(uuid, integer)": ("service_role",),
    "public.release_welcome(uuid, text, text)": ("service_role",),
    "public.claw_back_welcome(uuid, text, text, text)": ("service_role",),
    "public.get_doorkey_health()": ("service_role",),
    "public.reserve_credits(uuid, bigint, integer, text, text, text)": ("service_role",),
    "public.settle_credits(uuid, numeric, bigint, text, text, text, text)": ("service_role",),
    "public.release_credits(uuid, text)": ("service_role",),
    "public.expire_holds(integer, text)": ("service_role",),
    "public.post_credits(uuid, text, bigint, text, text, text, timestamp with time zone, text)": ("service_role",),
    "public.reverse_transaction(bigint, text, text, text, text)": ("service_role",),
    "public.renew_periods(integer, text)": ("service_role",),
    "public.expire_lots(integer, text)": ("service_role",),
    "public.change_plan(uuid, text, text, text, text, text, text)": ("service_role",),
    "public.verify_ledger(uuid, bigint, text, integer, integer)": ("service_role",),
    "public.verify_receipts(uuid, text, integer)": ("service_role",),
    "public.prove_webhook_secret(text)": ("service_role",),
    "public.get_doorkey_connection()": ("service_role",),
    "public.store_doorkey_connection(text, text, text, text)": ("service_role",),
    "public.count_sealed_secrets()": ("service_role",),
    "public.list_sealed_secrets(text, integer)": ("service_role",),
    "public.reseal_secrets(text[], text[], text[], text)": ("service_role",),
    "doorkey.my_account()": ("authenticated",),
    f"doorkey.my_transactions(text[], {PAGE_OF_TRANSACTIONS})": ("authenticated",),
    "doorkey.account_of(uuid)": ("service_role",),
    "doorkey.usage_of(uuid, date, date, date, text, integer)": ("service_role",),
    "doorkey.my_usage(date, date, date, text, integer)": ("authenticated",),
    f"doorkey.transactions_of(uuid, text[], {PAGE_OF_TRANSACTIONS})": ("service_role",),
    "doorkey.enrol_me()": ("authenticated",),
    "doorkey.my_new_profile()": ("authenticated",),
    "doorkey.claim_my_provisioning(integer, text, text, text, bigint, text)": ("authenticated",),
    "doorkey.finish_my_provisioning(integer, text, text, text, bigint, text, text, text, bigint, text)": (
        "authenticated",
    ),
    "doorkey.finish_my_key_update(integer, text, bigint, boolean, numeric, text, text, bigint, text)": (
        "authenticated",
    ),
    "doorkey.finish_my_key_deletion(integer, text, text, text, bigint, text)": ("authenticated",),
    "doorkey.defer_my_provisioning(integer, text, integer, boolean, boolean, text, text, bigint, text)": (
        "authenticated",
    ),
    "doorkey.hold_my_provisioning(integer, text, text, text, bigint, text)": ("authenticated",),
    "doorkey.recheck_my_key(text, text, bigint, text)": ("authenticated",),
    "doorkey.reveal_my_key(text, text, bigint, text)": ("authenticated",),
    "doorkey.request_my_key_rotation(integer, text, text, bigint, text)": ("authenticated",),
    "doorkey.reserve_my_credits(bigint, integer, text, text, text, text, bigint, text)": ("authenticated",),
    "doorkey.settle_my_hold(uuid, numeric, bigint, text, text, text, text, text, bigint, text)": ("authenticated",),
    "doorkey.release_my_hold(uuid, text, text, bigint, text)": ("authenticated",),
    "doorkey.claim_provisioning(uuid, integer, text, text)": ("service_role",),
    "doorkey.finish_provisioning(uuid, integer, text, text, text, bigint, text, text)": ("service_role",),
    "doorkey.finish_key_update(uuid, integer, text, bigint, boolean, numeric, text)": ("service_role",),
    "doorkey.finish_key_deletion(uuid, integer, text, text)": ("service_role",),
    "doorkey.hold_provisioning(uuid, integer, text, text)": ("service_role",),
    "doorkey.redrive_provisioning(uuid, text, integer, text)": ("service_role",),
    "doorkey.start_sweep(integer)": ("service_role",),
    "doorkey.list_due_provisioning(integer)": ("service_role",),
    "doorkey.classify_keys(text[], uuid[], integer[])": ("service_role",),
    "doorkey.recheck_key(uuid, text)": ("service_role",),
    "doorkey.request_key_rotation(uuid, integer, text)": ("service_role",),
    "doorkey.defer_provisioning(uuid, integer, text, integer, boolean, boolean, text)": ("service_role",),
    "doorkey.reveal_key(uuid, text)": ("service_role",),
    "doorkey.health()": ("service_role",),
    "doorkey.reserve_credits(uuid, bigint, integer, text, text, text)": ("service_role",),
    "doorkey.settle_hold(uuid, uuid, numeric, bigint, text, text, text, text)": ("service_role",),
    "doorkey.release_hold(uuid, uuid, text)": ("service_role",),
    "doorkey.expire_holds(integer, text)": ("service_role",),
    "doorkey.post_credits(uuid, text, bigint, text, text, text, timestamp with time zone, text)": ("service_role",),
    "doorkey.reverse_transaction(bigint, text, text, text, text)": ("service_role",),
    "doorkey.renew_periods(integer, text)": ("service_role",),
    "doorkey.expire_lots(integer, text)": ("service_role",),
    "doorkey.change_plan(uuid, text, text, text, text, text, text)": ("service_role",),
    "doorkey.verify_ledger(uuid, bigint, text, integer, integer)": ("service_role",),
    "doorkey.verify_receipts(uuid, text, integer)": ("service_role",),
    "doorkey.prove_webhook_secret(text)": ("service_role",),
    "doorkey.preview_backfill(uuid, uuid, timestamp with time zone, timestamp with time zone, integer)": (
        "service_role",
    ),
    "doorkey.backfill_users(uuid, uuid, timestamp with time zone, timestamp with time zone, integer, integer, text)": (
        "service_role",
    ),
    "doorkey.backfill_progress()": ("service_role",),
    "doorkey.signup_report(date, date)": ("service_role",),
    "doorkey.grant_promised_credits(integer, text)": ("service_role",),
    "doorkey.list_welcome_offers(text, integer)": ("service_role",),
    "doorkey.add_welcome_offer(text, bigint, integer, timestamp with time zone, integer, text, text)": (
        "service_role",
    ),
    "doorkey.end_welcome_offer(text, text, text)": ("service_role",),
    "doorkey.list_plans(text, integer)": ("service_role",),
    "doorkey.set_plan(text, boolean, text[], text[], text, text)": ("service_role",),
    "doorkey.list_welcome_arms(text, text, integer)": ("service_role",),
    "doorkey.set_welcome_arm(text, text, integer, bigint, integer, text, text)": ("service_role",),
    "doorkey.list_disposable_domains(text, integer)": ("service_role",),
    "doorkey.set_disposable_domain(text, boolean, text, text)": ("service_role",),
    "doorkey.list_reviews(uuid, integer)": ("service_role",),
    "doorkey.release_welcome(uuid, text, text)": ("service_role",),
    "doorkey.claw_back_welcome(uuid, text, text, text)": ("service_role",),
    "doorkey.connection()": ("service_role",),
    "doorkey.store_connection(text, text, text, text)": ("service_role",),
    "doorkey.count_sealed_secrets()": ("service_role",),
    "doorkey.list_sealed_secrets(text, integer)": ("service_role",),
    "doorkey.reseal_secrets(text[], text[], text[], text)": ("service_role",),
    "public.list_last_words(integer)": ("service_role",),
    "doorkey.list_last_words(integer)": ("service_role",),
    "public.record_last_word(text, date, numeric, text)": ("service_role",),
    "doorkey.record_last_word(text, date, numeric, text)": ("service_role",),
    "public.begin_usage_sync(integer)": ("service_role",),
    "doorkey.begin_usage_sync(integer)": ("service_role",),
    "public.report_drift(date, text, integer)": ("service_role",),
    "doorkey.drift_report(date, text, integer)": ("service_role",),
    "public.record_usage(bigint, integer, integer, text, boolean, text[], numeric[], numeric[], numeric[], numeric[],"
    " text[], timestamp with time zone, text)": ("service_role",),
    "doorkey.record_usage(bigint, integer, integer, text, boolean, text[], numeric[], numeric[], numeric[], numeric[],"
    " text[], timestamp with time zone, text)": ("service_role",),
    **dict.fromkeys(INSIDE, ()),
}

# Types are everybody's by default; without a way to a value of theirs that is no way in.
TYPES: dict[str, tuple[str, ...]] = {
    "doorkey.system_account": ("public",),
    "doorkey.transaction_type": ("public",),
    "doorkey.provisioning_state": ("public",),
    "doorkey.provisioning_claim": ("public",),
    "doorkey.key_action": ("public",),
    "doorkey.hold_state": ("public",),
}

OBJECTS: dict[str, set[str]] = {
    "schema": set(SCHEMAS),
    "table": set(TABLES),
    "sequence": set(SEQUENCES),
    "function": set(FUNCTIONS),
    "type": set(TYPES),
}


# The one exception: one's own missing profile, as Auth knows its user. Who may insert which columns.
INSERTS: dict[str, dict[str, tuple[str, ...]]] = {
    "public.profiles": {"authenticated": ("id", "email", "full_name")},
}


def declared_grants() -> set[Grant]:
    """All of the above, one by one."""
    whole_objects = {
        "schema": (SCHEMAS, "USAGE"),
        "table": (TABLES, "SELECT"),
        "sequence": (SEQUENCES, "USAGE"),
        "function": (FUNCTIONS, "EXECUTE"),
        "type": (TYPES, "USAGE"),
    }
    return {
        Grant(kind, name, grantee, privilege)
        for kind, (objects, privilege) in whole_objects.items()
        for name, grantees in objects.items()
        for grantee in grantees
    } | {
        Grant("column", f"{table}.{column}", grantee, privilege)
        for privilege, tables in (("SELECT", COLUMNS), ("INSERT", INSERTS))
        for table, by_role in tables.items()
        for grantee, columns in by_role.items()
        for column in columns
    }
