"""What is judged from the answers of systems outside: Supabase's gateway and Auth, Secrets Manager, and OpenRouter."""

from __future__ import annotations

import httpx

from functions.clients.access import KEY_VARIABLES
from functions.clients.openrouter import AccountCredits, AccountEmpty, ManagementKeyRejected
from functions.clients.project import KeyAnswer
from functions.clients.secrets_manager import SecretUnreadable
from functions.health.checks import ASK_SECONDS, Facts, Finding, NotSeen, broken, ok, sentence_of, skipped, warning
from functions.health.database import Report
from functions.kit.counting import counted
from functions.kit.settings import SettingsInvalid

KEYS_PAGE = "dashboard, Project Settings, API Keys"
STATUS_PAGE = "https://status.supabase.com"
URL_PAGE = "dashboard, Project Settings, Data API"
MANAGEMENT_KEYS_PAGE = "https://openrouter.ai/settings/management-keys"
CREDITS_PAGE = "https://openrouter.ai/settings/credits"
MICROS_PER_DOLLAR = 1_000_000
ROTATION_PAGE = "docs/operations.md#the-secret-key-of-supabase"
WHO_AM_I = "aws sts get-caller-identity   (which AWS credentials are these?)"
# By what Secrets Manager, or its SDK, says.
SECRET_MENDS = {
    "AccessDeniedException": "make deploy STAGE=STAGE   (each function's role may read its stage's secret; or are "
    "these another account's AWS credentials?)",
    "ResourceNotFoundException": "DOORKEY_SECRET_ID=doorkey/STAGE   (or its ARN; is AWS_REGION the stage's?)",
    "ValidationException": "DOORKEY_SECRET_ID=doorkey/STAGE   (or its ARN)",
    "UnrecognizedClientException": WHO_AM_I,
    "InvalidSignatureException": WHO_AM_I,
    "ExpiredTokenException": WHO_AM_I,
    "NoCredentialsError": WHO_AM_I,
    "NoRegionError": "AWS_REGION=REGION   (the stage's)",
    "boto3 is not installed": "pip install boto3   (Lambda brings it along)",
}


def judge_supabase(facts: Facts) -> Finding:
    """Whether a project is there."""
    error = facts.failure("signing_keys")
    if not _is_away(facts):
        return ok("A project answers at SUPABASE_URL.")
    if isinstance(error, TimeoutError):
        found = f"SUPABASE_URL gives no answer within {ASK_SECONDS:.0f} seconds."
    elif error is not None and isinstance(error.__cause__, httpx.TransportError):
        found = "Nobody answers at SUPABASE_URL."
    else:
        found = "What answers at SUPABASE_URL is no Supabase project, or it is out of order."
    return broken(found, f"SUPABASE_URL=https://<project>.supabase.co   ({URL_PAGE}; is the project paused?)")


def _is_away(facts: Facts) -> bool:
    """Whether nothing of all that was asked there was answered."""
    asked = [facts.seen[name] for name in ("signing_keys", "publishable_key", "secret_key")]
    return all(isinstance(answer, Exception) for answer in asked)


def require_supabase(facts: Facts) -> None:
    """For what can only be judged when somebody answers.

    Raises:
        NotSeen: nobody does, or nobody was asked.
    """
    facts.failure("signing_keys")
    if _is_away(facts):
        raise NotSeen("Not seen: the project doesn't answer; see supabase.")


def judge_access_tokens(facts: Facts) -> Finding:
    """Whether access tokens can be verified."""
    require_supabase(facts)
    error = facts.failure("signing_keys")
    if error is not None:
        return broken(
            f"Auth's signing keys can't be read, so nobody's access token can be verified. {sentence_of(error)}",
            f"{STATUS_PAGE}   (or is SUPABASE_URL not the project's address alone?)",
        )
    if facts.answer("signing_keys").get("keys"):
        return ok("Auth publishes its signing keys.")
    if facts.settings.supabase_jwt_secret is not None:
        return ok("Access tokens are verified with SUPABASE_JWT_SECRET.")
    return broken(
        "Auth publishes no signing keys, so nobody's access token can be verified.",
        "Switch to asymmetric signing keys, or set SUPABASE_JWT_SECRET   (dashboard, Project Settings, JWT Keys)",
    )


def judge_publishable_key(facts: Facts) -> Finding:
    """Whether people can get in with their own token."""
    require_supabase(facts)
    if (error := facts.failure("publishable_key")) is not None:
        return _unsaid("SUPABASE_PUBLISHABLE_KEY", error)
    if (problem := _rejected(facts, "publishable_key", "SUPABASE_PUBLISHABLE_KEY")) is not None:
        if facts.seen.get("another_publishable_key") is True:
            return warning(
                f"{problem} People get in by the one in Secrets Manager; each new sandbox finds it anew.",
                "make deploy STAGE=STAGE   (docs/operations.md#the-secret-key-of-supabase)",
            )
        return broken(
            f"{problem} Nobody who is signed in is served.",
            f"Set SUPABASE_PUBLISHABLE_KEY to the publishable key, and deploy   ({KEYS_PAGE})",
        )
    return ok("Supabase accepts the publishable key: people get in with their own token.")


def judge_secret_key(facts: Facts) -> Finding:
    """Whether the functions can get in for everybody; names what still works where they can't."""
    require_supabase(facts)
    if (error := facts.failure("secret_key")) is not None:
        return _unsaid("SUPABASE_SECRET_KEY", error)
    if (problem := _rejected(facts, "secret_key", "SUPABASE_SECRET_KEY")) is not None:
        if isinstance(facts.seen["report"], Report):
            return warning(
                f"{problem} Everything goes by the one in Secrets Manager (rung 2); each new sandbox finds it anew.",
                "make deploy STAGE=STAGE   (docs/operations.md#the-secret-key-of-supabase)",
            )
        return broken(
            f"{problem} Webhooks and sweeps wait; {_what_goes_on(facts)}.",
            f"Set SUPABASE_SECRET_KEY to a secret key, and deploy   ({KEYS_PAGE}; "
            "docs/operations.md#the-secret-key-of-supabase)",
        )
    if _is_legacy(facts, "publishable") and _is_legacy(facts, "secret"):
        return warning(
            "Both keys are legacy ones, and Supabase switches those off as a pair: then nobody gets in any more.",
            f"Set both to sb_secret_ and sb_publishable_ keys, and deploy   ({KEYS_PAGE})",
        )
    return ok("Supabase accepts the secret key: everything goes by it (rung 1).")


def judge_stage_secret(facts: Facts) -> Finding:
    """Whether a key that is rotated would be found again (rung 2)."""
    if facts.settings.doorkey_secret_id is None:
        return ok("DOORKEY_SECRET_ID names no secret: with a key rejected there is no rung 2.")
    without = "a key that is rotated is not found again (no rung 2)"
    error = facts.failure("stage_secret")
    if isinstance(error, SettingsInvalid):
        return warning(
            f"The keys in DOORKEY_SECRET_ID can't be used: {without}. {'; '.join(error.problems)}", ROTATION_PAGE
        )
    if error is not None:
        reason = f"({error})" if isinstance(error, SecretUnreadable) else sentence_of(error)
        return warning(
            f"DOORKEY_SECRET_ID is set and can't be read {reason}: {without}.",
            SECRET_MENDS.get(str(error), ROTATION_PAGE),
        )
    held = facts.answer("stage_secret") or frozenset()
    if missing := [name for name in KEY_VARIABLES if name not in held]:
        return warning(f"DOORKEY_SECRET_ID holds no {' and no '.join(missing)}: {without}.", ROTATION_PAGE)
    return ok("The stage's secret can be read, and holds both keys.")


def _what_goes_on(facts: Facts) -> str:
    """Who is served without the secret key, and by which rung."""
    is_found = facts.seen.get("another_publishable_key") is True
    if facts.seen["publishable_key"] is not KeyAnswer.ACCEPTED and not is_found:
        return "nothing goes on (rung 4)"
    if facts.settings.webhook_secrets:
        return "only what people ask with their own token goes on (rung 3)"
    return (
        "people see their own account and no more, because without DOORKEY_WEBHOOK_SECRETS "
        "their own doors are shut (rung 4)"
    )


def _unsaid(variable: str, error: Exception) -> Finding:
    return broken(f"Whether Supabase accepts {variable} is not known. {sentence_of(error)}", STATUS_PAGE)


def _rejected(facts: Facts, question: str, variable: str) -> str | None:
    answer = facts.answer(question)
    if answer is KeyAnswer.LEGACY_OFF:
        return f"{variable} is a legacy key, and those are switched off in this project."
    if answer is KeyAnswer.REJECTED:
        return f"Supabase rejects {variable}: deleted, mistyped, or another project's."
    return None


def _is_legacy(facts: Facts, which: str) -> bool:
    key = facts.settings.supabase_secret_key if which == "secret" else facts.settings.supabase_publishable_key
    return key.get_secret_value().startswith("eyJ")


def judge_caller_address(facts: Facts) -> Finding:
    """Whether Auth's rate limits count callers, as far as it can be seen from outside."""
    if "DOORKEY_FORWARDS_CALLER_ADDRESS" in facts.unusable:
        return skipped("Not judged: DOORKEY_FORWARDS_CALLER_ADDRESS can't be used.")
    if not facts.settings.doorkey_forwards_caller_address:
        return ok(
            "Callers' addresses are not forwarded: signups through doorkey share one of Auth's rate limits. "
            "DOORKEY_FORWARDS_CALLER_ADDRESS would change that."
        )
    if _is_legacy(facts, "secret"):
        return broken(
            "Callers' addresses are forwarded with a legacy key, from which Auth doesn't take them.",
            f"Set SUPABASE_SECRET_KEY to an sb_secret_ key, and deploy   ({KEYS_PAGE})",
        )
    require_supabase(facts)
    if (error := facts.failure("captcha")) is not None:
        return warning(f"Whether the project asks for a CAPTCHA is not known. {sentence_of(error)}", STATUS_PAGE)
    if facts.answer("captcha"):
        return broken(
            "The project asks for a CAPTCHA, and signups through doorkey go round it.",
            "Set DOORKEY_FORWARDS_CALLER_ADDRESS to false, and deploy",
        )
    return ok(
        "Callers' addresses are forwarded. Whether the project takes them can't be seen from here: dashboard, "
        "Authentication, Rate Limits, IP Address Forwarding."
    )


def judge_openrouter(facts: Facts) -> Finding:
    """Whether keys can be made."""
    error = facts.failure("credits")
    if error is None:
        return ok("OpenRouter accepts the management key.")
    if isinstance(error, ManagementKeyRejected):
        return broken(
            sentence_of(error),
            f"Set OPENROUTER_MANAGEMENT_KEY to a management key, and deploy   ({MANAGEMENT_KEYS_PAGE})",
        )
    if isinstance(error, AccountEmpty):
        return broken(sentence_of(error), f"Buy credits   ({CREDITS_PAGE})")
    return broken(sentence_of(error), "https://status.openrouter.ai   (or is OPENROUTER_BASE_URL wrong?)")


def judge_openrouter_credits(facts: Facts, keys: dict[str, int]) -> Finding:
    """Whether what users may spend is there.

    Args:
        facts: with the account's credits.
        keys: the database's live keys, and what they may still spend.
    """
    account: AccountCredits = facts.answer("credits")
    left = account.bought_micros - account.used_micros
    if left <= 0:
        return broken(
            "The OpenRouter account has no credits, or the key is no management key: users' keys can't be used.",
            f"Buy credits   ({CREDITS_PAGE})",
        )
    has = f"The OpenRouter account has {_dollars(left)}"
    may_spend = f"{counted(keys['live'], 'live key')} may still spend {_dollars(keys['spendable_micros'])}"
    if keys["spendable_micros"] > left:
        return warning(
            f"{has}, and the users' {may_spend}.",
            f"Buy credits   ({CREDITS_PAGE})",
        )
    if not keys["live"]:
        return ok(f"{has}; no user has a live key yet.")
    uncapped = f", and {counted(keys['uncapped'], 'has', 'have')} no limit" if keys["uncapped"] else ""
    return ok(f"{has}; the users' {may_spend}{uncapped}.")


def _dollars(micros: int) -> str:
    return f"${micros / MICROS_PER_DOLLAR:,.2f}"
