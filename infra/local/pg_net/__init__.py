"""A stand-in for the Postgres extension pg_net 0.20.4, for servers without it (supabase.md 1).

Two halves: ``schema.sql`` makes the schema ``net`` in an ordinary Postgres, and ``python -m
infra.local.pg_net`` is the worker that empties its queue. The surprising thing: the stand-in also
loses, repeats and delays requests where pg_net does, because that is what a caller has to live
with. ``tests/contract/pg_net`` holds both to the same guarantees.

Known differences, all of them outside those guarantees:

- The worker is a client of the database, so a database that is stopped while a batch runs rolls the
  batch back, and its requests are sent again after the start. pg_net makes the server wait. Stop
  the worker first.
- After the worker's death the tables are emptied when the next one starts, and other sessions keep
  their connections. pg_net's death restarts the whole server. A server restarted in between is
  taken for the reason of the death, and the tables keep their rows.
- ``create extension pg_net`` fails: there is no library. A migration guards it by asking
  ``pg_available_extensions``.
- Only http and https URLs are taken, and a header that carries a line break is an error, not a
  second header.
- Connections are not kept alive. libcurl keeps them, and silently sends a request again when a kept
  one is closed without an answer.
- ``net.http_collect_response`` (deprecated) and ``net.wait_until_running`` are not there.
"""

from pathlib import Path

VERSION = "0.20.4"
SCHEMA = Path(__file__).with_name("schema.sql")
