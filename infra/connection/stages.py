"""What belongs to one stage alone, in AWS Secrets Manager: one secret, whose JSON has the variables by their names.

serverless.yml takes them from there by dynamic references. The surprising thing: a variable that isn't set is there
too, as an empty text, because a reference to something that is missing stops a deployment.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from functions.kit.settings import secret_variable_names
from infra.connection.environments import CHANGED_MEANWHILE
from infra.connection.plans import CannotGoOn

_STAGE = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
NAME_PREFIX = "doorkey/"
# No secrets, but what tells one stage from another.
STAGES_OWN = ("SUPABASE_URL", "DOORKEY_PROJECT", "DOORKEY_OPERATOR_TOKEN_SHA256")
DESCRIPTION = "Secrets of doorkey's functions; keep DOORKEY_SEALING_KEYS, it opens the users' stored keys."


def stage_variable_names() -> tuple[str, ...]:
    """The variables that are kept there."""
    return tuple(dict.fromkeys((*STAGES_OWN, *secret_variable_names())))


class StageSecret:
    """A home for what is secret in the functions' environment, or the stage's own."""

    def __init__(self, stage: str) -> None:
        if not _STAGE.fullmatch(stage):
            raise CannotGoOn("A stage's name has lower-case letters, digits and hyphens.")
        self.name = NAME_PREFIX + stage
        self._manager: Any = None
        self._content: dict[str, str] | None = None

    def __str__(self) -> str:
        return f"{self.name} in Secrets Manager"

    async def read(self) -> dict[str, str]:
        """What is in it; nothing when there is no such secret yet.

        Raises:
            CannotGoOn: AWS can't be reached or refuses, or somebody else's secret has this name.
        """
        return await asyncio.to_thread(self._asked, self._read)

    async def write(self, environment: Mapping[str, str]) -> bool:
        """Sets those of these that belong there, and keeps all else that is in it.

        Raises:
            CannotGoOn: as above.
        """
        return bool(await asyncio.to_thread(self._asked, lambda: self._write(environment)))

    def _read(self) -> dict[str, str]:
        try:
            text = self._manager.get_secret_value(SecretId=self.name).get("SecretString", "")
        except self._manager.exceptions.ResourceNotFoundException:
            self._content = None
            return {}
        try:
            content = json.loads(text)
        except ValueError:
            content = None
        if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
            raise CannotGoOn(f"{self} is there and holds something else than variables; nothing was changed.")
        self._content = content
        return dict(content)

    def _write(self, environment: Mapping[str, str]) -> bool:
        known = self._content
        before = self._read()
        if before != (known or {}):
            raise CannotGoOn(CHANGED_MEANWHILE.format(self))
        wanted = {name: environment.get(name, before.get(name, "")) for name in stage_variable_names()}
        after = {**before, **wanted}
        if self._content is not None and after == before:
            return False
        text = json.dumps(after, indent=1)
        if self._content is not None:
            self._manager.put_secret_value(SecretId=self.name, SecretString=text)
        else:
            try:
                self._manager.create_secret(Name=self.name, SecretString=text, Description=DESCRIPTION)
            except self._manager.exceptions.ResourceExistsException:
                raise CannotGoOn(CHANGED_MEANWHILE.format(self)) from None
        self._content = after
        return True

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            import boto3
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError:
            raise CannotGoOn("--stage needs the AWS SDK: pip install boto3.") from None
        try:
            if self._manager is None:
                # The SDK itself heeds AWS_DEFAULT_REGION only.
                self._manager = boto3.client("secretsmanager", region_name=os.environ.get("AWS_REGION") or None)
            return ask()
        except ClientError as error:
            # The code and nothing more: a message may quote what was sent.
            reason = f"{error.operation_name}: {error.response.get('Error', {}).get('Code', 'refused')}"
        except BotoCoreError as error:
            reason = type(error).__name__
        raise CannotGoOn(f"Secrets Manager did not do it ({reason}); check AWS's credentials, region and permissions.")
