"""The CloudFormation that osls compiles: who may do what, who knows which secret, how long things may take."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from functions import admin
from functions.kit.settings import Settings
from infra.local.functions import WEBHOOK_PATH
from infra.local.stack import CHECKOUT

Template = dict[str, Any]

EVERYBODYS_SECRETS = {
    "SUPABASE_URL",
    "SUPABASE_PUBLISHABLE_KEY",
    "SUPABASE_SECRET_KEY",
    "OPENROUTER_MANAGEMENT_KEY",
    "DOORKEY_PROJECT",
    "DOORKEY_SEALING_KEYS",
}
EVERYBODYS_SETTINGS = {"OPENROUTER_WORKSPACE_ID", "DOORKEY_METRICS_STAGE", "DOORKEY_SECRET_ID"}
# By function: what is read from the stage's secret, and what stands in infra/aws/stages.yml.
SECRETS = {
    "webhook": EVERYBODYS_SECRETS | {"DOORKEY_WEBHOOK_SECRETS"},
    "sweep": EVERYBODYS_SECRETS,
    # The signing secrets: what it proves with, when it calls under a person's token.
    "api": EVERYBODYS_SECRETS | {"DOORKEY_WEBHOOK_SECRETS", "DOORKEY_OPERATOR_TOKEN_SHA256"},
    # Nobody's token carries what it does: nothing to prove.
    "admin": EVERYBODYS_SECRETS | {"DOORKEY_OPERATOR_TOKEN_SHA256"},
}
SETTINGS = {
    "webhook": EVERYBODYS_SETTINGS | {"DOORKEY_WEBHOOK_SHARED_SECRET"},
    "sweep": EVERYBODYS_SETTINGS | {"DOORKEY_STRAYS"},
    "api": EVERYBODYS_SETTINGS | {"SUPABASE_JWT_SECRET", "DOORKEY_ALLOWED_ORIGINS", "DOORKEY_FORWARDS_CALLER_ADDRESS"},
    "admin": EVERYBODYS_SETTINGS | {"SUPABASE_JWT_SECRET", "DOORKEY_ALLOWED_ORIGINS"},
}
# What is as the code has it. The numbers belong together, with the time-outs in serverless.yml.
LEFT_AT_THEIR_DEFAULTS = {
    "OPENROUTER_BASE_URL",
    "DOORKEY_LEASE_SECONDS",
    "DOORKEY_SWEEP_BUDGET_SECONDS",
    "DOORKEY_STRAY_AGE_SECONDS",
    "DOORKEY_OUTSIDE_TIMEOUT_SECONDS",
}
FUNCTIONS = tuple(SECRETS)
# What one attempt may take at worst: claim, make, and three times finish.
CALLS_OF_AN_ATTEMPT = 5
# osls names every dependency twice, which does no harm.
LINT_IGNORED = "W3005"


def of_type(template: Template, kind: str) -> dict[str, Any]:
    """The properties of every resource of a type, by logical id."""
    found = template["Resources"].items()
    return {name: resource.get("Properties", {}) for name, resource in found if resource["Type"] == kind}


def function(template: Template, name: str) -> dict[str, Any]:
    properties: dict[str, Any] = of_type(template, "AWS::Lambda::Function")[f"{name.capitalize()}LambdaFunction"]
    return properties


def environment(template: Template, name: str) -> dict[str, str]:
    variables: dict[str, str] = function(template, name)["Environment"]["Variables"]
    return variables


def default(name: str) -> float:
    value = Settings.model_fields[name].default
    assert isinstance(value, int | float)
    return value


def test_cfn_lint_finds_nothing(compiled_folder: Path) -> None:
    outcome = subprocess.run(
        [str(Path(sys.executable).with_name("cfn-lint")), "--ignore-checks", LINT_IGNORED, "--",
         str(compiled_folder / "cloudformation-template-update-stack.json")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stdout


def test_all_functions_are_deployed_and_no_other(template: Template) -> None:
    functions = of_type(template, "AWS::Lambda::Function")
    assert set(functions) == {f"{name.capitalize()}LambdaFunction" for name in FUNCTIONS}
    for properties in functions.values():
        assert properties["Runtime"] == "python3.13"
        assert properties["Architectures"] == ["arm64"]
        # A new account has ten in all: reserving some would make its first deploy fail.
        assert "ReservedConcurrentExecutions" not in properties


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_knows_only_what_it_needs(template: Template, name: str) -> None:
    variables = environment(template, name)
    references = {n: value for n, value in variables.items() if "{{resolve:" in value}
    assert set(references) == SECRETS[name]
    for variable, value in references.items():
        assert value == f"{{{{resolve:secretsmanager:doorkey/prod:SecretString:{variable}}}}}"
    assert set(variables) - set(references) == SETTINGS[name]


def test_every_setting_reaches_a_function_or_is_left_alone_on_purpose(template: Template) -> None:
    reached = {variable for name in FUNCTIONS for variable in environment(template, name)}
    assert {field.upper() for field in Settings.model_fields} - reached == LEFT_AT_THEIR_DEFAULTS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_settings_of_each_function_are_real_and_complete(template: Template, name: str) -> None:
    fields = {field.upper(): info for field, info in Settings.model_fields.items()}
    variables = environment(template, name)
    assert set(variables) <= set(fields)
    assert {variable for variable, info in fields.items() if info.is_required()} <= set(variables)
    # What isn't secret is right as it stands; a stand-in for each secret that is.
    secrets = {
        "SUPABASE_URL": "https://project.example",
        "DOORKEY_PROJECT": "app",
        "DOORKEY_SEALING_KEYS": "k1:" + "A" * 43 + "=",
        "DOORKEY_WEBHOOK_SECRETS": "whsec_" + "A" * 44,
        "DOORKEY_OPERATOR_TOKEN_SHA256": "0" * 64,
    }
    resolved = {n: secrets.get(n, "s" * 32) if "{{resolve:" in value else value for n, value in variables.items()}
    settings = Settings.from_environment(resolved)
    assert settings.doorkey_metrics_stage == "prod"
    assert settings.doorkey_forwards_caller_address is False


def test_no_secret_passes_through_the_template_or_the_state(compiled_folder: Path) -> None:
    secret = {"SUPABASE_SECRET_KEY", "OPENROUTER_MANAGEMENT_KEY", "DOORKEY_SEALING_KEYS", "DOORKEY_WEBHOOK_SECRETS"}
    for path in compiled_folder.glob("*.json"):
        for name in secret:
            for value in re.findall(rf'"{name}":\s*"([^"]*)"', path.read_text()):
                assert value.startswith("{{resolve:secretsmanager:doorkey/prod:"), (path.name, name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_has_a_role_that_may_write_its_own_log_read_its_stages_secret_and_nothing_else(
    template: Template, name: str
) -> None:
    title = name.capitalize()
    assert function(template, name)["Role"] == {"Fn::GetAtt": [f"{title}Role", "Arn"]}
    role = of_type(template, "AWS::IAM::Role")[f"{title}Role"]
    assert set(role) == {"AssumeRolePolicyDocument", "Policies"}
    (trust,) = role["AssumeRolePolicyDocument"]["Statement"]
    assert trust == {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
    statements = [statement for policy in role["Policies"] for statement in policy["PolicyDocument"]["Statement"]]
    assert statements == [
        {
            "Effect": "Allow",
            "Action": ["logs:CreateLogStream", "logs:PutLogEvents"],
            "Resource": {"Fn::GetAtt": [f"{title}LogGroup", "Arn"]},
        },
        {
            "Effect": "Allow",
            "Action": "secretsmanager:GetSecretValue",
            # The six characters that Secrets Manager adds, and not a star: `prod` must not open `prod-2`.
            "Resource": {
                "Fn::Sub": "arn:${AWS::Partition}:secretsmanager:${AWS::Region}:${AWS::AccountId}"
                ":secret:doorkey/prod-??????"
            },
        },
    ]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_secret_that_a_function_reads_again_is_the_one_that_it_was_given_its_keys_from(
    template: Template, name: str
) -> None:
    variables = environment(template, name)
    secret_id = variables["DOORKEY_SECRET_ID"]
    assert secret_id == "doorkey/prod"
    assert f":{secret_id}:" in variables["SUPABASE_SECRET_KEY"]
    # And its name ends in nothing that IAM's pattern would take for those six characters.
    assert "?" not in secret_id


def test_there_is_no_role_beside_theirs(template: Template) -> None:
    assert set(of_type(template, "AWS::IAM::Role")) == {f"{name.capitalize()}Role" for name in FUNCTIONS}
    assert not of_type(template, "AWS::IAM::Policy")


def test_logs_expire(template: Template) -> None:
    groups = of_type(template, "AWS::Logs::LogGroup")
    assert {group["LogGroupName"] for group in groups.values()} == {f"/aws/lambda/doorkey-prod-{n}" for n in FUNCTIONS}
    assert {group["RetentionInDays"] for group in groups.values()} == {30}


def test_one_public_address_stands_before_webhook_api_and_admin(template: Template) -> None:
    assert len(of_type(template, "AWS::ApiGatewayV2::Api")) == 1
    routes = of_type(template, "AWS::ApiGatewayV2::Route")
    targets = {route["RouteKey"]: json.dumps(route["Target"]) for route in routes.values()}
    admins = f"ANY {admin.PREFIX}/{{path+}}"
    assert set(targets) == {f"ANY {WEBHOOK_PATH}", admins, "$default"}
    assert "HttpApiIntegrationAdmin" in targets[admins]
    assert "HttpApiIntegrationWebhook" in targets[f"ANY {WEBHOOK_PATH}"]
    assert "HttpApiIntegrationApi" in targets["$default"]
    for integration in of_type(template, "AWS::ApiGatewayV2::Integration").values():
        assert integration["PayloadFormatVersion"] == "2.0"
    assert not of_type(template, "AWS::Lambda::Url")


def test_whoever_calls_too_often_is_turned_away(template: Template) -> None:
    (stage,) = of_type(template, "AWS::ApiGatewayV2::Stage").values()
    assert stage["DefaultRouteSettings"] == {"ThrottlingRateLimit": 100, "ThrottlingBurstLimit": 200}


def test_the_sweep_runs_every_minute_and_is_not_repeated_in_between(template: Template) -> None:
    (rule,) = of_type(template, "AWS::Events::Rule").values()
    assert (rule["ScheduleExpression"], rule["State"]) == ("rate(1 minute)", "ENABLED")
    assert [target["Arn"] for target in rule["Targets"]] == [{"Fn::GetAtt": ["SweepLambdaFunction", "Arn"]}]
    (asynchronous,) = of_type(template, "AWS::Lambda::EventInvokeConfig").values()
    assert (asynchronous["MaximumRetryAttempts"], asynchronous["MaximumEventAgeInSeconds"]) == (0, 60)


def test_a_lease_outlives_every_function_and_a_young_key_outlives_both(service: dict[str, Any]) -> None:
    timeouts = {name: function["timeout"] for name, function in service["functions"].items()}
    assert set(timeouts) == set(FUNCTIONS)
    lease, stray_age = default("doorkey_lease_seconds"), default("doorkey_stray_age_seconds")
    assert max(timeouts.values()) < lease < stray_age
    attempt = CALLS_OF_AN_ATTEMPT * default("doorkey_outside_timeout_seconds")
    assert default("doorkey_sweep_budget_seconds") + attempt < timeouts["sweep"]
    assert attempt < min(timeouts["webhook"], timeouts["api"])


def test_the_stages_file_says_everything_that_the_service_asks_of_it(service: dict[str, Any]) -> None:
    written = "".join(
        path.read_text() for path in (CHECKOUT / "serverless.yml", *(CHECKOUT / "infra" / "aws").glob("*.yml"))
    )
    stages = (CHECKOUT / "infra" / "aws" / "stages.yml").read_text()
    asked = set(re.findall(r"\$\{param:(\w+)", written))
    assert asked == set(re.findall(r"^  (\w+):", stages, re.MULTILINE))
    assert service["params"] == "${file(infra/aws/stages.yml)}"
