"""What the edge makes of Lite's answers: pure functions, no stack."""

from __future__ import annotations

from datetime import timedelta

import pytest

from infra.local.edge.admin import ban_duration
from infra.local.edge.answers import corrected_data_error, repair_timestamps
from infra.local.edge.callers import split_query
from infra.local.edge.config import BadConfiguration, read_config
from infra.local.edge.keys import legacy_key
from infra.local.edge.refusals import AuthRefused


@pytest.mark.parametrize(
    ("message", "status", "code"),
    [
        ("no credits for you", 400, "P0001"),
        ("canceling statement due to statement timeout", 500, "57014"),
        ("canceling statement due to lock timeout", 500, "55P03"),
        ("terminating connection due to administrator command", 503, "57P01"),
        ("deadlock detected", 500, "40P01"),
        ("could not serialize access due to concurrent update", 500, "40001"),
        ('new row for relation "a" violates check constraint "b"', 400, "23514"),
        ("query returned no rows", 500, "P0002"),
    ],
)
def test_a_time_out_or_a_deadlock_never_passes_for_a_raise(message: str, status: int, code: str) -> None:
    lite = {"code": "SUP", "details": None, "hint": None, "message": f"PostgresError: {message}"}
    assert corrected_data_error(500, lite, "anon") == (
        status,
        {"code": code, "details": None, "hint": None, "message": message},
    )


def test_a_fault_of_lite_itself_stays_a_500() -> None:
    lite = {"code": "SUP", "message": "TypeError: x is not a function"}
    assert corrected_data_error(500, lite, "anon") == (500, lite)


def test_statuses_that_sql_chose_are_left_alone() -> None:
    lite = {"code": "PT402", "message": "insufficient_credits"}
    assert corrected_data_error(402, lite, "anon") == (402, lite)


def test_only_auths_own_times_are_rewritten() -> None:
    short, whole = "2026-11-20 23:17:08.21+00", "2026-11-20T23:17:08.21Z"
    answer = {
        "created_at": short,
        "user_metadata": {"born_at": short},
        "identities": [{"updated_at": short, "identity_data": {"seen_at": short}}],
        "user": {"last_sign_in_at": short, "expires_at": 7},
    }
    repair_timestamps(answer)
    assert answer == {
        "created_at": whole,
        "user_metadata": {"born_at": short},
        "identities": [{"updated_at": whole, "identity_data": {"seen_at": short}}],
        "user": {"last_sign_in_at": whole, "expires_at": 7},
    }


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("none", timedelta(0)),
        ("24h", timedelta(hours=24)),
        ("1h30m", timedelta(minutes=90)),
        ("1.5s", timedelta(seconds=1.5)),
        ("876000h", timedelta(hours=876_000)),
    ],
)
def test_ban_durations_are_gos(text: str, duration: timedelta) -> None:
    assert ban_duration(text) == duration


@pytest.mark.parametrize("text", ["1 day", "24", "h", "24hx", "-"])
def test_other_ban_durations_are_refused(text: str) -> None:
    with pytest.raises(AuthRefused, match="invalid format for ban duration"):
        ban_duration(text)


def test_the_rest_of_the_query_keeps_its_bytes() -> None:
    assert split_query("a=in.(%22x%22,y)&apikey=k%5F1&b=%2B+") == ("a=in.(%22x%22,y)&b=%2B+", "k_1")


def test_the_legacy_pair_follows_from_its_secret() -> None:
    secret = "s" * 32
    assert legacy_key(secret, "anon") == legacy_key(secret, "anon")
    assert legacy_key(secret, "anon") != legacy_key(secret, "service_role")


def test_every_problem_of_the_configuration_is_named_and_no_value() -> None:
    environment = {"EDGE_SECRET_KEYS": "not-a-key", "EDGE_LEGACY_JWT_SECRET": "too-short"}
    with pytest.raises(BadConfiguration) as raised:
        read_config(environment, rest_url="http://r", auth_url="http://a", public_url="http://p")
    message = str(raised.value)
    for name in ("EDGE_PUBLISHABLE_KEY", "EDGE_SECRET_KEYS", "EDGE_LEGACY_JWT_SECRET"):
        assert name in message
    assert "EDGE_SIGNING_KEY is missing" in message
    assert "not-a-key" not in message
    assert "too-short" not in message
