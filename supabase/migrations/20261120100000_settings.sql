-- The hidden schema, and what the installation was told.
--
-- Everything internal lives in `doorkey`, which is never among the exposed schemas. Objects are closed by name
-- right where they are made: on hosted Supabase the default privileges grant to anon, authenticated and
-- service_role by name, so a revoke from public alone protects nothing.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- Before anything is made: our tables and doors in `public` have names that the host may have given to its own, and those
-- must not be closed, replaced or filled. (Profiles are the exception; see there.)
do $$
declare
  v_taken text;
  v_marker constant text := obj_description(to_regnamespace('doorkey')::oid, 'pg_namespace');
begin
  if to_regnamespace('doorkey') is not null and v_marker is distinct from 'doorkey: everything internal' then
    raise exception 'doorkey cannot be installed here: a schema called doorkey exists already'
      using hint = 'Rename it, or install doorkey in another project. Nothing was changed.';
  end if;
  select string_agg(format('public.%I', n.name), ', ') into v_taken
    from unnest(array[
           'plans', 'credit_accounts', 'credit_accounts_plan', 'credit_accounts_pending_plan', 'credit_accounts_period',
           'credit_transactions', 'credit_transactions_once',
           'credit_transactions_user', 'openrouter_user_keys', 'openrouter_user_keys_one_each',
           'list_last_words', 'record_last_word', 'report_signups', 'grant_promised_credits', 'list_reviews', 'list_welcome_offers', 'add_welcome_offer', 'end_welcome_offer', 'list_plans', 'set_plan',
           'list_welcome_arms', 'set_welcome_arm', 'list_disposable_domains', 'set_disposable_domain', 'release_welcome', 'claw_back_welcome',
           'claim_provisioning', 'finish_provisioning', 'finish_key_update', 'finish_key_deletion', 'defer_provisioning',
           'hold_provisioning', 'redrive_provisioning', 'start_sweep', 'list_due_provisioning', 'classify_keys', 'recheck_key',
           'get_my_account', 'reveal_key', 'get_doorkey_health', 'request_key_rotation', 'preview_backfill', 'backfill_users',
           'get_backfill_progress', 'get_doorkey_connection', 'store_doorkey_connection', 'count_sealed_secrets',
           'list_sealed_secrets', 'reseal_secrets', 'reserve_credits', 'settle_credits', 'release_credits', 'expire_holds',
           'post_credits', 'reverse_transaction', 'verify_ledger', 'verify_receipts',
           'renew_periods', 'expire_lots', 'change_plan',
           'claim_my_provisioning', 'finish_my_provisioning', 'finish_my_key_update', 'finish_my_key_deletion',
           'defer_my_provisioning', 'hold_my_provisioning', 'recheck_my_key', 'reveal_my_key', 'request_my_key_rotation',
           'reserve_my_credits', 'settle_my_hold', 'release_my_hold', 'list_my_transactions', 'list_transactions', 'get_account', 'get_usage', 'get_my_usage', 'create_my_profile',
           'prove_webhook_secret', 'begin_usage_sync', 'record_usage', 'report_drift'
         ]) as n (name)
   where to_regclass(format('public.%I', n.name)) is not null
      or exists (select from pg_catalog.pg_proc as p
                  where p.pronamespace = 'public'::regnamespace and p.proname = n.name);
  if v_taken is not null and to_regclass('doorkey.settings') is null then
    raise exception 'doorkey cannot be installed here: % exists already', v_taken
      using hint = 'Rename it, or install doorkey in another project. Nothing was changed.';
  end if;
  -- A ledger that was kept when doorkey was uninstalled: back to where people look for it. See supabase/uninstall.sql.
  if to_regclass('doorkey.settings') is null and to_regclass('doorkey.credit_lots') is not null then
    alter table doorkey.plans set schema public;
    alter table doorkey.credit_accounts set schema public;
    alter table doorkey.credit_transactions set schema public;
    alter table doorkey.openrouter_user_keys set schema public;
  end if;
end
$$;

create schema if not exists doorkey;
comment on schema doorkey is 'doorkey: everything internal';
revoke all on schema doorkey from public, anon, authenticated, service_role;
-- The public doors are security invoker: their callers must be able to look up the function behind them.
grant usage on schema doorkey to authenticated, service_role;

create table if not exists doorkey.settings (
  -- One row, ever.
  only_row boolean primary key default true check (only_row),
  -- Users created before this moment are served by a backfill only.
  installed_at timestamptz not null default now(),
  -- When a user becomes due: once an address is confirmed, at once, or never by itself.
  provision_on text not null default 'confirmed' check (provision_on in ('confirmed', 'created', 'manual')),
  provision_anonymous boolean not null default false,
  -- Whether `public.profiles` was made by these migrations. On a table that was there before we
  -- only ever touch our own columns.
  owns_profiles boolean not null default false,
  -- Whether a missing row is inserted into a profiles table that was there before. Only for hosts where nothing else
  -- ever inserts it: an app or a trigger that does so later would stumble over ours.
  fills_host_profiles boolean not null default false,
  -- How often a user may see the secret of their key.
  key_reveal text not null default 'always' check (key_reveal in ('once', 'always')),
  -- How long a key that was replaced may finish what it began, unless the user says otherwise.
  rotation_grace_seconds integer not null default 3600 check (rotation_grace_seconds between 0 and 604800),
  -- What one credit is worth; people see credits, the ledger keeps micro-dollars.
  micros_per_credit bigint not null default 1000000 check (micros_per_credit > 0),
  default_plan_id text not null default 'trial',
  -- At most so many keys are made in any hour; whoever comes later waits. Null: no brake.
  max_keys_per_hour integer default 500 check (max_keys_per_hour > 0),
  -- While OpenRouter refuses everybody (a wrong management key, an empty account) nobody is claimed but one probe a
  -- minute, and no attempts are burnt.
  held_reason text,
  held_until timestamptz,
  -- How many attempts in a row found OpenRouter away, without one success between.
  outage_failures integer not null default 0 check (outage_failures >= 0),
  check ((held_reason is null) = (held_until is null)),
  -- How long the audit log remembers.
  audit_days integer not null default 365 check (audit_days > 0),
  -- Where the sweep has come in its walk round auth.users, and when it last began.
  sweep_cursor uuid,
  heal_cursor uuid,
  last_sweep_at timestamptz,
  -- Where the doorbell rings, and what signs the ring (Standard Webhooks: whsec_ + base64 of 24 to 64 bytes).
  -- The secret opens nothing by itself: a ring only asks to do what the database already says is due.
  webhook_url text check (webhook_url ~ '^https?://'),
  webhook_secret text check (webhook_secret ~ '^whsec_[A-Za-z0-9+/]{32,88}={0,2}$')
);
alter table doorkey.settings enable row level security;
revoke all on table doorkey.settings from public, anon, authenticated, service_role;

insert into doorkey.settings default values on conflict do nothing;
