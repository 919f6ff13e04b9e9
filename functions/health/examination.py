"""All that the functions can find out about themselves. The API's /health/ready and `doorkey doctor` say the same.

The doctor asks some more, where it runs: which migrations there ought to be, and whether the functions answer.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from functions.clients.outside import Clients
from functions.clients.project import KeyAnswer, is_captcha_on, try_key
from functions.clients.supabase import PublishableKeyRejected
from functions.connection.store import count_sealed_secrets
from functions.health import database, outside
from functions.health.checks import (
    Check,
    Facts,
    Finding,
    Judge,
    Question,
    ask_all,
    broken,
    judge_all,
    ok,
    sentence_of,
    skipped,
    warning,
)
from functions.health.store import get_health, prove_webhook_secret
from functions.kit.clock import Clock, system_clock
from functions.kit.counting import counted
from functions.kit.settings import Settings

DATABASE = "the database"
SUPABASE_URL, SECRET_KEY, PUBLISHABLE_KEY = "SUPABASE_URL", "SUPABASE_SECRET_KEY", "SUPABASE_PUBLISHABLE_KEY"


def questions(settings: Settings, clients: Clients, clock: Clock = system_clock) -> dict[str, Question]:
    """What is asked of Supabase and OpenRouter. Nothing is changed, and nobody is signed up."""
    supabase, url = clients.supabase, settings.supabase_url
    publishable = settings.supabase_publishable_key.get_secret_value()
    secret = settings.supabase_secret_key.get_secret_value()

    async def report() -> database.Report:
        before = clock()
        values = await get_health(supabase)
        return timed_report(values, before, clock())

    async def another_publishable_key() -> bool:
        """Whether people get in by the one in Secrets Manager, where the environment's is rejected."""
        if await try_key(clients.http, url, publishable) is KeyAnswer.ACCEPTED:
            return False

        async def is_accepted(key: str) -> bool:
            return await try_key(clients.http, url, key) is KeyAnswer.ACCEPTED

        try:
            await supabase.find_publishable_key(is_accepted)
        except PublishableKeyRejected:
            return False
        return True

    async def captcha() -> bool:
        return settings.doorkey_forwards_caller_address and await is_captcha_on(clients.http, url, publishable)

    project = (SUPABASE_URL,)
    with_secret, with_publishable = (*project, SECRET_KEY), (*project, PUBLISHABLE_KEY)
    account = ("OPENROUTER_MANAGEMENT_KEY", "OPENROUTER_BASE_URL")
    return {
        "signing_keys": Question("Auth", project, supabase.fetch_jwks),
        "publishable_key": Question("the gateway", with_publishable, lambda: try_key(clients.http, url, publishable)),
        "another_publishable_key": Question("the gateway", with_publishable, another_publishable_key),
        "secret_key": Question("the gateway", with_secret, lambda: try_key(clients.http, url, secret)),
        "stage_secret": Question("Secrets Manager", (), supabase.keys_in_secret),
        "report": Question(DATABASE, with_secret, report),
        "webhook_proof": Question(DATABASE, with_secret, lambda: prove_webhook_secret(supabase)),
        "sealed_secrets": Question(DATABASE, with_secret, lambda: count_sealed_secrets(supabase)),
        "captcha": Question("Auth", with_publishable, captcha),
        "credits": Question("OpenRouter", account, clients.openrouter.read_credits),
    }


async def ask_everybody(facts: Facts, clients: Clients) -> None:
    """Fills the facts with all that the functions can find out."""
    await ask_all(facts, questions(facts.settings, clients))
    report = facts.seen["report"]
    facts.seen["values"] = report.values if isinstance(report, database.Report) else report
    facts.asked["values"] = DATABASE


def timed_report(values: dict[str, Any], before: float, after: float) -> database.Report:
    """A report that was asked for and answered at these moments of our clock, in seconds."""
    told = datetime.fromisoformat(values["now"]).timestamp()
    return database.Report(values, told - (before + after) / 2, (after - before) / 2)


def judge_database(facts: Facts) -> Finding:
    """Whether the functions get in; nothing to add where nobody answers."""
    outside.require_supabase(facts)
    return database.judge_database(facts)


def judge_sealing_keys(facts: Facts) -> Finding:
    """Whether the sealing keys of the stored secrets are here, by their ids: nothing is opened."""
    if "DOORKEY_SEALING_KEYS" in facts.unusable:
        return skipped("Not compared: DOORKEY_SEALING_KEYS can't be used.")
    configured = {key.key_id for key in facts.settings.sealing_keys}
    if (error := database.unanswered(facts, "sealed_secrets")) is not None:
        return broken(f"How much is sealed with which key is not known. {sentence_of(error)}", database.ERRORS_PAGE)
    counts: dict[str, int] = facts.answer("sealed_secrets")
    lost = {key_id: count for key_id, count in counts.items() if key_id not in configured}
    if lost:
        stored_keys = counted(sum(lost.values()), "user's key is", "users' keys are")
        return broken(
            f"{stored_keys} sealed with {', '.join(sorted(lost))}, which is not in DOORKEY_SEALING_KEYS: nobody can be"
            " shown theirs.",
            "docs/operations.md#the-sealing-key   (put the old key back behind the others)",
        )
    stored = sum(counts.values())
    return ok(f"The sealing keys of all stored keys are here: {stored}." if stored else "No user's key is stored yet.")


def judge_webhook_secret(facts: Facts) -> Finding:
    """As the database's line; and the API, which takes no hints, needs the secret for its proofs."""
    if not facts.settings.webhook_secrets and "DOORKEY_WEBHOOK_SECRETS" not in facts.unusable:
        return warning(
            "DOORKEY_WEBHOOK_SECRETS is not given here: people's own doors are shut, and with the secret key rejected "
            "they would only see their account.",
            "Give it to the API too, and deploy   (docs/operations.md#the-signing-secret)",
        )
    return database.judge_webhook_secret(facts)


def judge_credits(facts: Facts) -> Finding:
    """Whether what users may spend is there."""
    return outside.judge_openrouter_credits(facts, database.values_of(facts)["keys"])


JUDGES: dict[str, Judge] = {
    "supabase": outside.judge_supabase,
    "publishable_key": outside.judge_publishable_key,
    "secret_key": outside.judge_secret_key,
    "stage_secret": outside.judge_stage_secret,
    "access_tokens": outside.judge_access_tokens,
    "caller_address": outside.judge_caller_address,
    "database": judge_database,
    "clock": database.judge_clock,
    **database.OF_THE_REPORT,
    "webhook_secret": judge_webhook_secret,
    "sealing_keys": judge_sealing_keys,
    "openrouter": outside.judge_openrouter,
    "openrouter_credits": judge_credits,
}


async def examine(settings: Settings, clients: Clients) -> list[Check]:
    """Every check that the functions can make, side by side."""
    facts = Facts(settings)
    await ask_everybody(facts, clients)
    return judge_all(facts, JUDGES)
