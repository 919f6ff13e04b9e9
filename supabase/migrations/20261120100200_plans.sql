-- Plans: what a user is given, and what a call costs them.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

create table if not exists public.plans (
  id text primary key check (id ~ '^[a-z][a-z0-9_-]{0,62}$'),
  name text not null,
  price_micros bigint not null default 0 check (price_micros >= 0),
  -- Length of a period, and what each period brings. No period: a plan that is granted once.
  period_days integer check (period_days > 0),
  credits_per_period_micros bigint not null default 0 check (credits_per_period_micros >= 0),
  -- What a new user on this plan is greeted with, once in their life, and how long it lasts.
  welcome_credits_micros bigint not null default 0 check (welcome_credits_micros >= 0),
  welcome_credits_days integer check (welcome_credits_days > 0),
  -- The user pays the provider's cost times this. Below 1 a key could outspend its ledger.
  markup numeric(9, 6) not null default 1 check (markup >= 1),
  -- No cap: the key has no limit at OpenRouter and use is posted to `receivable`.
  is_uncapped boolean not null default false,
  is_active boolean not null default true,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  check ((credits_per_period_micros > 0) <= (period_days is not null))
);
comment on table public.plans is 'Plans of doorkey. Money in micro-dollars.';

alter table public.plans enable row level security;
revoke all on table public.plans from public, anon, authenticated, service_role;
grant select on table public.plans to anon, authenticated, service_role;

do $$
begin
  if not exists (select from pg_catalog.pg_policies
                 where schemaname = 'public' and tablename = 'plans' and policyname = 'Anyone may read active plans') then
    create policy "Anyone may read active plans" on public.plans
      for select to anon, authenticated using (is_active);
  end if;
end
$$;

insert into public.plans (id, name, welcome_credits_micros, welcome_credits_days)
values ('trial', 'Trial', 5000000, 30)
on conflict (id) do nothing;

do $$
begin
  if not exists (select from pg_catalog.pg_constraint where conname = 'settings_default_plan_id_fkey'
                    and conrelid = 'doorkey.settings'::regclass) then
    alter table doorkey.settings
      add constraint settings_default_plan_id_fkey foreign key (default_plan_id) references public.plans (id);
  end if;
end
$$;
-- So that deleting a plan doesn't read the whole table (lint 0001); one row, but the lint is right on principle.
-- squawk-ignore require-concurrent-index-creation
create index if not exists settings_default_plan on doorkey.settings (default_plan_id);
