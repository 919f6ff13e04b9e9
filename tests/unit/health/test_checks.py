"""Checks that hang, crash or can't be made; and judges whose facts no running stack shows."""

from __future__ import annotations

import asyncio
import hmac
from base64 import b64encode
from typing import Any

import httpx
import pytest

from functions.clients.access import KEY_VARIABLES
from functions.clients.openrouter import AccountCredits, AccountEmpty, ManagementKeyForbidden, OpenRouterFault
from functions.clients.outside import build_clients
from functions.clients.project import KeyAnswer, is_captcha_on, try_key
from functions.clients.secrets_manager import SecretUnreadable
from functions.clients.supabase import ServiceKeyRejected, SupabaseError
from functions.health import checks, doors, outside
from functions.health.checks import Facts, Finding, NotSeen, Question, ask_all, judge_all, ok, worst_of
from functions.health.database import Report, judge_clock
from functions.health.examination import JUDGES, ask_everybody, timed_report
from functions.health.store import SecretProof
from functions.kit.settings import SettingsInvalid
from tests.support.environment import settings

URL = "https://project.example"


async def hang() -> None:
    await asyncio.sleep(3600)


async def crash() -> None:
    raise ZeroDivisionError("a secret")


async def answer() -> str:
    return "answered"


def judge_of(name: str) -> checks.Judge:
    def judge(facts: Facts) -> Finding:
        error = facts.failure(name)
        return ok(str(facts.answer(name))) if error is None else checks.broken(checks.sentence_of(error), "mend")

    return judge


async def test_what_hangs_or_crashes_is_a_line_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ASK_SECONDS", 0.05)
    facts = Facts(settings())
    await ask_all(facts, {do.__name__: Question("them", (), do) for do in (hang, crash, answer)})
    lines = judge_all(facts, {name: judge_of(name) for name in ("hang", "crash", "answer")})
    assert [line.state for line in lines] == ["broken", "broken", "ok"]
    assert "no answer within" in lines[0].finding
    assert "ZeroDivisionError" in lines[1].finding
    assert "a secret" not in lines[1].finding


async def test_all_are_asked_at_once() -> None:
    met = asyncio.Barrier(3)

    async def meet() -> None:
        await met.wait()

    facts = Facts(settings())
    await asyncio.wait_for(ask_all(facts, {str(n): Question("them", (), meet) for n in range(3)}), 5)
    assert list(facts.seen.values()) == [None, None, None]


def test_a_judge_that_crashes_is_a_line_too() -> None:
    def judge(facts: Facts) -> Finding:
        return ok(facts.seen["values"]["not there"])

    lines = judge_all(Facts(settings(), {"values": {}}), {"crashes": judge, "well": lambda _: ok("Well.")})
    assert [line.state for line in lines] == ["broken", "ok"]
    assert "KeyError" in lines[0].finding


async def test_nobody_is_asked_with_a_setting_that_cannot_be_used() -> None:
    facts = Facts(settings(), unusable=frozenset({"SUPABASE_URL"}))
    await ask_all(facts, {"url": Question("them", ("SUPABASE_URL",), crash), "free": Question("them", (), answer)})
    assert isinstance(facts.seen["url"], NotSeen)
    assert facts.answer("free") == "answered"
    (line,) = judge_all(facts, {"url": judge_of("url")})
    assert (line.state, line.finding) == ("skipped", "Not asked: SUPABASE_URL can't be used.")


async def test_where_everything_crashes_every_line_is_there_and_nothing_is_raised() -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError

    found = settings()
    facts = Facts(found)
    clients = build_clients(found, httpx.MockTransport(refuse))
    await ask_everybody(facts, clients)
    lines = judge_all(facts, JUDGES)
    assert [line.name for line in lines] == list(JUDGES)
    assert worst_of(lines) == "broken"
    assert {line.name for line in lines if line.state == "broken"} == {"supabase", "openrouter"}


@pytest.mark.parametrize(
    ("apart", "state"),
    [(0.4, "ok"), (-29, "ok"), (31, "warning"), (-299, "warning"), (301, "broken"), (-4000, "broken")],
)
def test_clocks_apart_are_named_with_which_is_ahead(apart: float, state: str) -> None:
    facts = Facts(settings(), {"report": Report({}, apart, 0.1)})
    found = judge_clock(facts)
    assert found.state == state
    if state != "ok":
        assert ("ahead of" if apart > 0 else "behind") in found.finding
    assert ("Signed hints are refused" in found.finding) == (state == "broken")


def test_a_slow_answer_says_nothing_about_the_clock() -> None:
    report = timed_report({"now": "1970-01-01T00:16:40+00:00"}, before=950.0, after=1000.0)
    assert (report.clock_difference_seconds, report.clock_error_seconds) == (25.0, 25.0)
    assert judge_clock(Facts(settings(), {"report": report})).state == "ok"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, [], KeyAnswer.ACCEPTED),
        (404, {"code": "PGRST205", "message": "no such table"}, KeyAnswer.ACCEPTED),
        (401, {"code": "42501", "message": "permission denied for table plans"}, KeyAnswer.ACCEPTED),
        (403, {"code": "42501", "message": "permission denied for table plans"}, KeyAnswer.ACCEPTED),
        (401, {"message": "Invalid API key", "hint": "Double check your API key."}, KeyAnswer.REJECTED),
        (401, {"message": "Unregistered API key"}, KeyAnswer.REJECTED),
        (401, {"code": "PGRST301", "message": "No suitable key or wrong key type"}, KeyAnswer.REJECTED),
        (401, {"message": "Legacy API keys are disabled", "hint": "Your legacy API keys ..."}, KeyAnswer.LEGACY_OFF),
    ],
)
async def test_what_the_gateway_says_to_a_key(status: int, body: Any, expected: KeyAnswer) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, json=body))
    async with httpx.AsyncClient(transport=transport) as http:
        assert await try_key(http, URL, "sb_secret_of-the-unit-tests") is expected


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(404, text="not here"),
        httpx.Response(503, json={"code": "PGRST000"}),
        httpx.ConnectError("nobody"),
        httpx.ReadTimeout("late"),
    ],
)
async def test_who_does_not_say_has_not_rejected_a_key(answer: httpx.Response | Exception) -> None:
    def say(_: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with httpx.AsyncClient(transport=httpx.MockTransport(say)) as http:
        with pytest.raises(SupabaseError):
            await try_key(http, URL, "sb_secret_of-the-unit-tests")


async def test_a_legacy_key_is_shown_to_the_data_api_too() -> None:
    seen = []

    def hear(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        return httpx.Response(200, json=[])

    async with httpx.AsyncClient(transport=httpx.MockTransport(hear)) as http:
        for key in ("sb_secret_of-the-unit-tests", "eyJhbGciOi.J9.x"):
            await try_key(http, URL, key)
    assert seen == [None, "Bearer eyJhbGciOi.J9.x"]


@pytest.mark.parametrize(("code", "is_on"), [("captcha_failed", True), ("validation_failed", False), (None, False)])
async def test_a_captcha_is_seen_without_signing_anybody_up(code: str | None, is_on: bool) -> None:
    bodies = []

    def hear(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        return httpx.Response(422, json={"error_code": code})

    async with httpx.AsyncClient(transport=httpx.MockTransport(hear)) as http:
        assert await is_captcha_on(http, URL, "sb_publishable_of-the-unit-tests") is is_on
    assert b'"password":""' in bodies[0].replace(b" ", b"")

    forwarding = Facts(settings(DOORKEY_FORWARDS_CALLER_ADDRESS="true"), {"captcha": is_on, "signing_keys": {}})
    forwarding.seen |= {"publishable_key": KeyAnswer.ACCEPTED, "secret_key": KeyAnswer.ACCEPTED}
    assert outside.judge_caller_address(forwarding).state == ("broken" if is_on else "ok")


def test_a_proof_is_of_one_secret_and_of_this_nonce() -> None:
    keys = (b"a" * 32, b"b" * 32)
    signature = "v1," + b64encode(hmac.digest(keys[1], b"doorkey.doctor.12", "sha256")).decode()
    assert SecretProof(b"doorkey.doctor.12", signature).place_among(keys) == 1
    assert SecretProof(b"doorkey.doctor.13", signature).place_among(keys) is None
    assert SecretProof(b"doorkey.doctor.12", None).place_among(keys) is None
    assert SecretProof(b"doorkey.doctor.12", signature).place_among(()) is None


def test_doors_are_compared_with_the_stores() -> None:
    def door(name: str, *, callers: list[str], behind: list[str]) -> dict[str, Any]:
        rpc = next(rpc for rpc in doors.declared_doors() if rpc.name == name)
        return {"name": name, "arguments": list(rpc.arguments), "callers": callers, "callers_behind": behind}

    names = {rpc.name: rpc.role for rpc in doors.declared_doors()}
    right = [door(name, callers=[role], behind=[role]) for name, role in names.items()]
    assert (doors.missing_doors(right), doors.shut_doors(right), doors.wide_open_doors(right)) == ([], [], [])
    hosts = {"name": "somebody_elses", "arguments": [], "callers": ["anon"], "callers_behind": []}
    assert doors.wide_open_doors([*right, hosts]) == []
    assert doors.missing_doors(right[1:]) == [right[0]["name"]]
    assert doors.missing_doors([{**right[0], "arguments": ["other"]}, *right[1:]]) == [right[0]["name"]]
    service = ["service_role"]
    for callers, behind, is_shut, is_open in (
        ([], service, True, False),
        (service, [], True, False),
        ([*service, "anon"], service, False, True),
        (service, [*service, "authenticated"], False, True),
    ):
        changed = [door("claim_provisioning", callers=callers, behind=behind)]
        assert bool(doors.shut_doors(changed)) == is_shut
        assert bool(doors.wide_open_doors(changed)) == is_open


def test_what_is_inside_is_open_to_nobody_but_those_whose_door_it_stands_behind() -> None:
    door = {"name": "claim_provisioning", "behind": ["claim_provisioning", "fences"]}
    hosts = {"name": "somebody_elses", "behind": ["use_proof"]}

    def inside(name: str, *callers: str) -> dict[str, Any]:
        return {"name": name, "callers": list(callers)}

    right = [inside("claim_provisioning", "service_role"), inside("fences", "service_role")]
    assert doors.open_inside([door, hosts], right) == []
    for wrong in (
        inside("claim_provisioning", "authenticated", "service_role"),
        inside("use_proof", "authenticated"),
        inside("use_proof", "service_role"),
        inside("fences", "anon"),
    ):
        assert doors.open_inside([door, hosts], [*right, wrong]) == [f"doorkey.{wrong['name']}"]


@pytest.mark.parametrize(
    ("seen", "words", "mend"),
    [
        (SecretUnreadable("AccessDeniedException"), "can't be read (AccessDeniedException)", "make deploy STAGE=STAGE"),
        (SecretUnreadable("ResourceNotFoundException"), "(ResourceNotFoundException)", "DOORKEY_SECRET_ID=doorkey/"),
        (SecretUnreadable("NoCredentialsError"), "(NoCredentialsError)", "aws sts get-caller-identity"),
        (SecretUnreadable("boto3 is not installed"), "(boto3 is not installed)", "pip install boto3"),
        (SecretUnreadable("no JSON object"), "(no JSON object)", "docs/operations.md#"),
        (SecretUnreadable("SomethingNew"), "(SomethingNew)", "docs/operations.md#"),
        (TimeoutError(), "no answer within 8 seconds", "docs/operations.md#"),
        (
            SettingsInvalid(["SUPABASE_SECRET_KEY holds a publishable key"]),
            "holds a publishable key",
            "docs/operations",
        ),
        (frozenset({"SUPABASE_SECRET_KEY"}), "holds no SUPABASE_PUBLISHABLE_KEY:", "docs/operations.md#"),
        (frozenset[str](), "no SUPABASE_SECRET_KEY and no SUPABASE_PUBLISHABLE_KEY", "docs/operations.md#"),
    ],
)
def test_a_stages_secret_of_no_use_is_a_warning_with_its_error_and_what_mends_it(
    seen: object, words: str, mend: str
) -> None:
    facts = Facts(settings(DOORKEY_SECRET_ID="doorkey/test"), {"stage_secret": seen})
    found = outside.judge_stage_secret(facts)
    assert found.state == "warning"
    assert words in found.finding
    assert "no rung 2" in found.finding
    assert found.mend is not None
    assert found.mend.startswith(mend)


def test_without_a_secret_or_with_both_keys_in_it_all_is_well() -> None:
    named = settings(DOORKEY_SECRET_ID="doorkey/test")
    assert outside.judge_stage_secret(Facts(named, {"stage_secret": frozenset(KEY_VARIABLES)})).state == "ok"
    assert outside.judge_stage_secret(Facts(settings(), {"stage_secret": None})).state == "ok"


def test_peoples_own_doors_are_among_those_that_are_compared() -> None:
    own = next(rpc for rpc in doors.declared_doors() if rpc.name == "settle_my_hold")
    assert own.arguments[:2] == ("hold_id", "cost_micros")
    assert own.arguments[-3:] == ("proof_id", "proof_expires_at", "proof")
    shut = {"name": own.name, "arguments": list(own.arguments), "callers": ["authenticated"], "callers_behind": []}
    assert doors.shut_doors([shut]) == ["settle_my_hold"]
    assert own.name in doors.missing_doors([])


def test_a_dry_account_is_told_from_one_that_is_short() -> None:
    keys = {"live": 2, "spendable_micros": 3_000_000, "uncapped": 0}
    for bought, used, state in ((0, 0, "broken"), (5, 5, "broken"), (5, 3, "warning"), (5, 1, "ok")):
        account = AccountCredits(bought * 1_000_000, used * 1_000_000)
        assert outside.judge_openrouter_credits(Facts(settings(), {"credits": account}), keys).state == state


@pytest.mark.parametrize(
    ("error", "mend"),
    [
        (AccountEmpty("GET credits: 402"), "openrouter.ai/settings/credits"),
        (ManagementKeyForbidden("GET credits: 403"), "openrouter.ai/settings/management-keys"),
        (OpenRouterFault("GET credits: 502"), "status.openrouter.ai"),
    ],
)
def test_what_openrouter_says_to_everybody_comes_with_what_mends_it(error: Exception, mend: str) -> None:
    found = outside.judge_openrouter(Facts(settings(), {"credits": error}))
    assert (found.state, mend in (found.mend or "")) == ("broken", True)


def test_a_key_that_was_found_again_in_secrets_manager_is_rung_two() -> None:
    seen = {"signing_keys": {}, "publishable_key": KeyAnswer.ACCEPTED, "secret_key": KeyAnswer.REJECTED}
    found = outside.judge_secret_key(Facts(settings(), {**seen, "report": Report({}, 0.0, 0.0)}))
    assert (found.state, "rung 2" in found.finding) == ("warning", True)
    found = outside.judge_secret_key(Facts(settings(), {**seen, "report": ServiceKeyRejected("report")}))
    assert (found.state, "rung 2" in found.finding) == ("broken", False)
