"""Each fault over real sockets, on both parts: what the client meets, and whether the work was done."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from infra.local.faults import SimulatorFaultPlan
from tests.contract.faults.parts import FaultyProcess

CLOSED = (httpx.RemoteProtocolError, httpx.ReadError)
STALL_SECONDS = 0.3
MAX_POLLS = 100
POLL_SECONDS = 0.05


async def test_without_a_plan_nothing_is_touched(part: FaultyProcess) -> None:
    before = await part.done()
    assert (await part.post()).is_success
    assert await part.done() == before + 1
    report = await part.control.report()
    assert (report.plan, report.counts) == (part.control.part.plan_type(), {})


async def test_a_lost_answer_is_a_closed_connection_after_the_work(part: FaultyProcess) -> None:
    await part.control.order(lose_answers=1)
    before = await part.done()
    with pytest.raises(CLOSED):
        await part.post()
    assert await part.done() == before + 1
    assert (await part.control.report()).counts == {"lose_answers": 1}


async def test_a_lost_answer_has_not_one_byte(part: FaultyProcess) -> None:
    await part.control.order(lose_answers=1)
    port = httpx.URL(part.origin).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {httpx.URL(part.base_url).path.rstrip('/')}{part.other} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    try:
        received = await asyncio.wait_for(reader.read(), timeout=5)
    except ConnectionResetError:
        received = b""
    assert received == b""
    writer.close()


async def test_a_lost_request_did_nothing(part: FaultyProcess) -> None:
    await part.control.order(lose_requests=1)
    before = await part.done()
    with pytest.raises(CLOSED):
        await part.post()
    assert await part.done() == before
    assert (await part.control.report()).counts == {"lose_requests": 1}


async def test_a_part_that_is_away_closes_every_connection_but_its_health_and_control(part: FaultyProcess) -> None:
    await part.control.order(is_away=True)
    for path in (part.work, part.other):
        with pytest.raises(CLOSED):
            await part.post(path)
    health = "/simulator/health" if part.name == "openrouter" else "/edge/health"
    assert (await part.client.get(part.origin + health)).status_code == 200
    assert (await part.control.clear()).counts == {"is_away": 2}
    assert (await part.post()).is_success


@pytest.mark.parametrize("is_after_work", [False, True])
async def test_errors_come_instead_of_the_work_or_after_it(part: FaultyProcess, is_after_work: bool) -> None:
    await part.control.order(errors=1, error_status=503, retry_after_seconds=9, errors_after_work=is_after_work)
    before = await part.done()
    answer = await part.post()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "9")
    if part.name == "openrouter":
        assert answer.json()["error"] == {"code": 503, "message": "Service Unavailable"}
    else:
        assert answer.json() == {"message": "The upstream server is currently unavailable"}
    assert await part.done() == before + is_after_work


async def test_an_error_without_a_status_is_a_502(part: FaultyProcess) -> None:
    await part.control.order(errors=1)
    answer = await part.post()
    assert answer.status_code == 502
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize("is_after_work", [False, True])
async def test_a_page_of_html_comes_with_502(part: FaultyProcess, is_after_work: bool) -> None:
    await part.control.order(html_errors=1, errors_after_work=is_after_work)
    before = await part.done()
    answer = await part.post()
    assert (answer.status_code, answer.headers["content-type"]) == (502, "text/html; charset=utf-8")
    assert answer.text.startswith("<!DOCTYPE html>")
    assert await part.done() == before + is_after_work


async def test_an_empty_answer_is_200_after_the_work(part: FaultyProcess) -> None:
    await part.control.order(empty_answers=1)
    before = await part.done()
    answer = await part.post()
    assert (answer.status_code, answer.json()) == (200, {})
    assert await part.done() == before + 1


@pytest.mark.parametrize("seconds", [None, 17])
async def test_429_comes_with_retry_after_or_without(part: FaultyProcess, seconds: int | None) -> None:
    await part.control.order(rate_limited=1, retry_after_seconds=seconds)
    before = await part.done()
    answer = await part.post()
    assert (answer.status_code, answer.headers.get("retry-after")) == (429, None if seconds is None else "17")
    if part.name == "openrouter":
        assert answer.json()["error"] == {"code": 429, "message": "Rate limit exceeded"}
    assert await part.done() == before


async def test_a_stalled_answer_comes_late_and_the_work_was_done_before(part: FaultyProcess) -> None:
    await part.control.order(stall=1, stall_seconds=3)
    before = await part.done()
    with pytest.raises(httpx.ReadTimeout):
        await part.client.post(part.base_url + part.work, json={"name": "n"}, timeout=STALL_SECONDS)
    assert await part.done() == before + 1
    await part.control.order(stall=1, stall_seconds=STALL_SECONDS)
    started = time.monotonic()
    assert (await part.post()).is_success
    assert time.monotonic() - started >= STALL_SECONDS


async def test_latency_comes_before_the_work_which_is_done_though_nobody_waits_any_more(part: FaultyProcess) -> None:
    await part.control.order(latency_ms=1_000)
    before = await part.done()
    with pytest.raises(httpx.ReadTimeout):
        await part.client.post(part.base_url + part.work, json={"name": "n"}, timeout=STALL_SECONDS)
    assert await part.done() == before
    for _ in range(MAX_POLLS):
        if await part.done() > before:
            break
        await asyncio.sleep(POLL_SECONDS)
    assert await part.done() == before + 1


async def test_latency_may_vary_and_is_no_fault_that_at_most_counts(part: FaultyProcess) -> None:
    await part.control.order(latency_ms=100, latency_jitter_ms=50, errors=1, at_most=1)
    started = time.monotonic()
    assert (await part.post()).status_code == 502
    assert time.monotonic() - started >= 0.1
    assert (await part.post()).is_success
    assert (await part.control.report()).counts == {"errors": 1, "latency_ms": 2}


async def test_beyond_so_many_requests_a_second_the_answer_is_429(part: FaultyProcess) -> None:
    await part.control.order(requests_per_second=2.5, retry_after_seconds=1)
    before = await part.done()
    found = await asyncio.gather(*(part.post() for _ in range(20)))
    refused = [answer for answer in found if answer.status_code == 429]
    assert 10 <= len(refused) <= 18
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    assert await part.done() == before + 20 - len(refused)
    assert (await part.control.report()).counts == {"requests_per_second": len(refused)}


@pytest.mark.parametrize("status", [401, 402, 403, 404, 418, 499])
async def test_everybody_is_refused_with_the_parts_own_body(part: FaultyProcess, status: int) -> None:
    await part.control.order(refuse_status=status)
    before = await part.done()
    answer = await part.post()
    assert answer.status_code == status
    if part.name == "openrouter":
        error = answer.json()["error"]
        assert error["code"] == status
        assert error["message"]
        assert ("limit_source" in error.get("metadata", {})) == (status == 402)
    else:
        assert list(answer.json()) == ["message"]
    assert await part.done() == before


async def test_the_same_seed_and_requests_meet_the_same_faults(part: FaultyProcess) -> None:
    plan = {"lose_answers": 0.2, "lose_requests": 0.2, "errors": 0.2, "rate_limited": 0.2, "empty_answers": 0.2}

    async def meet(seed: int, **more: float) -> list[str]:
        await part.control.order(seed=seed, **plan, **more)
        met = []
        for _ in range(40):
            try:
                answer = await part.post()
                met.append(f"{answer.status_code} {answer.json() == {}}")
            except CLOSED:
                met.append("closed")
        return met

    first = await meet(7)
    assert len(set(first)) == 5
    assert await meet(7) == first
    assert await meet(8) != first
    # Another share changes nothing about those that were there.
    slower = await meet(7, stall=0.5, stall_seconds=0)
    assert slower == first


async def test_a_plan_is_only_about_what_it_names(part: FaultyProcess) -> None:
    await part.control.order(errors=1, only=[f"POST {part.work}"])
    assert (await part.post()).status_code == 502
    assert (await part.post(f"{part.work}/")).status_code == 502
    assert (await part.post(f"{part.work}x")).status_code != 502
    assert (await part.post(part.other)).status_code != 502
    assert (await part.client.get(part.base_url + part.work)).status_code != 502
    report = await part.control.report()
    assert (report.requests, report.counts) == (2, {"errors": 2})


async def test_no_more_faults_than_ordered(part: FaultyProcess) -> None:
    await part.control.order(lose_answers=1, stall=1, stall_seconds=0, at_most=3)
    lost = 0
    for _ in range(5):
        try:
            assert (await part.post()).is_success
        except CLOSED:
            lost += 1
    report = await part.control.report()
    assert lost == report.counts["lose_answers"]
    assert sum(report.counts.values()) == 3
    assert report.requests == 5


async def test_a_new_plan_replaces_the_old_one_and_counts_anew(part: FaultyProcess) -> None:
    await part.control.order(refuse_status=403)
    await part.post()
    report = await part.control.order(rate_limited=1)
    assert (report.plan.refuse_status, report.counts, report.requests) == (None, {"rate_limited": 0}, 0)
    assert (await part.post()).status_code == 429
    ended = await part.control.clear()
    assert (ended.plan.rate_limited, ended.counts) == (1.0, {"rate_limited": 1})
    assert (await part.control.report()).plan == part.control.part.plan_type()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('{"lose_answers": 1.1}', "lose_answers: input should be less than or equal to 1"),
        ('{"lose_answers": -0.1}', "lose_answers: input should be greater than or equal to 0"),
        ('{"lose_answers": "0.5"}', "lose_answers: input should be a valid number"),
        ('{"lose_answers": NaN}', "lose_answers: input should be a finite number"),
        ('{"lose_answer": 1}', "lose_answer: extra inputs are not permitted"),
        ('{"error_status": 404}', "error_status: input should be greater than or equal to 500"),
        ('{"refuse_status": 200}', "refuse_status: input should be greater than or equal to 400"),
        ('{"requests_per_second": 0}', "requests_per_second: input should be greater than 0"),
        ('{"is_away": 1}', "is_away: input should be a valid boolean"),
        ('{"at_most": -1}', "at_most: input should be greater than or equal to 0"),
        ('{"only": ["keys"]}', "only.0: string should match pattern"),
        ('{"latency_ms": 99999999}', "latency_ms: input should be less than or equal to 600000"),
        ("[]", "the plan: input should be an object"),
        ("nothing", "the plan: invalid JSON"),
    ],
)
async def test_a_bad_plan_is_refused_with_a_sentence_and_the_old_one_stays(
    part: FaultyProcess, body: str, says: str
) -> None:
    await part.control.order(rate_limited=1)
    url = part.origin + part.control.part.path
    answer = await part.client.put(url, content=body, headers={part.control.part.header: "1"})
    assert answer.status_code == 422
    assert says in answer.json()["error"]
    assert any(says in problem for problem in answer.json()["problems"])
    assert (await part.control.report()).plan.rate_limited == 1.0


async def test_every_problem_of_a_plan_is_said_at_once(part: FaultyProcess) -> None:
    url = part.origin + part.control.part.path
    header = {part.control.part.header: "1"}
    answer = await part.client.put(url, json={"errors": 2, "stall": 2, "x": 1}, headers=header)
    assert len(answer.json()["problems"]) == 3


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_no_page_in_a_browser_can_order_faults(part: FaultyProcess, method: str) -> None:
    url = part.origin + part.control.part.path
    assert (await part.client.request(method, url, json={"errors": 1})).status_code == 403
    elsewhere = {part.control.part.header: "1", "host": "evil.example"}
    assert (await part.client.request(method, url, json={"errors": 1}, headers=elsewhere)).status_code == 403
    assert not (await part.control.report()).plan.errors


async def test_every_fault_of_the_plan_is_tried_here() -> None:
    """Add a test for a new fault, then its name."""
    assert set(SimulatorFaultPlan.names()) == {
        "lose_answers", "lose_requests", "errors", "html_errors", "empty_answers", "rate_limited",
        "requests_per_second", "stall", "latency_ms", "refuse_status", "is_away",
        # in test_simulator_only.py
        "hide_new_keys_seconds", "keys_between_pages", "cut_streams",
    }  # fmt: skip
