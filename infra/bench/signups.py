"""What our triggers cost a signup: inserts per second beside the pattern that most projects have.

That pattern is two triggers: one inserts a profile, as Supabase's guide has it, and one is a Database Webhook, which
posts the whole row. Both databases are on one server, and pg_net's queue is filled and not emptied in both.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import NamedTemporaryFile

from infra.bench.measuring import Effort, Measured
from infra.bench.pgbench import transactions_per_second
from infra.bench.places import durable_server, install_doorkey, new_database, run_sql
from infra.local.scratch import ScratchServer

RUN_SECONDS = 2
QUICK_RUN_SECONDS = 1
PAIRS = 25

# A signup that is confirmed at once, with what Auth writes into such a row.
INSERT = """
insert into auth.users (id, aud, role, email, encrypted_password, email_confirmed_at, raw_app_meta_data,
                        raw_user_meta_data, created_at, updated_at)
values (gen_random_uuid(), 'authenticated', 'authenticated',
        gen_random_uuid() || '@example.com', '$2a$10$ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefghijklmnopq', now(),
        '{"provider": "email", "providers": ["email"]}', '{"full_name": "Ada Lovelace"}', now(), now());
"""

STOCK = """
create table public.profiles (
  id uuid primary key references auth.users (id) on delete cascade, email text, full_name text,
  updated_at timestamptz not null default now()
);
alter table public.profiles enable row level security;
create function public.handle_new_user() returns trigger
language plpgsql security definer set search_path = ''
as $$
begin
  insert into public.profiles (id, email, full_name) values (new.id, new.email, new.raw_user_meta_data ->> 'full_name');
  return new;
end
$$;
create trigger on_auth_user_created after insert on auth.users
  for each row execute function public.handle_new_user();
create function public.post_whole_row() returns trigger
language plpgsql security definer set search_path = ''
as $$
begin
  perform net.http_post(
    url := 'http://127.0.0.1:9/webhooks/supabase',
    body := jsonb_build_object('type', tg_op, 'table', tg_table_name, 'schema', tg_table_schema,
                               'record', to_jsonb(new), 'old_record', null),
    headers := '{"Content-Type": "application/json", "X-Webhook-Secret": "a-secret-of-twenty-letters"}',
    timeout_milliseconds := 1000);
  return new;
end
$$;
create trigger user_webhook after insert on auth.users for each row execute function public.post_whole_row();
"""


async def measure(effort: Effort) -> Measured:
    """Runs pgbench in turns against the two databases."""
    seconds = effort.size(RUN_SECONDS, QUICK_RUN_SECONDS)
    async with durable_server() as server:
        await new_database(server, "ours")
        await install_doorkey(server, "ours")
        await new_database(server, "stock")
        await run_sql(server.url("postgres", "stock"), STOCK)
        with NamedTemporaryFile("w", prefix="doorkey-bench-", suffix=".sql") as script:
            script.write(INSERT)
            script.flush()
            return await effort.pairs(
                effort.size(PAIRS, 1),
                lambda: _inserts_per_second(server, "ours", Path(script.name), seconds),
                lambda: _inserts_per_second(server, "stock", Path(script.name), seconds),
            )


async def _inserts_per_second(server: ScratchServer, database: str, script: Path, seconds: int) -> float:
    return await transactions_per_second(
        server, database, f"--file={script}", user="supabase_auth_admin", seconds=seconds
    )
