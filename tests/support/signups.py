"""Signups as Auth makes them, by one insert, and the hints that they left in pg_net's queue."""

from __future__ import annotations

import json
import uuid

from tests.support.databases import Database, Row

URL = "https://functions.example.com/webhooks/supabase"
SECRET = "whsec_" + "c2VjcmV0LXNpZ25pbmcta2V5LWZvci10ZXN0cy0wMQ=="
# What users put into their metadata, which is theirs to choose.
HOSTILE = {
    "long": {"full_name": "🦊" * 300, "name": "x"},
    "endless": {"full_name": "a" * 100_000},
    "object": {"full_name": {"first": "Ada"}, "name": {"a": [1]}},
    "array": {"full_name": [1, 2, {"x": None}]},
    "number": {"full_name": 1e300, "name": 7},
    "null": {"full_name": None, "name": None},
    "sql": {"full_name": "'); drop table public.profiles; --", "name": "$$ || pg_sleep(9) || $$"},
    "format": {"full_name": "%s %I %L {0} \\u0041 \\"},
    "controls": {"full_name": "a\r\n\t\x07\u202e\u200bb"},
    "nested": {"full_name": json.loads("[" * 500 + "]" * 500)},
    "megabyte": {"notes": "x" * 1_000_000, "full_name": "Ada"},
    "all_array": [{"full_name": "Ada"}],
    "all_number": 5,
}


async def insert(database: Database, **columns: object) -> uuid.UUID:
    """A user with exactly these columns, in one insert."""
    user_id = uuid.uuid4()
    names = ["id", *columns]
    await database.run(
        f"insert into auth.users ({', '.join(names)}) values ({', '.join(['%s'] * len(names))})",
        (user_id, *columns.values()),
        role="supabase_auth_admin",
    )
    return user_id


async def update(database: Database, user_id: uuid.UUID, assignment: str) -> None:
    await database.run(f"update auth.users set {assignment} where id = %s", (user_id,), role="supabase_auth_admin")


async def rings(database: Database, user_id: uuid.UUID) -> list[Row]:
    """The hints about this user, oldest first; `json` is their body."""
    queued = await database.rows("select * from net.http_request_queue order by id")
    found = [row | {"json": json.loads(row["body"])} for row in queued]
    return [row for row in found if row["json"]["record"]["id"] == str(user_id)]


async def ring_types(database: Database, user_id: uuid.UUID) -> list[str]:
    return [row["json"]["type"] for row in await rings(database, user_id)]
