-- The keys at OpenRouter, by their hashes, and their secrets, sealed.
--
-- A user has one live key; while it is being replaced, a second one that retires: it only finishes what it began.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

create table if not exists public.openrouter_user_keys (
  -- OpenRouter's name for the key: SHA-256 of the secret, in hex.
  key_hash text primary key check (key_hash ~ '^[0-9a-f]{64}$'),
  user_id uuid not null,
  key_name text not null,
  -- OpenRouter's preview of the secret, such as sk-or-v1-abc...123.
  key_label text,
  -- The lifetime cap last confirmed by OpenRouter; null: no cap.
  limit_micros bigint,
  status text not null default 'active' check (status in ('active', 'disabled', 'deleted')),
  -- The attempt that made it.
  attempt integer not null,
  -- Provider cost that the ledger has charged to this key, exact; but for what its user's account has counted for it while
  -- it was, or is, the one in use: that is added when it ceases to be. doorkey.key_costs has the sum.
  charged_cost_micros numeric not null default 0 check (charged_cost_micros >= 0),
  -- What OpenRouter said it had spent in its life when it last took a change, rounded up.
  reported_usage_micros bigint not null default 0,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  -- Another key took its place: it is deleted at this time, and may not spend anything new until then.
  retires_at timestamptz,
  -- A worker that was taken over may have done to it at OpenRouter what nobody wants any more, and may have died of
  -- it: at this time it is set once more, to be sure.
  confirm_at timestamptz,
  -- Somebody whose time was over has set it: now it is to be set again, whatever we think it is. That others may yet act is
  -- another matter, and no reason to forget them.
  is_doubtful boolean not null default false,
  deleted_at timestamptz,
  -- (Of what is null, the least takes no notice.)
  constraint figures_are_possible check (
    least(limit_micros, reported_usage_micros, attempt - 1, length(key_name) - 1, 200 - length(key_name)) >= 0),
  check ((status = 'deleted') = (deleted_at is not null))
);
comment on table public.openrouter_user_keys is 'The OpenRouter keys of each user, without their secrets.';
-- Two keys in use, or two that retire, cannot be stored for one user; deleted ones are as many as they are. One index and
-- not one for each: each would cost every signup a random page more, which among many users is logged whole.
create unique index if not exists openrouter_user_keys_one_each
  on public.openrouter_user_keys (
    user_id, (case when status = 'deleted' then key_hash when retires_at is null then 'in use' else 'retiring' end));
alter table public.openrouter_user_keys enable row level security;
revoke all on table public.openrouter_user_keys from public, anon, authenticated, service_role;
grant select (key_hash, user_id, key_name, key_label, limit_micros, status, created_at, updated_at, retires_at, deleted_at)
  on table public.openrouter_user_keys to authenticated;
grant select on table public.openrouter_user_keys to service_role;

do $$
begin
  if not exists (select from pg_catalog.pg_policies where schemaname = 'public'
                 and tablename = 'openrouter_user_keys' and policyname = 'Users may read their own keys') then
    create policy "Users may read their own keys" on public.openrouter_user_keys
      for select to authenticated using ((select auth.uid()) = user_id);
  end if;
end
$$;

-- Ciphertext only: the database never sees a key, and the sealing keys never reach the database.
create table if not exists doorkey.sealed_secrets (
  key_hash text primary key references public.openrouter_user_keys (key_hash),
  sealed_secret text not null check (sealed_secret ~ '^v1\.[a-z0-9]+\.[A-Za-z0-9_-]+$'),
  -- When the user was first shown it.
  revealed_at timestamptz,
  created_at timestamptz not null default now()
);
alter table doorkey.sealed_secrets enable row level security;
revoke all on table doorkey.sealed_secrets from public, anon, authenticated, service_role;
