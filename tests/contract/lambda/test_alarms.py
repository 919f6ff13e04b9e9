"""Every alarm is seen to fire: real handlers run into real trouble, and what they log is judged by the compiled alarm.

Shown: the names, dimensions, units and thresholds meet, from the code to the template. Not shown: CloudWatch itself,
whose part a stand-in plays (tests/support/alarms.py), and the mail. The gateway's own count of errors is reckoned from
the handlers' answers.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from functions import api, sweep, webhook
from functions.clients.outside import Clients, build_clients
from functions.kit import observability
from functions.kit.observability import Metric, logger, start_logging
from functions.kit.settings import Settings
from functions.metering import metrics as metering_metrics
from functions.provisioning import metrics
from functions.provisioning.names import KeyName
from functions.provisioning.retry import MAX_FAILURES
from functions.provisioning.steps import Outcome
from infra.local.stack import PROJECT, Stack
from tests.support.alarms import Datapoint, datapoints_of, state_of
from tests.support.lambda_events import SCHEDULED, event
from tests.support.scenes import Between, Scene, instead

ALARMS = (
    "SweepLate", "QueueLate", "DeadRows", "QueueHeld", "KeyRejected", "Strays", "Drift", "UsageLate", "HourlyBrake",
    "ServerErrors",
)  # fmt: skip
STAGE = "prod"
HOUR_SECONDS = 3_600
PERIOD_SECONDS = 300
NEW_ROUND = "update doorkey.usage_sync set started_at = now() - interval '2 hours', finished_at = now()"

Alarms = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def alarms(template: dict[str, Any]) -> Alarms:
    """The properties of each, by its name without the ending."""
    return {
        logical_id.removesuffix("Alarm"): resource["Properties"]
        for logical_id, resource in template["Resources"].items()
        if resource["Type"] == "AWS::CloudWatch::Alarm"
    }


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the handlers log, as on Lambda."""
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    stream = io.StringIO()
    start_logging(stream, metrics_stage=STAGE)
    yield stream
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagate


@pytest.fixture
async def scene(stack: Stack, http: httpx.AsyncClient) -> AsyncIterator[Scene]:
    """Somebody who is due. The queue is everybody's: whatever happens, it is let go."""
    scene = Scene(stack, http, uuid.uuid4())
    await scene.sql("insert into auth.users (id, email) values (%s, %s)", scene.user_id, f"{scene.user_id}@example.com")
    await scene.sql("update doorkey.provisioning set state = 'due' where user_id = %s", scene.user_id)
    await scene.sql("update doorkey.provisioning set state = 'waiting' where state = 'dead'")
    yield scene
    await scene.sql("update doorkey.settings set held_reason = null, held_until = null, max_keys_per_hour = null")
    await scene.delete_user()
    await run_sweep(stack)


async def run_sweep(
    stack: Stack, transport: Between | None = None, ahead_seconds: float = 0.0, **settings: str
) -> dict[str, Any]:
    """One sweep, as the schedule runs it."""
    read = Settings.from_environment({**stack.functions_environment, **settings})
    clients = build_clients(read, transport=transport or Between())
    async with clients.http:
        return await sweep.build(read, clients, lambda: time.time() + ahead_seconds)(SCHEDULED)


def through_an_hour(points: list[Datapoint]) -> list[Datapoint]:
    """The same values in each of twelve periods."""
    return [
        replace(point, at_seconds=point.at_seconds - number * PERIOD_SECONDS)
        for point in points
        for number in range(HOUR_SECONDS // PERIOD_SECONDS)
    ]


def judge(alarm: dict[str, Any], log: str, before: str = "OK", ahead_seconds: float = 0.0) -> str:
    return state_of(alarm, datapoints_of(log), now_seconds=time.time() + 1 + ahead_seconds, before=before)


async def test_nothing_alarms_while_all_is_well(alarms: Alarms, scene: Scene, log: io.StringIO) -> None:
    await run_sweep(scene.stack)
    await scene.sql(NEW_ROUND)
    await run_sweep(scene.stack)
    healthy = log.getvalue().splitlines()[-1]
    # The same line again, as twelve periods of good sweeps would write it.
    (first, *_) = datapoints_of(healthy)
    points = through_an_hour(datapoints_of(healthy))
    for name, alarm in alarms.items():
        if name != "ServerErrors":
            assert state_of(alarm, points, now_seconds=first.at_seconds + 1, before="ALARM") == "OK", name


def test_a_sweep_that_does_not_run_raises_its_alarm(alarms: Alarms) -> None:
    assert judge(alarms["SweepLate"], "") == "ALARM"


async def test_sweeps_that_all_fail_raise_its_alarm(alarms: Alarms, stack: Stack, log: io.StringIO) -> None:
    nowhere = Between(before=instead("start_sweep", 500, "{}"))
    for _ in range(5):
        assert (await run_sweep(stack, nowhere))["outcome"] == "failed"
    assert judge(alarms["SweepLate"], log.getvalue()) == "ALARM"


async def test_somebody_who_waits_raises_the_alarm_of_the_queue(
    alarms: Alarms, stack: Stack, scene: Scene, log: io.StringIO
) -> None:
    long_ago = "update doorkey.provisioning set due_at = now() - interval '6 minutes' where user_id = %s"
    await scene.sql(long_ago, scene.user_id)
    await run_sweep(stack, Between(before=instead("list_due_provisioning", 200, "[]")))
    once = log.getvalue()
    (now,) = [p for p in datapoints_of(once) if p.name == "OldestDueSeconds"]
    # Once is no alarm; the period before must have been as bad.
    for value, state in ((0.0, "OK"), (now.value, "ALARM")):
        earlier = replace(now, at_seconds=now.at_seconds - PERIOD_SECONDS, value=value)
        assert state_of(alarms["QueueLate"], [now, earlier], now_seconds=now.at_seconds + 1, before="OK") == state


async def test_a_user_who_was_given_up_raises_the_alarm(
    alarms: Alarms, stack: Stack, scene: Scene, log: io.StringIO
) -> None:
    last = MAX_FAILURES - 1
    await scene.sql("update doorkey.provisioning set failures = %s where user_id = %s", last, scene.user_id)
    await run_sweep(stack, Between(before=instead("POST /keys", 500)))
    assert judge(alarms["DeadRows"], log.getvalue()) == "OK"
    await run_sweep(stack)
    assert (await scene.row())["state"] == "dead"
    assert judge(alarms["DeadRows"], log.getvalue()) == "ALARM"
    assert {p.name for p in datapoints_of(log.getvalue())} >= {"AttemptsDead"}


@pytest.mark.parametrize("status", [401, 402])
async def test_a_queue_that_is_held_raises_the_alarm(
    alarms: Alarms, scene: Scene, log: io.StringIO, status: int
) -> None:
    for _ in range(2):
        refusing = Between(before=instead("POST /keys", status, '{"error": {"code": 401}}'))
        await run_sweep(scene.stack, refusing)
    assert judge(alarms["QueueHeld"], log.getvalue()) == "ALARM"
    # An empty account is no rejected key.
    assert judge(alarms["KeyRejected"], log.getvalue()) == ("ALARM" if status == 401 else "OK")


async def test_a_rejected_service_key_raises_the_alarm_from_every_function(
    alarms: Alarms, stack: Stack, scene: Scene, log: io.StringIO
) -> None:
    wrong = Settings.from_environment(
        {
            **stack.functions_environment,
            "SUPABASE_SECRET_KEY": "sb_secret_nobody-gave-out-this-one",
            "DOORKEY_FORWARDS_CALLER_ADDRESS": "true",
        }
    )
    hint = json.dumps({"type": "INSERT", "table": "users", "schema": "auth", "record": {"id": str(scene.user_id)}})
    signed = {"x-webhook-secret": stack.secrets.webhook_shared_secret}

    def signup(clients: Clients) -> Awaitable[object]:
        transport = httpx.ASGITransport(api.build(wrong, clients))
        return httpx.AsyncClient(transport=transport, base_url="http://api").post("/v1/auth/signup", json={})

    asks: tuple[Callable[[Clients], Awaitable[object]], ...] = (
        lambda clients: sweep.build(wrong, clients)(SCHEDULED),
        lambda clients: webhook.build(wrong, clients)(event("/webhooks/supabase", "POST", hint.encode(), signed)),
        signup,
    )
    for ask in asks:
        log.seek(0)
        log.truncate()
        assert judge(alarms["KeyRejected"], log.getvalue()) == "OK"
        # Each in a sandbox of its own: it says so once a minute.
        clients = build_clients(wrong)
        async with clients.http:
            await ask(clients)
        assert judge(alarms["KeyRejected"], log.getvalue()) == "ALARM"


async def make_stray(scene: Scene) -> str:
    """A key by our name, of an attempt that was made and lost."""
    await scene.provision()
    await scene.sql("update doorkey.provisioning set attempt = 2 where user_id = %s", scene.user_id)
    answer = await scene.http.post(
        f"{scene.stack.openrouter_url}/keys",
        json={"name": str(KeyName(PROJECT, scene.user_id, 2)), "limit": 1},
        headers={"Authorization": f"Bearer {scene.stack.secrets.management_key}"},
    )
    key_hash: str = answer.raise_for_status().json()["data"]["hash"]
    return key_hash


async def test_strays_that_stay_or_are_not_looked_for_raise_the_alarm(
    alarms: Alarms, stack: Stack, scene: Scene, log: io.StringIO
) -> None:
    await make_stray(scene)
    alarm = alarms["Strays"]
    # Deleting fails, again and again: no look comes to its end, so there is no datapoint, and that is the alarm.
    await run_sweep(stack, Between(before=instead("DELETE /keys", 500)), ahead_seconds=2 * HOUR_SECONDS)
    assert "OldestStraySeconds" not in {p.name for p in datapoints_of(log.getvalue())}
    assert judge(alarm, log.getvalue()) == "ALARM"
    # An old one is found, as on every run of an hour.
    await run_sweep(stack, ahead_seconds=2 * HOUR_SECONDS)
    points = [p for p in datapoints_of(log.getvalue()) if p.name == "OldestStraySeconds"]
    assert [p.value >= HOUR_SECONDS for p in points] == [True]
    assert state_of(alarm, through_an_hour(points), now_seconds=time.time() + 1, before="OK") == "ALARM"
    # Once is none: it was deleted.
    await run_sweep(stack, ahead_seconds=2 * HOUR_SECONDS)
    (gone,) = [p for p in datapoints_of(log.getvalue().splitlines()[-1]) if p.name == "OldestStraySeconds"]
    assert gone.value == 0
    earlier = [replace(p, at_seconds=p.at_seconds - PERIOD_SECONDS) for p in through_an_hour(points)]
    assert state_of(alarm, [gone, *earlier], now_seconds=gone.at_seconds + 1, before="OK") == "OK"


@pytest.fixture
async def odd_key(scene: Scene) -> AsyncIterator[str]:
    """A key that OpenRouter had spend a dollar and a fraction yesterday, of which nothing else is known."""
    await scene.provision()
    key_hash = secrets.token_hex(32)
    await scene.sql(
        "insert into public.openrouter_user_keys (key_hash, user_id, key_name, attempt, status, deleted_at)"
        " values (%s, %s, 'odd', 1, 'deleted', now())",
        key_hash,
        scene.user_id,
    )
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    await scene.sql("insert into doorkey.key_usage_days values (%s, %s, 1000000.2)", key_hash, yesterday)
    yield key_hash
    await scene.sql("delete from doorkey.key_usage_days where key_hash = %s", key_hash)
    await scene.sql("delete from public.openrouter_user_keys where key_hash = %s", key_hash)


async def test_drift_that_nobody_can_explain_or_tell_raises_the_alarm(
    alarms: Alarms, scene: Scene, odd_key: str, log: io.StringIO
) -> None:
    alarm = alarms["Drift"]
    await run_sweep(scene.stack)
    (odd,) = [p for p in datapoints_of(log.getvalue()) if p.name == "DriftMicros"]
    assert odd.value >= 1_000_001
    assert judge(alarm, log.getvalue()) == "ALARM"
    await scene.sql("delete from doorkey.key_usage_days where key_hash = %s", odd_key)
    log.seek(0)
    log.truncate()
    # It can't be told: that is as bad.
    await run_sweep(scene.stack, Between(before=instead("report_drift", 500, "{}")))
    assert "DriftMicros" not in {p.name for p in datapoints_of(log.getvalue())}
    assert judge(alarm, log.getvalue()) == "ALARM"
    await run_sweep(scene.stack)
    assert judge(alarm, log.getvalue(), before="ALARM") == "OK"


async def test_a_usage_sync_that_finishes_no_round_raises_the_alarm(
    alarms: Alarms, scene: Scene, log: io.StringIO
) -> None:
    alarm = alarms["UsageLate"]
    await scene.sql(NEW_ROUND)
    for _ in range(2):
        line = await run_sweep(scene.stack, Between(before=instead("record_usage", 500, "{}")))
        assert line["usage_error"]
    assert judge(alarm, log.getvalue()) == "ALARM"
    await run_sweep(scene.stack)
    assert judge(alarm, log.getvalue(), before="ALARM") == "OK"


async def test_an_hour_that_is_full_raises_the_alarm(
    alarms: Alarms, stack: Stack, scene: Scene, log: io.StringIO
) -> None:
    await run_sweep(stack)
    assert judge(alarms["HourlyBrake"], log.getvalue()) == "OK"
    await scene.sql("update doorkey.settings set max_keys_per_hour = 1")
    await run_sweep(stack)
    assert judge(alarms["HourlyBrake"], log.getvalue()) == "ALARM"


@pytest.mark.usefixtures("log")
async def test_answers_that_are_our_fault_raise_the_alarm(alarms: Alarms, stack: Stack) -> None:
    away = Settings.from_environment({**stack.functions_environment, "SUPABASE_URL": "http://127.0.0.1:9"})
    clients = build_clients(away)
    hint = json.dumps({"type": "INSERT", "table": "users", "schema": "auth", "record": {"id": str(uuid.uuid4())}})
    signed = {"x-webhook-secret": stack.secrets.webhook_shared_secret}
    async with clients.http:
        handle = webhook.build(away, clients)
        calls = [handle(event("/webhooks/supabase", "POST", hint.encode(), signed)) for _ in range(5)]
        statuses = [answer["statusCode"] for answer in await asyncio.gather(*calls)]
    alarm = {**alarms["ServerErrors"], "Dimensions": [{"Name": "ApiId", "Value": "a1"}]}
    assert alarms["ServerErrors"]["Dimensions"] == [{"Name": "ApiId", "Value": {"Ref": "HttpApi"}}]
    counted = [
        Datapoint("AWS/ApiGateway", "5xx", (("ApiId", "a1"),), time.time(), float(status >= 500)) for status in statuses
    ]
    assert state_of(alarm, counted, now_seconds=time.time() + 1, before="OK") == "ALARM"
    assert state_of(alarm, counted[:4], now_seconds=time.time() + 1, before="OK") == "OK"


def test_every_alarm_is_tried_here_and_tells_the_topic(alarms: Alarms) -> None:
    tried = set(re.findall(r'alarms\["(\w+)"\]', Path(__file__).read_text()))
    assert set(alarms) == set(ALARMS) == tried
    for alarm in alarms.values():
        assert alarm["AlarmActions"] == alarm["OKActions"] == [{"Ref": "AlarmTopic"}]
        assert alarm["AlarmDescription"]


def emitted() -> dict[str, Metric]:
    """Every metric that the code knows."""
    declared = [value for module in (metrics, metering_metrics, observability) for value in vars(module).values()]
    counted = [metrics.attempts(outcome) for outcome in (*Outcome, "failed") if outcome is not Outcome.NOTHING_TO_DO]
    return {metric.name: metric for metric in (*declared, *counted) if isinstance(metric, Metric)}


def test_alarms_and_dashboard_name_the_metrics_that_the_code_emits(alarms: Alarms, template: dict[str, Any]) -> None:
    own = [alarm for alarm in alarms.values() if alarm["Namespace"] == observability.METRICS_NAMESPACE]
    assert {alarm["MetricName"] for alarm in own} <= set(emitted())
    for alarm in own:
        assert alarm["Dimensions"] == [{"Name": observability.STAGE_DIMENSION, "Value": STAGE}]
    assert {alarm["Namespace"] for alarm in alarms.values()} == {observability.METRICS_NAMESPACE, "AWS/ApiGateway"}
    body = json.loads(template["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"])
    shown = [row for widget in body["widgets"] for row in widget["properties"].get("metrics", [])]
    ours = [row for row in shown if row[0] == observability.METRICS_NAMESPACE]
    assert {row[1] for row in ours} == set(emitted()), "all that is counted is shown"
    assert {tuple(row[2:4]) for row in ours} == {(observability.STAGE_DIMENSION, STAGE)}
    panel = [widget["properties"]["alarms"] for widget in body["widgets"] if widget["type"] == "alarm"]
    assert panel == [[f"${{{name}Alarm.Arn}}" for name in ALARMS]]
