"""Asks the running functions whether they accept a signing secret, and with which sealing keys they run.

A ping is signed like a hint and goes to the same address, so what answers it is what will get the hints. It names no
user and changes nothing.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence

import httpx

from functions.kit.settings import decode_webhook_secret
from functions.web.signatures import sign
from infra.connection.plans import CannotGoOn

PING = json.dumps(
    {"type": "PING", "schema": "doorkey", "table": "settings", "record": None, "old_record": None}
).encode()


class NotAnswered(CannotGoOn):
    """The functions did not accept the ping; the message says what they did."""


async def ping(http: httpx.AsyncClient, webhook_url: str, secrets: Sequence[str]) -> tuple[str, ...]:
    """The ids of the sealing keys that the functions run with, the one that seals first.

    Args:
        http: carries it.
        webhook_url: where.
        secrets: any of which the functions must accept.

    Raises:
        NotAnswered: they don't, or something else is there, or nothing.
    """
    message_id, timestamp = f"msg_{uuid.uuid4()}", int(time.time())
    headers = {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(
            sign(decode_webhook_secret(secret), message_id, timestamp, PING) for secret in secrets
        ),
    }
    try:
        answer = await http.post(webhook_url, content=PING, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NotAnswered(f"Nothing answers at {webhook_url} ({type(error).__name__}).") from None
    if answer.status_code == 401:
        raise NotAnswered(
            f"The functions at {webhook_url} don't accept the signing secret (or a clock is wrong by minutes)."
        )
    try:
        body = answer.json()
        if answer.status_code == 200 and body["outcome"] == "pong":
            return tuple(str(key_id) for key_id in body["sealing_key_ids"])
    except (ValueError, KeyError, TypeError):
        pass
    raise NotAnswered(
        f"What answers at {webhook_url} is not doorkey's webhook, or an older one ({answer.status_code})."
    )
