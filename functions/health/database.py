"""What the database's own report says: each line is judged from it alone, whoever fetched it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from functions.clients.supabase import ServiceKeyRejected
from functions.health.checks import Facts, Finding, Judge, broken, ok, sentence_of, skipped, warning
from functions.health.doors import declared_doors, missing_doors, open_inside, shut_doors, wide_open_doors
from functions.health.store import SecretProof
from functions.kit.counting import counted
from functions.kit.errors import RlsDenied

# A sweep comes every minute; whoever is due longer was missed by the hint and by the sweep. As the alarms have it.
LATE_SECONDS = 300
# Access tokens are forgiven half a minute (supabase.md 3), signed hints five minutes (web/signatures.py).
SKEWED_SECONDS = 30
HINTS_REFUSED_SECONDS = 300
MANY_WAITING = 1000
# The Data API doesn't know the function; Postgres doesn't.
NOT_THERE_CODES = ("PGRST202", "42883")
MAX_NAMES = 5

ERRORS_PAGE = "docs/errors.md"
PUSH = "npx supabase db push --db-url ADDRESS   (README, Put it to work, 3)"
# Migrations can be repeated, and `db push` would think that there is nothing to do.
REPEAT = 'for f in supabase/migrations/*; do psql "$DATABASE_URL" -1qf "$f"; done   (they can be repeated)'
TRIGGERS = {
    "zz_doorkey_user_created": "signups go unnoticed",
    "zz_doorkey_user_updated": "confirmed addresses, bans and their ends go unnoticed",
    "zz_doorkey_user_deleted": "keys of users who are deleted stay",
}
HELD_MENDS = {
    "management_key_rejected": "docs/operations.md#the-management-key-of-openrouter",
    "management_key_forbidden": "docs/operations.md#the-management-key-of-openrouter",
    "openrouter_account_empty": "Buy credits   (https://openrouter.ai/settings/credits)",
}


@dataclass(frozen=True)
class Report:
    """The database's report, and how it came.

    Attributes:
        values: as `doorkey.health` returns them.
        clock_difference_seconds: how much the database's clock is ahead of ours.
        clock_error_seconds: and how far that may be wrong.
    """

    values: dict[str, Any]
    clock_difference_seconds: float
    clock_error_seconds: float


def judge_database(facts: Facts) -> Finding:
    """Whether the functions are let in."""
    error = facts.failure("report")
    if error is None:
        return ok("The database answers to the secret key.")
    if isinstance(error, ServiceKeyRejected):
        return skipped("The secret key is rejected; see secret_key.")
    if isinstance(error, RlsDenied):
        return broken("The secret key is good, but a grant on doorkey's functions is missing.", REPEAT)
    if any(code in getattr(error, "private", "") for code in NOT_THERE_CODES):
        return broken("The Data API knows no doorkey in this database, or an older one.", PUSH)
    return broken(sentence_of(error), f"{ERRORS_PAGE}   (and https://status.supabase.com)")


def values_of(facts: Facts) -> dict[str, Any]:
    """What the database reports.

    Raises:
        NotSeen: it doesn't.
    """
    values: dict[str, Any] = facts.answer("values")
    return values


def unanswered(facts: Facts, name: str) -> Exception | None:
    """Why the database did not answer this, though it reported; what it can't at all is another line's business."""
    return None if isinstance(facts.seen["report"], Exception) else facts.failure(name)


def judge_clock(facts: Facts) -> Finding:
    """Whether the database's clock is ours."""
    report: Report = facts.answer("report")
    apart = max(0.0, abs(report.clock_difference_seconds) - report.clock_error_seconds)
    way = "ahead of" if report.clock_difference_seconds > 0 else "behind"
    finding = f"The database's clock is {apart:.0f} seconds {way} the one here."
    mend = "Set the clock here: timedatectl set-ntp true"
    if apart > HINTS_REFUSED_SECONDS:
        return broken(f"{finding} Signed hints are refused beyond {HINTS_REFUSED_SECONDS}.", mend)
    if apart > SKEWED_SECONDS:
        return warning(finding, mend)
    return ok("The database's clock and the one here agree.")


def judge_grants(facts: Facts) -> Finding:
    """Whether each door is open to those it was made for and to nobody else, and what is inside to nobody at all."""
    values = values_of(facts)
    doors = values["doors"]
    # An older database doesn't say what is open inside.
    inside = open_inside(doors, values["inside"]) if "inside" in values else []
    if open_to_others := [*wide_open_doors(doors), *inside]:
        return broken(f"Too many may call {_listed(open_to_others)}: a grant was added.", REPEAT)
    if missing := missing_doors(doors):
        return broken(f"These functions are missing: {_listed(missing)}.", PUSH)
    if shut := shut_doors(doors):
        return broken(f"Nobody may call {_listed(shut)}: a grant is missing.", REPEAT)
    return ok(f"Each of the {len(declared_doors())} doors is open to its own callers and to nobody else.")


def judge_triggers(facts: Facts) -> Finding:
    """Whether the triggers on auth.users fire."""
    there = set(values_of(facts)["triggers"])
    missing = [name for name in TRIGGERS if name not in there]
    if not missing:
        return ok(f"The {len(TRIGGERS)} triggers on auth.users are in place.")
    effects = "; ".join(f"without {name} {TRIGGERS[name]}" for name in missing)
    return broken(f"A trigger on auth.users is missing or switched off: {effects}.", REPEAT)


def judge_pg_net(facts: Facts) -> Finding:
    """Whether hints get out of the database."""
    found = values_of(facts)["pg_net"]
    if found is None:
        return warning(
            "pg_net is not installed: nobody hears of a signup until the next sweep.",
            "create extension pg_net with schema extensions;   (as postgres)",
        )
    if found["is_worker_up"] is False:
        return broken(
            "pg_net's worker is not running: no hint is sent, nor are webhooks of your own.",
            "select net.worker_restart();   (as postgres; on your own machine, start doorkey dev anew)",
        )
    if (found["waiting"] or 0) >= MANY_WAITING:
        return warning(
            f"At least {MANY_WAITING:,} requests wait in pg_net: hints are late, and the sweep does the work.",
            "select url, count(*) from net.http_request_queue group by 1;   (who sends so many?)",
        )
    waiting = "" if found["waiting"] is None else f"; {counted(found['waiting'], 'request waits', 'requests wait')}"
    if found["is_worker_up"] is None:
        return ok(f"pg_net is installed; whether its worker runs can't be seen{waiting}.")
    return ok(f"pg_net is installed and its worker runs{waiting}.")


def judge_webhook_secret(facts: Facts) -> Finding:
    """Whether the functions' environment has the secret that the database signs with."""
    keys = facts.settings.webhook_secrets
    if "DOORKEY_WEBHOOK_SECRETS" in facts.unusable:
        return skipped("Not compared: DOORKEY_WEBHOOK_SECRETS can't be used.")
    if (error := unanswered(facts, "webhook_proof")) is not None:
        return broken(f"The database does not show which secret it signs with. {sentence_of(error)}", ERRORS_PAGE)
    proof: SecretProof = facts.answer("webhook_proof")
    if proof.signature is None:
        return warning(
            "The database has no signing secret: it doesn't ring, nobody hears of a signup until the next sweep, and "
            "people's own doors are shut.",
            "doorkey connect",
        )
    place = proof.place_among(keys)
    if place is None:
        return broken(
            "The database signs with a secret that is not in DOORKEY_WEBHOOK_SECRETS: its hints are refused, and "
            "people's own doors are shut.",
            "docs/operations.md#the-signing-secret   (is this the functions' environment? then doorkey connect)",
        )
    if place > 0:
        return ok("The database signs with the second of the functions' secrets: a rotation is half done.")
    return ok("The database and the functions have the same signing secret.")


def judge_sweep(facts: Facts) -> Finding:
    """Whether the guarantee runs."""
    values = values_of(facts)
    ago, installed = values["seconds_since_sweep"], values["seconds_installed"]
    invoke = "node_modules/.bin/osls invoke --stage STAGE --function sweep   (docs/operations.md#sweep-late)"
    if ago is None:
        if installed <= LATE_SECONDS:
            return ok(f"doorkey was installed {_ago(installed)} ago; the first sweep is still to come.")
        return broken("No sweep has ever run, as before the functions are deployed.", "make deploy STAGE=STAGE")
    if ago > LATE_SECONDS:
        return broken(f"The last sweep began {_ago(ago)} ago; there should be one each minute.", invoke)
    return ok(f"The last sweep began {_ago(ago)} ago.")


def judge_queue(facts: Facts) -> Finding:
    """Whether those who are due are served."""
    values = values_of(facts)
    late_seconds = values["oldest_due_seconds"]
    if late_seconds <= LATE_SECONDS:
        return ok("Nobody who is due waits long.")
    if values["held_reason"] is not None:
        return skipped(f"Somebody has waited {_ago(late_seconds)}, but the queue is held; see held_queue.")
    return warning(
        f"Somebody who is due has waited {_ago(late_seconds)}.",
        "docs/operations.md#queue-late",
    )


def judge_dead_rows(facts: Facts) -> Finding:
    """Whether somebody was given up."""
    dead = values_of(facts)["dead"]
    if not dead:
        return ok("Nobody was given up.")
    users = sum(row["users"] for row in dead)
    reasons = ", ".join(f"{row['users']} for {row['error']}" for row in dead[:MAX_NAMES])
    word = dead[0]["error"] if len(dead) == 1 and dead[0]["error"] != "unknown" else None
    again = f"doorkey redrive --error {word}" if word else "doorkey redrive --all"
    return warning(
        f"{counted(users, 'user was', 'users were')} given up: {reasons}.",
        f"{again}   (once the cause is mended; docs/errors.md)",
    )


def judge_held_queue(facts: Facts) -> Finding:
    """Whether OpenRouter refuses everybody."""
    reason = values_of(facts)["held_reason"]
    return ok("The queue is not held.") if reason is None else finding_of_hold(reason)


def finding_of_hold(reason: str) -> Finding:
    """Why nobody is served, until when, and what mends it."""
    return broken(
        f"The queue is held, and nobody gets a key: {reason}. One probe a minute finds out when it is over.",
        HELD_MENDS.get(reason, "docs/operations.md#queue-held"),
    )


def judge_hourly_brake(facts: Facts) -> Finding:
    """Whether as many keys were made as may be."""
    values = values_of(facts)
    most = values["max_keys_per_hour"]
    if most is None:
        return ok("There is no hourly brake.")
    if values["is_braked"]:
        return warning(
            f"This hour's {counted(most, 'key is', 'keys are')} used up: later users wait.",
            "docs/operations.md#hourly-brake",
        )
    return ok(f"This hour still has room: at most {counted(most, 'key is', 'keys are')} made.")


def _ago(seconds: int) -> str:
    if seconds < 120:
        return counted(seconds, "second")
    if seconds < 7200:
        return f"{seconds // 60} minutes"
    return f"{seconds // 3600} hours"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


OF_THE_REPORT: dict[str, Judge] = {
    "grants": judge_grants,
    "triggers": judge_triggers,
    "pg_net": judge_pg_net,
    "webhook_secret": judge_webhook_secret,
    "sweep": judge_sweep,
    "queue": judge_queue,
    "dead_rows": judge_dead_rows,
    "held_queue": judge_held_queue,
    "hourly_brake": judge_hourly_brake,
}
