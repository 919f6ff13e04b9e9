-- The ledger: double entry, in micro-dollars, append only.
--
-- A transaction is one row in `public.credit_transactions` (people read their own): what it moves in each of the user's
-- accounts, and the system's account that the sum comes out of. So its entries sum to zero, whatever anybody writes; as
-- rows they are `doorkey.ledger_entries`. `public.credit_accounts` caches each user's balances; one trigger keeps it, and
-- its checks are what makes an overdraft impossible. Lock order everywhere: provisioning row, then account, then lots.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

do $$
begin
  if to_regtype('doorkey.system_account') is null then
    -- Where credits come from, and where they end.
    create type doorkey.system_account as enum ('granted', 'spent', 'expired');
  end if;
  if to_regtype('doorkey.transaction_type') is null then
    create type doorkey.transaction_type as enum (
      'purchase',    -- paid for
      'bonus',       -- a present
      'refund',      -- what was paid for is paid back, and its credits are taken
      'adjustment',  -- something is put right
      'usage',       -- what calls cost
      'expiry',      -- the time of a lot is over
      'renewal'      -- the allowance of a period
    );
  end if;
end
$$;

create table if not exists public.credit_accounts (
  -- Bare on purpose, here and below: money outlives the user.
  user_id uuid primary key,
  plan_id text not null references public.plans (id),
  -- By which others say at their signup that this user brought them.
  referral_code text,
  -- What is spendable: what nobody has put aside, and what open holds keep. A hold moves it from one to the other and is
  -- no posting: nothing was spent yet.
  available_micros bigint not null default 0 check (available_micros >= 0),
  held_micros bigint not null default 0 check (held_micros >= 0),
  leaving_micros bigint not null default 0 check (leaving_micros >= 0),
  -- What the user owes: minus the sum of their entries in that account.
  debt_micros bigint not null default 0 check (debt_micros >= 0),
  receivable_micros bigint not null default 0 check (receivable_micros >= 0),
  -- What calls have cost beyond the whole micro-dollars posted so far: the next charge takes it up.
  remainder_micros numeric not null default 0 check (remainder_micros >= 0 and remainder_micros < 1),
  -- What calls through the key in use have cost the provider, exact. It stands here because a charge writes this row
  -- anyway: the key's own row hears of it when another takes its place, or none. doorkey.key_costs has both.
  key_cost_micros numeric not null default 0 check (key_cost_micros >= 0),
  period_started_at timestamptz,
  period_ends_at timestamptz,
  -- How many periods have begun: so each has a name of its own, whatever the clock says.
  period_number integer not null default 0 check (period_number >= 0),
  -- The plan that the next period begins with; null: the same.
  pending_plan_id text references public.plans (id),
  -- What a change to a smaller plan could not take back of this period's allowance, because it was spent: a change to a
  -- larger one brings so much less.
  unreturned_micros bigint not null default 0 check (unreturned_micros >= 0),
  -- What has been charged since the period began: what the plan's cap is about.
  period_spent_micros bigint not null default 0,
  -- The last transaction before that: what was posted late counts where it was posted.
  period_after_transaction_id bigint not null default 0,
  -- The last that was posted. Whoever posts has locked the account before the number is drawn, and keeps it until the end:
  -- so nothing of this user with a lower number is yet to come, though other users' may be.
  last_transaction_id bigint not null default 0,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  check ((period_started_at is null) = (period_ends_at is null)),
  check (period_ends_at > period_started_at)
);
comment on table public.credit_accounts is 'Balances of each user in micro-dollars: a cache of doorkey.ledger_entries.';
-- "Who is on this plan: who never had a period, and whose lies far ahead?"
create index if not exists credit_accounts_plan on public.credit_accounts (plan_id, period_ends_at);
create unique index if not exists credit_accounts_referral_code
  on public.credit_accounts (referral_code) where referral_code is not null;
create index if not exists credit_accounts_pending_plan on public.credit_accounts (pending_plan_id)
  where pending_plan_id is not null;
-- "Whose period is over?"
create index if not exists credit_accounts_period on public.credit_accounts (period_ends_at) where period_ends_at is not null;
alter table public.credit_accounts enable row level security;
revoke all on table public.credit_accounts from public, anon, authenticated, service_role;
grant select on table public.credit_accounts to authenticated, service_role;

create table if not exists public.credit_transactions (
  id bigint generated always as identity primary key,
  user_id uuid not null references public.credit_accounts (user_id),
  type doorkey.transaction_type not null,
  -- What it does to the sum of the user's accounts, and to each: what they may spend (with what open holds keep of it), what
  -- is on its way out until the key's limit is lowered, what they owe (with a minus), what an uncapped plan will bill
  -- (likewise). The system's account has the opposite of the sum.
  amount_micros bigint not null,
  spendable_micros bigint not null default 0,
  leaving_micros bigint not null default 0,
  debt_micros bigint not null default 0,
  receivable_micros bigint not null default 0,
  system_account doorkey.system_account not null,
  -- What an open hold kept for it, what it carries to the next charge (null: what was carried before), and what it cost the
  -- provider, if it went through the key in use.
  released_micros bigint not null default 0,
  remainder_micros numeric,
  key_cost_micros numeric not null default 0,
  -- Repeating a request repeats its key: unique per type, and written with the effect. (How long a text may be is said by
  -- its type, and what types there are by theirs: checks are read anew for each call.)
  idempotency_key varchar(200) not null,
  reason varchar(500) not null,
  actor varchar(200) not null,
  provider text,
  model text,
  request_id text,
  created_at timestamptz not null default now(),
  constraint credit_transactions_once unique (type, idempotency_key),
  constraint entries_sum_to_zero check (
    amount_micros = spendable_micros + leaving_micros + debt_micros + receivable_micros),
  -- (The empty text is the least of all.)
  constraint says_why_and_who check (least(idempotency_key, reason, actor) <> '')
);
comment on table public.credit_transactions is 'What happened to each user''s credits. Append only.';
-- Pages of one's transactions, of one type or merged from all, and what was used on a day.
create index if not exists credit_transactions_user
  on public.credit_transactions (user_id, type, created_at desc, id desc);
alter table public.credit_transactions enable row level security;
revoke all on table public.credit_transactions from public, anon, authenticated, service_role;
grant select (id, user_id, type, amount_micros, reason, provider, model, created_at)
  on table public.credit_transactions to authenticated;
grant select on table public.credit_transactions to service_role;
-- Identity sequences are objects of their own, and default privileges give them away too.
revoke all on sequence public.credit_transactions_id_seq from public, anon, authenticated, service_role;

do $$
begin
  if not exists (select from pg_catalog.pg_policies where schemaname = 'public'
                 and tablename = 'credit_accounts' and policyname = 'Users may read their own account') then
    create policy "Users may read their own account" on public.credit_accounts
      for select to authenticated using ((select auth.uid()) = user_id);
  end if;
  if not exists (select from pg_catalog.pg_policies where schemaname = 'public'
                 and tablename = 'credit_transactions' and policyname = 'Users may read their own transactions') then
    create policy "Users may read their own transactions" on public.credit_transactions
      for select to authenticated using ((select auth.uid()) = user_id);
  end if;
end
$$;

-- Every transaction's entries, a row for each account that it moves.
create or replace view doorkey.ledger_entries with (security_invoker = true) as
  select t.id as transaction_id, e.account, e.amount_micros
    from public.credit_transactions as t
   cross join lateral (values ('spendable', t.spendable_micros), ('leaving', t.leaving_micros), ('debt', t.debt_micros),
                              ('receivable', t.receivable_micros), (t.system_account::text, -t.amount_micros))
           as e (account, amount_micros)
   where e.amount_micros <> 0;
revoke all on table doorkey.ledger_entries from public, anon, authenticated, service_role;

-- A grant is a lot. Lots are spent by priority, then expiry, then id.
create table if not exists doorkey.credit_lots (
  id bigint generated always as identity primary key,
  user_id uuid not null references public.credit_accounts (user_id),
  transaction_id bigint not null unique references public.credit_transactions (id),
  amount_micros bigint not null,
  remaining_micros bigint not null,
  -- What was taken of it, because it expired or an operator took it back.
  withdrawn_micros bigint not null default 0,
  priority smallint not null default 100,
  expires_at timestamptz,
  -- A column, and not an expression in the indexes: so spending from a lot writes to none of them.
  is_empty boolean not null generated always as (remaining_micros = 0) stored,
  -- What a period brings: it ends with the period.
  is_allowance boolean not null default false check (not is_allowance or expires_at is not null),
  created_at timestamptz not null default now(),
  constraint parts_are_possible check (
    least(amount_micros - 1, remaining_micros, withdrawn_micros, amount_micros - remaining_micros - withdrawn_micros) >= 0)
);
-- A user's lots, and of these the ones that have something left, in the order in which they are spent.
create index if not exists credit_lots_user
  on doorkey.credit_lots (user_id, is_empty, priority, expires_at nulls last, id);
create index if not exists credit_lots_expiring
  on doorkey.credit_lots (expires_at) where not is_empty;
alter table doorkey.credit_lots enable row level security;
revoke all on table doorkey.credit_lots from public, anon, authenticated, service_role;
revoke all on sequence doorkey.credit_lots_id_seq from public, anon, authenticated, service_role;

-- Each transaction moves the cached balances of its user: once, and in the order of their numbers.
create or replace function doorkey.apply_transaction() returns trigger
language plpgsql security definer set search_path = ''
as $$
begin
  update public.credit_accounts as c
     set available_micros = c.available_micros + new.spendable_micros + new.released_micros,
         held_micros = c.held_micros - new.released_micros,
         leaving_micros = c.leaving_micros + new.leaving_micros,
         debt_micros = c.debt_micros - new.debt_micros,
         receivable_micros = c.receivable_micros - new.receivable_micros,
         remainder_micros = coalesce(new.remainder_micros, c.remainder_micros),
         key_cost_micros = c.key_cost_micros + new.key_cost_micros,
         period_spent_micros = c.period_spent_micros
           - case new.system_account when 'spent' then new.amount_micros else 0 end,
         last_transaction_id = new.id,
         updated_at = now()
   where c.user_id = new.user_id and c.last_transaction_id < new.id;
  if not found then
    raise exception 'ledger_out_of_order'
      using detail = 'Whoever posts locks the account before the number is drawn.';
  end if;
  return null;
end
$$;
revoke all on function doorkey.apply_transaction() from public, anon, authenticated, service_role;
create or replace trigger apply_transaction after insert on public.credit_transactions
  for each row execute function doorkey.apply_transaction();

create or replace function doorkey.refuse_rewriting() returns trigger
language plpgsql set search_path = ''
as $$
begin
  raise exception 'ledger_is_append_only'
    using detail = 'Post a new transaction that reverses the old one.';
end
$$;
revoke all on function doorkey.refuse_rewriting() from public, anon, authenticated, service_role;
create or replace trigger refuse_rewriting before update or delete or truncate on public.credit_transactions
  for each statement execute function doorkey.refuse_rewriting();

-- The user's account, locked until the transaction ends: whoever changes money or switches keys passes here, one after
-- the other. Not `for update`: that would wait for, and hold up, whoever only refers to the account.
create or replace function doorkey.lock_account(p_user_id uuid) returns public.credit_accounts
language plpgsql security definer set search_path = ''
as $$
declare
  v_account public.credit_accounts;
begin
  select * into v_account from public.credit_accounts as a where a.user_id = p_user_id for no key update;
  if not found then
    raise sqlstate 'PT404' using message = 'profile_not_found', hint = 'This user has no account.';
  end if;
  return v_account;
end
$$;
revoke all on function doorkey.lock_account(uuid) from public, anon, authenticated, service_role;

-- Gives the user credits as a new lot, less what they owe, which is paid first; returns the transaction. A repeat with the same content returns the first
-- one, with other content it is refused. The caller sees to it that the key's limit follows.
create or replace function doorkey.post_grant(
  p_user_id uuid, p_type doorkey.transaction_type, p_amount_micros bigint, p_idempotency_key text, p_reason text,
  p_actor text, p_expires_at timestamptz, p_priority smallint, p_request_id text
) returns bigint
language plpgsql security definer set search_path = ''
as $$
declare
  v_id bigint;
  v_known public.credit_transactions;
  v_owed bigint;
begin
  if p_amount_micros is null or p_amount_micros <= 0 then
    raise sqlstate 'PT422' using message = 'amount_not_positive', hint = 'Grant a positive number of micro-dollars.';
  end if;
  v_owed := least((doorkey.lock_account(p_user_id)).debt_micros, p_amount_micros);
  insert into public.credit_transactions
    (user_id, type, amount_micros, spendable_micros, debt_micros, system_account, idempotency_key, reason, actor, request_id)
  values (p_user_id, p_type, p_amount_micros, p_amount_micros - v_owed, v_owed, 'granted', p_idempotency_key, p_reason,
          p_actor, p_request_id)
  on conflict on constraint credit_transactions_once do nothing
  returning id into v_id;
  if v_id is null then
    select * into strict v_known from public.credit_transactions
     where type = p_type and idempotency_key = p_idempotency_key;
    if (v_known.user_id, v_known.amount_micros, v_known.reason) is distinct from (p_user_id, p_amount_micros, p_reason) then
      raise sqlstate 'PT409' using message = 'idempotency_conflict',
        hint = 'This key was used for another content. Use a new key for a new grant.';
    end if;
    return v_known.id;
  end if;
  insert into doorkey.credit_lots (user_id, transaction_id, amount_micros, remaining_micros, priority, expires_at)
  values (p_user_id, v_id, p_amount_micros, p_amount_micros - v_owed, p_priority, p_expires_at);
  return v_id;
end
$$;
revoke all on function doorkey.post_grant(uuid, doorkey.transaction_type, bigint, text, text, text, timestamptz, smallint, text)
  from public, anon, authenticated, service_role;

-- Opens the user's account on the default plan and greets them, once in their life.
create or replace function doorkey.welcome(p_user_id uuid, p_actor text, p_request_id text) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  v_plan public.plans;
  v_held_reasons text[];
  v_key constant text := 'welcome:' || p_user_id;
begin
  insert into public.credit_accounts (user_id, plan_id, referral_code)
  select p_user_id, s.default_plan_id,
         case when s.referral_bonus_micros is not null then left(md5(gen_random_uuid()::text), 16) end
    from doorkey.settings as s
  on conflict (user_id) do nothing;
  -- On a plan with periods, the first one begins.
  if found and exists (
    select from doorkey.settings as s join public.plans as p on p.id = s.default_plan_id where p.period_days is not null
  ) then
    perform doorkey.begin_periods(array[p_user_id], p_actor, p_request_id);
  end if;
  -- Asked before posting: the plan's welcome may have changed since, and the first one counts. One that is held is one.
  if exists (select from public.credit_transactions where type = 'bonus' and idempotency_key = v_key) then
    return;
  end if;
  select case w.review when 'held' then w.review_reasons end into v_held_reasons
    from doorkey.welcomes as w where w.user_id = p_user_id;
  if found then
    if 'anonymous' = any (v_held_reasons) then
      perform doorkey.review_converted(p_user_id, p_actor, p_request_id);
    end if;
    return;
  end if;
  select p.* into strict v_plan
    from public.credit_accounts as a join public.plans as p on p.id = a.plan_id
   where a.user_id = p_user_id;
  if (select s.welcome_offers or s.reviews_mail or s.reviews_same_person
             or num_nonnulls(s.welcome_experiment, s.referral_bonus_micros, s.welcome_at_once_percent,
                             s.max_signups_per_range) > 0
        from doorkey.settings as s) then
    perform doorkey.offer_welcome(p_user_id, v_plan, p_actor, p_request_id);
  elsif v_plan.welcome_credits_micros > 0 then
    perform doorkey.post_grant(
      p_user_id, 'bonus', v_plan.welcome_credits_micros, v_key, 'Welcome credits', p_actor,
      now() + make_interval(days => v_plan.welcome_credits_days), 50::smallint, p_request_id);
  else
    -- Nothing is a welcome too: an offer that comes later is for those who come later.
    insert into doorkey.welcomes (user_id, amount_micros, review) values (p_user_id, 0, 'none');
  end if;
end
$$;
revoke all on function doorkey.welcome(uuid, text, text) from public, anon, authenticated, service_role;
