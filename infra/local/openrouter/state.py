"""The file that outlives the process: one SQLite database, written by one process.

A commit is in the operating system's hands before the answer is sent, so a SIGKILL right after
the answer loses nothing. It isn't flushed to the disk each time: a power cut may cost the last
moments.
"""

import sqlite3
from pathlib import Path

SCHEMA_VERSION = 2

SCHEMA = """
create table keys (
    position integer primary key autoincrement,  -- order of creation: the list is sorted by it
    hash text not null unique,                   -- sha256 of the whole secret, which isn't kept
    external_hash text unique,                   -- sha256 of a secret that the caller brought
    name text not null,
    label text not null,
    disabled integer not null default 0 check (disabled in (0, 1)),
    limit_usd real check (limit_usd >= 0),
    limit_reset text check (limit_reset in ('daily', 'weekly', 'monthly')),
    include_byok_in_limit integer not null default 0 check (include_byok_in_limit in (0, 1)),
    created_at text not null,
    updated_at text,
    expires_at text,
    last_used_at text,
    creator_user_id text,
    workspace_id text not null,
    external_user text
);
-- The sums that every key answer shows. They outlive the key: the account has spent the money.
create table usage_days (
    key_hash text not null,
    day text not null,
    shown_from text not null,                    -- '' for what showed at once
    nanos integer not null,
    byok_nanos integer not null,
    primary key (key_hash, day, shown_from)
) without rowid;
create table generations (
    id text primary key,
    key_hash text not null,
    workspace_id text not null,
    created_at text not null,
    day text not null,
    model text not null,
    streamed integer not null,
    prompt_tokens integer not null,
    completion_tokens integer not null,
    nanos integer not null,
    byok_nanos integer not null,
    finish_reason text not null,
    external_user text,
    http_referer text,
    user_agent text
) without rowid;
create index generations_by_day on generations (day, model);
"""


class StateError(Exception):
    """The state file cannot be used; the message is one sentence for a person."""


def open_state(path: Path | None) -> sqlite3.Connection:
    """Opens the database, makes its tables on first use, and keeps every other process out.

    Raises StateError when the file is in use, of another version, or no database at all.
    """
    try:
        connection = sqlite3.connect(path or ":memory:", timeout=0, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("pragma locking_mode = exclusive")
        version = connection.execute("pragma user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            connection.close()
            raise StateError(f"The state file {path} was written by another version; remove it.")
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        if version == 0:
            connection.executescript(f"begin; {SCHEMA} pragma user_version = {SCHEMA_VERSION}; commit;")
    except sqlite3.OperationalError as error:
        raise StateError(f"The state file {path} cannot be opened: {error}.") from error
    except sqlite3.DatabaseError as error:
        raise StateError(f"The file {path} is not a state file of the simulator.") from error
    return connection
