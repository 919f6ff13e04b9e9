"""`doorkey connect --stage`: the functions' secrets in AWS Secrets Manager, played by moto over HTTP."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from infra.local.stack import CHECKOUT
from tests.support.installations import SEALING_KEYS, WEBHOOK_SECRETS, Installation, Run, split
from tests.support.secrets_used import leaks

NAME = "doorkey/prod"
REGION = "eu-central-1"


@dataclass
class Vault:
    """Secrets Manager, and how to reach it."""

    address: str
    manager: Any = field(repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """What the AWS SDK reads."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "tell-nobody",
            "AWS_REGION": REGION,
        }

    def content(self) -> dict[str, str]:
        """The variables of the stage."""
        content: dict[str, str] = json.loads(self.manager.get_secret_value(SecretId=NAME)["SecretString"])
        return content


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Moto's address."""
    running = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def vault(server: str, monkeypatch: pytest.MonkeyPatch) -> Vault:
    """With nothing in it."""
    httpx.post(f"{server}/moto-api/reset", trust_env=False).raise_for_status()
    found = Vault(server, None)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    found.manager = boto3.client("secretsmanager", region_name=REGION)
    return found


async def connect(installation: Installation, vault: Vault, *more: str, **changes: str | None) -> Run:
    """Runs the command; it never shows a secret."""
    run = await installation.run(
        "connect", "--stage", "prod", *more, environment={**installation.given(**changes), **vault.environment}
    )
    assert leaks((run.out + run.err).encode()) == set()
    return run


async def test_the_secrets_of_a_stage_are_made_deployed_and_rotated(installation: Installation, vault: Vault) -> None:
    # The address is known after the first deployment, which needs the secrets.
    first = await connect(installation, vault)
    assert first.code == 0, first.said
    assert "run doorkey connect again with --url" in first.said
    assert await installation.signing_secret() is None
    content = await asyncio.to_thread(vault.content)
    # A reference to a key that is not there would stop the deployment.
    referred_to = set(re.findall(r"custom\.secret\}:([A-Z0-9_]+)", (CHECKOUT / "serverless.yml").read_text()))
    assert len(referred_to) >= 8
    assert content.keys() >= referred_to
    assert content["SUPABASE_JWT_SECRET"] == ""
    assert content["SUPABASE_SECRET_KEY"] == installation.stack.secrets.secret_key
    await installation.deploy(content)
    # Nothing else is needed any more than what is kept there.
    elsewhere = ("OPENROUTER_BASE_URL",)
    second = await installation.run(
        "connect",
        "--stage",
        "prod",
        "--url",
        installation.stack.functions_url,
        environment={**{name: installation.given()[name] for name in elsewhere}, **vault.environment},
    )
    assert second.code == 0, second.said
    assert "connected" in second.said
    assert await asyncio.to_thread(vault.content) == content
    person = await installation.somebody_ready()

    assert (await connect(installation, vault)).code == 0
    both = await asyncio.to_thread(vault.content)
    assert split(both, WEBHOOK_SECRETS)[1:] == split(content, WEBHOOK_SECRETS)
    assert {**both, WEBHOOK_SECRETS: ""} == {**content, WEBHOOK_SECRETS: ""}
    await installation.deploy(both)
    last = await connect(installation, vault)
    assert last.code == 0, last.said
    assert await installation.signing_secret() == split(both, WEBHOOK_SECRETS)[0]
    assert await asyncio.to_thread(vault.content) == both
    await installation.somebody_ready()
    assert await installation.shown_secret(person)


async def test_what_is_there_is_kept_and_what_is_not_ours_too(installation: Installation, vault: Vault) -> None:
    sealing_key = installation.stack.secrets.sealing_key
    there = {
        SEALING_KEYS: sealing_key,
        "SOMEBODY_ELSES": "kept",
        "OPENROUTER_MANAGEMENT_KEY": "sk-or-of-this-stage",
        "DOORKEY_WEBHOOK_SHARED_SECRET": "",
    }
    vault.manager.create_secret(Name=NAME, SecretString=json.dumps(there))
    run = await connect(installation, vault, "--url", installation.url, DOORKEY_WEBHOOK_SHARED_SECRET=None)
    assert run.code == 0, run.said
    assert "OPENROUTER_MANAGEMENT_KEY" in run.said
    content = await asyncio.to_thread(vault.content)
    assert {name: content[name] for name in there} == there
    assert [await installation.signing_secret()] == split(content, WEBHOOK_SECRETS)


@pytest.mark.parametrize("text", ["no json", "[]", '{"a": 1}'])
async def test_somebody_elses_secret_is_left_alone(installation: Installation, vault: Vault, text: str) -> None:
    vault.manager.create_secret(Name=NAME, SecretString=text)
    run = await connect(installation, vault, "--url", installation.url)
    assert run.code == 1
    assert "holds something else than variables" in run.said
    assert vault.manager.get_secret_value(SecretId=NAME)["SecretString"] == text
    assert await installation.signing_secret() is None


async def test_trouble_with_aws_is_a_sentence_and_changes_nothing(installation: Installation, vault: Vault) -> None:
    deleted = vault.manager.create_secret(Name=NAME, SecretString="{}")
    vault.manager.delete_secret(SecretId=deleted["ARN"])
    given = {**installation.given(), **vault.environment}
    without = {name: value for name, value in given.items() if not name.startswith("AWS_")}
    words = ("connect", "--stage", "prod", "--url", installation.url)
    for environment, reason in (
        (given, "GetSecretValue: InvalidRequestException"),
        ({**without, "AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": REGION}, "NoCredentialsError"),
        ({**without, "AWS_EC2_METADATA_DISABLED": "true"}, "NoRegionError"),
        ({**given, "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"}, "EndpointConnectionError"),
    ):
        run = await installation.run(*words, environment=environment)
        assert run.code == 1
        assert reason in run.said
        assert "Traceback" not in run.said
    assert (await installation.run("connect", "--stage", "Prod/../x", environment=given)).code == 2
    assert await installation.signing_secret() is None


async def test_a_sealing_key_is_rotated_in_the_stage_too(installation: Installation, vault: Vault) -> None:
    await connect(installation, vault, "--url", installation.url)
    before = await asyncio.to_thread(vault.content)
    await installation.deploy(before)
    run = await installation.run(
        "rotate-sealing-key", "--stage", "prod", environment={**installation.given(), **vault.environment}
    )
    assert run.code == 0, run.said
    after = await asyncio.to_thread(vault.content)
    assert split(after, SEALING_KEYS)[:1] == split(before, SEALING_KEYS)
    assert len(split(after, SEALING_KEYS)) == 2
