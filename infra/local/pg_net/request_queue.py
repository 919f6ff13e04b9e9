"""The worker's SQL: what it takes from the queue and what it leaves behind (supabase.md 1.1).

The surprising thing: taking a request deletes it. Only the open transaction remembers it until the
answer is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

BATCH_SIZE = 200
TTL_HOURS = 6

_DELETE_EXPIRED = """
    delete from net._http_response
    where ctid = any (array(
        select ctid from net._http_response
        where created < now() - make_interval(hours => %(hours)s)
        order by created limit %(limit)s
    ))
"""

# By id, not by age: sequence numbers are what pg_net orders by. The outer order is lost in
# "returning".
_TAKE = """
    with taken as (
        delete from net.http_request_queue
        where id = any (array(select id from net.http_request_queue order by id limit %(limit)s))
        returning id, method, url, headers, body, timeout_milliseconds
    )
    select
        id, method, url, body, timeout_milliseconds,
        array(
            select array[key, value] from jsonb_each_text(headers) where value is not null
        ) as headers
    from taken order by id
"""

_STORE = """
    insert into net._http_response
        (id, status_code, content_type, headers, content, timed_out, error_msg)
    values (
        %(id)s, %(status_code)s, %(content_type)s, %(headers)s, %(content)s, %(timed_out)s,
        %(error_msg)s
    )
"""


@dataclass(frozen=True)
class QueuedRequest:
    """One row of ``net.http_request_queue``; headers are name and value in jsonb's order."""

    id: int
    method: str
    url: str
    headers: list[list[str]]
    body: bytes | None
    timeout_milliseconds: int


@dataclass(frozen=True)
class Outcome:
    """What ``net._http_response`` shall say of a request: an answer, or why there is none."""

    id: int
    status_code: int | None = None
    content_type: str | None = None
    headers: dict[str, str] | None = None
    content: str | None = None
    timed_out: bool = False
    error_msg: str | None = None


async def delete_expired(connection: psycopg.AsyncConnection[Any]) -> int:
    """Deletes a batch of responses older than six hours and returns their number."""
    cursor = await connection.execute(_DELETE_EXPIRED, {"hours": TTL_HOURS, "limit": BATCH_SIZE})
    return cursor.rowcount


async def take(connection: psycopg.AsyncConnection[Any]) -> list[QueuedRequest]:
    """Deletes the oldest requests, at most `BATCH_SIZE`, and returns them in order."""
    async with connection.cursor(row_factory=class_row(QueuedRequest)) as cursor:
        await cursor.execute(_TAKE, {"limit": BATCH_SIZE})
        return await cursor.fetchall()


async def store(connection: psycopg.AsyncConnection[Any], outcome: Outcome) -> None:
    """Inserts the response row of a request; ``created`` is the time of the batch's transaction."""
    headers = None if outcome.headers is None else Jsonb(outcome.headers)
    await connection.execute(_STORE, {**vars(outcome), "headers": headers})
