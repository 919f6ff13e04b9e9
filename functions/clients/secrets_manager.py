"""AWS Secrets Manager: the stage's secret, read again when a key is rejected.

The surprising thing: boto3 is imported only then. Importing it takes longer than all else that a cold start does, it
is part of Lambda's own runtime and not of our zip, and on most days nobody needs it.
"""

from __future__ import annotations

import json

CONNECT_SECONDS = 1
READ_SECONDS = 2
TRIES = 2


class SecretUnreadable(Exception):
    """The secret can't be had. The message says why, and quotes nothing of it."""


def read_secret(secret_id: str) -> dict[str, str]:
    """The variables in a secret, which is one JSON object. Blocks; to be called in a thread.

    Args:
        secret_id: its name or ARN.

    Raises:
        SecretUnreadable: no SDK, no permission, no answer in time, no such secret, or it holds something else.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise SecretUnreadable("boto3 is not installed") from None
    bounds = Config(connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retries={"total_max_attempts": TRIES})
    try:
        answer = boto3.client("secretsmanager", config=bounds).get_secret_value(SecretId=secret_id)
        content = json.loads(answer.get("SecretString", ""))
    except ClientError as error:
        # The code and nothing more: a message may quote what was sent.
        raise SecretUnreadable(str(error.response.get("Error", {}).get("Code", "refused"))) from None
    except (BotoCoreError, ValueError) as error:
        raise SecretUnreadable(type(error).__name__) from None
    if not isinstance(content, dict):
        raise SecretUnreadable("no JSON object")
    return {name: value for name, value in content.items() if isinstance(value, str)}
