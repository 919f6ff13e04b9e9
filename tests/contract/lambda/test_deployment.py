"""`osls deploy`, again, and `osls remove`, against a stand-in for AWS: what is there afterwards, and what is left.

Not shown, because moto's CloudFormation lacks it: the gateway and its stage, the alarms, the dashboard, the bucket's
policy, the limit of repeats, and the resolving of secrets. How those are meant stands in test_template.py.
"""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from infra.local.stack import CHECKOUT
from infra.local.supervisor import free_port
from tests.support.aws_stand_in import without_unknown
from tests.support.osls import run_osls

REGION = "us-east-1"
START_SECONDS = 60
POLL_SECONDS = 0.1
FUNCTIONS = {f"doorkey-prod-{name}" for name in ("webhook", "sweep", "api", "admin")}
# What is left where the stack was: by service, the call that lists it, and where the list is.
LEFTOVERS = (
    ("lambda", "list_functions", "Functions"),
    ("iam", "list_roles", "Roles"),
    ("logs", "describe_log_groups", "logGroups"),
    ("events", "list_rules", "Rules"),
    ("sns", "list_topics", "Topics"),
    ("s3", "list_buckets", "Buckets"),
)


class Account:
    """An account at the stand-in."""

    def __init__(self, url: str, home: Path) -> None:
        self._url = url
        self._home = home

    def client(self, service: str) -> Any:
        return boto3.client(
            service, endpoint_url=self._url, region_name=REGION, aws_access_key_id="a", aws_secret_access_key="b"
        )

    def osls(self, *arguments: str) -> str:
        outcome = run_osls(
            self._home,
            *arguments,
            AWS_ENDPOINT_URL=self._url,
            AWS_ACCESS_KEY_ID="a",
            AWS_SECRET_ACCESS_KEY="b",
            SLS_AWS_MONITORING_FREQUENCY="100",
        )
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        return outcome.stdout + outcome.stderr

    def count(self, service: str, call: str, where: str) -> int:
        return len(getattr(self.client(service), call)()[where])

    def code_keys(self) -> dict[str, str]:
        """Where each function's code lies, by the stack that was put up last."""
        template = self.client("cloudformation").get_template(StackName="doorkey-prod")["TemplateBody"]
        return {
            name: resource["Properties"]["Code"]["S3Key"]
            for name, resource in template["Resources"].items()
            if resource["Type"] == "AWS::Lambda::Function"
        }


@pytest.fixture(scope="module")
def account(osls_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """The stand-in, running."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("aws") / "moto.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.aws_stand_in", "--port", str(port)],
            cwd=CHECKOUT, stdout=stream, stderr=subprocess.STDOUT, env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        try:
            _until_it_answers(url, process, log)
            yield Account(url, osls_home)
        finally:
            process.kill()
            process.wait()


def _until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            httpx.get(f"{url}/moto-api/", trust_env=False)
        except httpx.TransportError:
            time.sleep(POLL_SECONDS)
        else:
            return
    pytest.fail(f"the stand-in did not start\n{log.read_text()}")


def test_what_the_stand_in_leaves_out_is_known_by_name(template: dict[str, Any]) -> None:
    _, gone = without_unknown(template)
    assert gone == {
        "ServerlessDeploymentBucketPolicy", "SweepLambdaEvConf", "Dashboard",
        "HttpApi", "HttpApiStage", "HttpApiIntegrationWebhook", "HttpApiIntegrationApi", "HttpApiRouteDefault",
        "HttpApiRouteAnyWebhooksSupabase", "HttpApiIntegrationAdmin", "HttpApiRouteAnyV1AdminPathVar",
        "AdminLambdaPermissionHttpApi", "WebhookLambdaPermissionHttpApi", "ApiLambdaPermissionHttpApi",
        "SweepLateAlarm", "QueueLateAlarm", "DeadRowsAlarm", "QueueHeldAlarm", "KeyRejectedAlarm", "StraysAlarm",
        "HourlyBrakeAlarm", "ServerErrorsAlarm", "DriftAlarm", "UsageLateAlarm",
    }  # fmt: skip


@pytest.mark.usefixtures("compiled_folder")
def test_what_is_deployed_runs_our_zip_and_what_is_removed_leaves_nothing(account: Account, zip_path: Path) -> None:
    account.osls("deploy", "--stage", "prod", "--force")
    functions = {one["FunctionName"]: one for one in account.client("lambda").list_functions()["Functions"]}
    assert set(functions) == FUNCTIONS
    digest = base64.b64encode(hashlib.sha256(zip_path.read_bytes()).digest()).decode()
    for name, function in functions.items():
        assert function["CodeSha256"] == digest
        assert (function["Handler"], function["Runtime"]) == (f"functions.{name.split('-')[2]}.handler", "python3.13")
        assert f"{name.split('-')[2].capitalize()}Role" in function["Role"]
    groups = account.client("logs").describe_log_groups()["logGroups"]
    assert {group["logGroupName"]: group["retentionInDays"] for group in groups} == {
        f"/aws/lambda/{name}": 30 for name in FUNCTIONS
    }
    (rule,) = account.client("events").list_rules()["Rules"]
    assert rule["ScheduleExpression"] == "rate(1 minute)"
    (target,) = account.client("events").list_targets_by_rule(Rule=rule["Name"])["Targets"]
    assert target["Arn"] == functions["doorkey-prod-sweep"]["FunctionArn"]
    (topic,) = account.client("sns").list_topics()["Topics"]
    assert topic["TopicArn"].endswith(":doorkey-prod-alarms")

    # Again, without a change of the code: every function is updated all the same, and so reads the secret anew.
    before = account.code_keys()
    account.osls("deploy", "--stage", "prod", "--force")
    after = account.code_keys()
    assert set(after) == set(before)
    assert len(after) == len(FUNCTIONS)
    assert not [name for name in after if after[name] == before[name]]

    account.osls("remove", "--stage", "prod")
    assert {service: account.count(service, call, where) for service, call, where in LEFTOVERS} == {
        service: 0 for service, _, _ in LEFTOVERS
    }


def test_make_deploys_by_force_so_that_a_changed_secret_gets_in() -> None:
    shown = subprocess.run(
        ["make", "--dry-run", "deploy", "STAGE=prod"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    ).stdout
    assert "osls deploy --stage prod --force" in shown
    assert shown.index("infra.aws.package") < shown.index("osls deploy")


def test_without_a_stage_nothing_is_deployed_or_removed() -> None:
    for target in ("deploy", "remove"):
        outcome = subprocess.run(
            ["make", target],
            cwd=CHECKOUT,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert outcome.returncode != 0
        assert f"make {target} STAGE=prod" in outcome.stdout + outcome.stderr
