-- Plans: what a user is given, and what a call costs them.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

create table if not exists public.plans (
  id text primary key check (id ~ '^[a-z][a-z0-9_-]{0,62}$'),
  name text not null check (name ~ '\S' and length(name) <= 200),
  price_micros bigint not null default 0 check (price_micros between 0 and 1000000000000),
  -- Length of a period, and what each period brings. No period: a plan that is granted once.
  period_days integer check (period_days between 1 and 366),
  credits_per_period_micros bigint not null default 0 check (credits_per_period_micros between 0 and 1000000000000),
  -- The most that a period's calls may cost the user, whatever else they own. Null: all that they have.
  monthly_cap_micros bigint check (monthly_cap_micros between 1 and 1000000000000),
  -- What a new user on this plan is greeted with, once in their life, and how long it lasts.
  welcome_credits_micros bigint not null default 0 check (welcome_credits_micros between 0 and 1000000000000),
  welcome_credits_days integer check (welcome_credits_days between 1 and 36500),
  -- The user pays the provider's cost times this. Below 1 a key could outspend its ledger. (NaN is more than any number.)
  markup numeric(9, 6) not null default 1 check (markup >= 1 and markup < 1000),
  -- Or, where it says `tokens`, so much for 1,000 tokens of either kind.
  charges_by text not null default 'cost' check (charges_by in ('cost', 'tokens')),
  token_price_micros_per_1k bigint check (token_price_micros_per_1k between 1 and 1000000000000),
  -- No cap: the key has no limit at OpenRouter and use is posted to `receivable`.
  is_uncapped boolean not null default false,
  -- What a user may ask for. Null: no limit, or every model.
  requests_per_minute integer check (requests_per_minute > 0),
  requests_per_day integer check (requests_per_day > 0),
  allowed_models text[] check (cardinality(allowed_models) > 0 and array_position(allowed_models, null) is null),
  -- What else comes with it, for the app to read. No code of ours decides by it.
  features jsonb not null default '{}' check (jsonb_typeof(features) = 'object'),
  -- Nobody comes to an inactive plan any more; whoever is on it stays.
  is_active boolean not null default true,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  check ((credits_per_period_micros > 0) <= (period_days is not null)),
  check (charges_by <> 'tokens' or token_price_micros_per_1k is not null),
  -- A period is what it is the cap of, and a key without a limit could not keep to it.
  check (monthly_cap_micros is null or (period_days is not null and not is_uncapped))
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

-- To begin with. They are rows to be edited; applied again, the migration leaves them as they are.
insert into public.plans (
  id, name, price_micros, period_days, credits_per_period_micros, welcome_credits_micros, welcome_credits_days,
  token_price_micros_per_1k, is_uncapped
)
values
  ('trial', 'Trial', 0, null, 0, 5000000, 30, 1000, false),
  ('starter', 'Starter', 20000000, 30, 20000000, 0, null, 2000, false),
  ('professional', 'Professional', 60000000, 30, 60000000, 0, null, 5000, false),
  ('enterprise', 'Enterprise', 0, 30, 0, 0, null, 10000, true)
on conflict (id) do nothing;

create or replace trigger note_plan before update on public.plans
  for each row execute function doorkey.note_edit('plan');
-- After, because an insert that meets a plan that is there comes to nothing. (Plans can't be truncated: accounts refer to
-- them, and those go no more than the ledger.)
create or replace trigger note_plan_row after insert or delete on public.plans
  for each row execute function doorkey.note_edit('plan');

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
