"""Secrets Manager, played by moto, with one stage's secret in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

SECRET_ID = "doorkey/test"
REGION = "eu-central-1"


@dataclass(frozen=True)
class Vault:
    """The secret, and what the functions need to get at it.

    Attributes:
        environment: for whoever reads it; with its id as the functions are given it.
    """

    environment: dict[str, str]
    _client: Any = field(repr=False)

    def store(self, content: Mapping[str, str]) -> None:
        """What the secret holds from now on."""
        self._client.put_secret_value(SecretId=SECRET_ID, SecretString=json.dumps(dict(content)))


@contextmanager
def running_vault() -> Iterator[Vault]:
    """Runs until the end of the block; empty at first."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        aws = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "tell-nobody",
            "AWS_DEFAULT_REGION": REGION,
        }
        client = boto3.client(
            "secretsmanager",
            endpoint_url=aws["AWS_ENDPOINT_URL"],
            aws_access_key_id=aws["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=aws["AWS_SECRET_ACCESS_KEY"],
            region_name=REGION,
        )
        client.create_secret(Name=SECRET_ID, SecretString="{}")
        yield Vault({**aws, "DOORKEY_SECRET_ID": SECRET_ID}, client)
    finally:
        server.stop()
