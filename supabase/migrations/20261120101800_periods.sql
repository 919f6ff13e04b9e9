-- Periods: each brings an allowance and takes it back when it ends; credits that have had their time expire.
--
-- A sweep does it, for many users in a statement, and waits for none of them: whose rows are locked is left to the next
-- one. A period is so many days of 24 hours, whatever calendars and time zones say, and the next one begins where the
-- last one ended. Lock order: account, then the key's row, which is never waited for; whoever waits for the account has it.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- What each lot has that no open hold keeps. Holds keep what would be spent next: a call that began before its credits
-- expired is paid with them. Of few rows, here and below, says the planner: else it reads whole tables to join a page.
create or replace function doorkey.unheld_of_lots(p_user_ids uuid[])
returns table (lot_id bigint, user_id uuid, is_allowance boolean, expires_at timestamptz, unheld_micros bigint)
language sql stable rows 10 security definer set search_path = ''
as $$
  select l.id, l.user_id, l.is_allowance, l.expires_at,
         (l.remaining_micros - least(l.remaining_micros, greatest(
            a.held_micros - (sum(l.remaining_micros) over turn - l.remaining_micros), 0)))::bigint
    from doorkey.credit_lots as l join public.credit_accounts as a on a.user_id = l.user_id
   where l.user_id = any (p_user_ids) and not l.is_empty
  window turn as (partition by l.user_id order by l.priority, l.expires_at nulls last, l.id);
$$;
revoke all on function doorkey.unheld_of_lots(uuid[]) from public, anon, authenticated, service_role;

-- Those of these users whose keys may be worked on: their row of the key is locked now, or they have none.
create or replace function doorkey.lock_keys_of(p_user_ids uuid[]) returns uuid[]
language plpgsql security definer set search_path = ''
as $$
begin
  return array(
    select p.user_id from doorkey.provisioning as p where p.user_id = any (p_user_ids) for update skip locked
  ) || array(
    select u.id from unnest(p_user_ids) as u (id)
     where not exists (select from doorkey.provisioning as p where p.user_id = u.id));
end
$$;
revoke all on function doorkey.lock_keys_of(uuid[]) from public, anon, authenticated, service_role;

-- Takes so much out of each of these lots, each in a transaction of its own. Out at once, where the only key that the user
-- ever had may spend no more than what stays; else to `leaving`, and the caller has it posted out. Accounts and keys are
-- locked by the caller.
create or replace function doorkey.take_from_lots(
  p_lot_ids bigint[], p_amounts_micros bigint[], p_type doorkey.transaction_type, p_reason text, p_actor text,
  p_request_id text
) returns void
language sql security definer set search_path = ''
as $$
  with taken as (
    update doorkey.credit_lots as l
       set remaining_micros = l.remaining_micros - t.micros, withdrawn_micros = l.withdrawn_micros + t.micros
      from unnest(p_lot_ids, p_amounts_micros) as t (lot_id, micros)
     where l.id = t.lot_id and t.micros > 0
    -- What is left of a lot is less each time.
    returning l.id as lot_id, l.user_id, t.micros, format('lot:%s:%s', l.id, l.remaining_micros) as key
  ), kept as (
    select t.*, p.markup, p.is_uncapped, a.key_cost_micros,
           least(a.available_micros + a.held_micros - a.debt_micros - sum(t.micros) over (partition by t.user_id),
                 p.monthly_cap_micros - a.period_spent_micros) - a.remainder_micros as spendable_micros
      from taken as t
      join public.credit_accounts as a on a.user_id = t.user_id
      join public.plans as p on p.id = a.plan_id
  ), going as materialized (
    -- Numbered here: each posting's parts are found without a join.
    select nextval('public.credit_transactions_id_seq') as id, k.*,
           not exists (select from doorkey.provisioning as w where w.user_id = k.user_id and w.state = 'working')
           and (k.is_uncapped or not exists (
             select from public.openrouter_user_keys as o
              where o.user_id = k.user_id
                and (o.status = 'deleted' or o.retires_at is not null or o.confirm_at is not null
                     or o.limit_micros is null
                     or (o.limit_micros - o.charged_cost_micros - k.key_cost_micros) * k.markup > k.spendable_micros))) as is_out
      from (select * from kept order by lot_id) as k
  ), posted as (
    insert into public.credit_transactions
      (id, user_id, type, amount_micros, spendable_micros, leaving_micros, system_account, idempotency_key, reason, actor,
       request_id)
    overriding system value
    select g.id, g.user_id, p_type, case when g.is_out then -g.micros else 0 end, -g.micros,
           case when g.is_out then 0 else g.micros end, (select doorkey.end_of(p_type)), g.key, p_reason, p_actor,
           p_request_id
      from going as g
  )
  insert into doorkey.credit_takings (transaction_id, user_id, lot_id, asked_micros, taken_micros)
  select g.id, g.user_id, g.lot_id, g.micros, g.micros from going as g where not g.is_out;
$$;
revoke all on function doorkey.take_from_lots(bigint[], bigint[], doorkey.transaction_type, text, text, text)
  from public, anon, authenticated, service_role;

-- As post_out_leaving does, for many users in a statement: else each would have the ledger's trigger run for it.
create or replace function doorkey.post_out_leaving_of(p_user_ids uuid[]) returns void
language sql security definer set search_path = ''
as $$
  with posted as (
    insert into public.credit_transactions
      (user_id, type, amount_micros, leaving_micros, system_account, idempotency_key, reason, actor, request_id)
    select t.user_id, t.type, -g.taken_micros, -g.taken_micros, doorkey.end_of(t.type), 'left:' || t.id, t.reason, t.actor,
           t.request_id
      from doorkey.credit_takings as g join public.credit_transactions as t on t.id = g.transaction_id
     where g.user_id = any (p_user_ids) and g.left_transaction_id is null and g.taken_micros > 0
       and not doorkey.is_limit_to_be_lowered(g.user_id)
     order by t.id
    returning id, idempotency_key
  )
  update doorkey.credit_takings as g set left_transaction_id = p.id
    from posted as p where g.transaction_id = split_part(p.idempotency_key, ':', 2)::bigint;
$$;
revoke all on function doorkey.post_out_leaving_of(uuid[]) from public, anon, authenticated, service_role;

-- The period that each user is to be in now, on which plan; null: none, because the plan has none or the user is gone.
-- skipped: how many have passed since their last one without anybody renewing it. An allowance of which nothing was spent,
-- and that is the plan's, is untouched: it need only be moved.
create or replace function doorkey.next_periods(p_user_ids uuid[])
returns table (
  user_id uuid, old_plan_id text, ended_at timestamptz, plan_id text, starts_at timestamptz, ends_at timestamptz,
  skipped integer, is_untouched boolean
)
language sql stable rows 10 security definer set search_path = ''
as $$
  select a.user_id, a.plan_id, a.period_ends_at, p.id, n.starts_at, n.starts_at + d.length, d.skipped,
         n.starts_at is not null and a.period_ends_at is not null and a.pending_plan_id is null and a.debt_micros = 0
           and a.held_micros = 0
           -- Where the plan has a cap, the key's limit may rise by the period's end alone.
           and (p.monthly_cap_micros is null or a.period_spent_micros = 0)
           and coalesce((
             select sum(l.amount_micros) = p.credits_per_period_micros and sum(l.remaining_micros) = sum(l.amount_micros)
               from doorkey.credit_lots as l
              where l.user_id = a.user_id and l.is_allowance and l.expires_at = a.period_ends_at
             having count(*) > 0), p.credits_per_period_micros = 0)
    from public.credit_accounts as a
    join public.plans as p on p.id = coalesce((
      -- Nobody comes to a plan that was closed meanwhile.
      select q.id from public.plans as q where q.id = a.pending_plan_id and q.is_active), a.plan_id)
    left join doorkey.provisioning as w on w.user_id = a.user_id
   cross join lateral (
     select make_interval(hours => 24 * p.period_days) as length,
            greatest(div(extract(epoch from now() - a.period_ends_at), 86400 * p.period_days), 0)::integer as skipped
   ) as d
   cross join lateral (
     select case when p.period_days is not null and w.state is distinct from 'gone'
                 then coalesce(a.period_ends_at + d.skipped * d.length, now()) end as starts_at
   ) as n
   where a.user_id = any (p_user_ids);
$$;
revoke all on function doorkey.next_periods(uuid[]) from public, anon, authenticated, service_role;

-- Begins the next period of each of these users, on the plan that they are to be on: what is left of the last allowance
-- expires, the new one is granted, less what is owed. Without a next period the last one only ends. Accounts and keys are
-- locked by the caller.
create or replace function doorkey.begin_periods(p_user_ids uuid[], p_actor text, p_request_id text) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  v_begun uuid[];
  v_lots bigint[];
  v_amounts bigint[];
begin
  select array_agg(f.lot_id), array_agg(f.unheld_micros) into v_lots, v_amounts
    from doorkey.unheld_of_lots(p_user_ids) as f where f.is_allowance;

  with before as materialized (
    select * from doorkey.next_periods(p_user_ids)
  ), begun as (
    update public.credit_accounts as a
       set plan_id = b.plan_id, pending_plan_id = null, period_started_at = b.starts_at, period_ends_at = b.ends_at,
           period_number = a.period_number + case when b.ends_at is null then 0 else 1 end,
           unreturned_micros = 0, period_spent_micros = 0, period_after_transaction_id = a.last_transaction_id,
           updated_at = now()
      from before as b where a.user_id = b.user_id
  ), noted as (
    select doorkey.write_audit(p_actor, 'plan.changed', b.user_id, p_request_id, jsonb_build_object(
             'when', 'period_end', 'before', jsonb_build_object('plan_id', b.old_plan_id),
             'after', jsonb_build_object('plan_id', b.plan_id)))
      from before as b where b.plan_id <> b.old_plan_id
    union all
    select doorkey.write_audit(p_actor, 'plan.change_dropped', b.user_id, p_request_id,
             jsonb_build_object('plan_id', a.pending_plan_id, 'reason', 'plan_inactive'))
      from before as b join public.credit_accounts as a on a.user_id = b.user_id
     where a.pending_plan_id <> b.plan_id
  )
  select array_agg(b.user_id) filter (where b.ends_at is not null) into v_begun
    from before as b cross join (select count(*) from noted) as n;

  with granted as (
    insert into public.credit_transactions
      (user_id, type, amount_micros, spendable_micros, debt_micros, system_account, idempotency_key, reason, actor, request_id)
    select a.user_id, 'renewal', p.credits_per_period_micros, p.credits_per_period_micros - o.micros, o.micros, 'granted',
           format('period:%s:%s', a.user_id, a.period_number), 'Allowance of ' || p.name, p_actor, p_request_id
      from public.credit_accounts as a
      join public.plans as p on p.id = a.plan_id
     cross join lateral (select least(a.debt_micros, p.credits_per_period_micros) as micros) as o
     where a.user_id = any (v_begun) and p.credits_per_period_micros > 0
    -- Never twice for one period, whatever happens to the account.
    on conflict on constraint credit_transactions_once do nothing
    returning id, user_id, amount_micros, spendable_micros
  )
  insert into doorkey.credit_lots
    (user_id, transaction_id, amount_micros, remaining_micros, priority, expires_at, is_allowance)
  -- Spent after the welcome, which expires too, and before what was paid for.
  select g.user_id, g.id, g.amount_micros, g.spendable_micros, 75, a.period_ends_at, true
    from granted as g join public.credit_accounts as a on a.user_id = g.user_id;

  -- After the grant: what the new allowance makes up for need not wait for the key.
  perform doorkey.take_from_lots(v_lots, v_amounts, 'expiry', 'End of the period', p_actor, p_request_id);
  perform doorkey.want_of(p_user_ids);
  perform doorkey.post_out_leaving_of(p_user_ids);
end
$$;
revoke all on function doorkey.begin_periods(uuid[], text, text) from public, anon, authenticated, service_role;

-- Sets right whose period lies in the future by more than a period: a clock was ahead when it was renewed. It moves back
-- by whole periods, to be the next one, and brings nothing: what is granted early is granted once.
create or replace function doorkey.move_periods_back(p_rows integer, p_request_id text) returns void
language sql security definer set search_path = ''
as $$
  with ahead as materialized (
    select a.user_id, a.period_ends_at,
           make_interval(hours => 24 * p.period_days)
           * (ceil(extract(epoch from a.period_started_at - now()) / (86400 * p.period_days)) - 1)::integer as back
      from public.plans as p
     -- For each plan by itself: joined, all accounts would be read to find none.
     cross join lateral (
       select c.user_id, c.period_started_at, c.period_ends_at from public.credit_accounts as c
        where c.plan_id = p.id and c.period_ends_at > now() + make_interval(hours => 24 * p.period_days)
          and c.period_started_at > now() + make_interval(hours => 24 * p.period_days)
        order by c.period_ends_at desc limit p_rows
          for no key update skip locked) as a
     limit p_rows
  ), moved as (
    update public.credit_accounts as a
       set period_started_at = a.period_started_at - m.back, period_ends_at = a.period_ends_at - m.back, updated_at = now()
      from ahead as m where a.user_id = m.user_id
  ), lots as (
    update doorkey.credit_lots as l set expires_at = l.expires_at - m.back
      from ahead as m where l.user_id = m.user_id and l.is_allowance and l.expires_at = m.period_ends_at
  )
  select doorkey.write_audit('sweep', 'period.moved_back', m.user_id, p_request_id, jsonb_build_object(
           'before', m.period_ends_at, 'after', m.period_ends_at - m.back)) from ahead as m;
$$;
revoke all on function doorkey.move_periods_back(integer, text) from public, anon, authenticated, service_role;

-- Renews periods that are over, the longest over first, and begins those of accounts that never had one though their plan
-- has; how many. An allowance of which nothing was spent only moves.
create or replace function doorkey.renew_periods(p_rows integer, p_request_id text) returns integer
language plpgsql security definer set search_path = ''
as $$
declare
  v_due uuid[];
  v_touched uuid[];
  v_count integer;
begin
  if p_rows is null or p_rows not between 1 and 1000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Renew 1 to 1000 periods at a time.';
  end if;
  perform doorkey.move_periods_back(p_rows, p_request_id);
  select coalesce(array_agg(d.user_id), '{}') into v_due from (
    select a.user_id from public.credit_accounts as a
     where a.period_ends_at <= now() order by a.period_ends_at limit p_rows for no key update skip locked) as d;
  select v_due || coalesce(array_agg(d.user_id), '{}') into v_due from (
    select c.user_id
      from public.plans as p
     -- For each plan by itself, and by the index in its order: else all accounts would be read to find none.
     cross join lateral (
       select a.user_id from public.credit_accounts as a
        where a.plan_id = p.id and a.period_ends_at is null
          and (select w.state from doorkey.provisioning as w where w.user_id = a.user_id) is distinct from 'gone'
        order by a.period_ends_at limit p_rows - cardinality(v_due)
          for no key update skip locked) as c
     where p.period_days is not null
     limit p_rows - cardinality(v_due)) as d;
  if cardinality(v_due) = 0 then
    return 0;
  end if;
  -- In a statement of its own: what it reads is what there is since the locks were taken.
  with due as materialized (
    select * from doorkey.next_periods(v_due)
  ), moved as (
    update public.credit_accounts as a
       set period_started_at = d.starts_at, period_ends_at = d.ends_at, period_number = a.period_number + 1,
           unreturned_micros = 0, period_spent_micros = 0, period_after_transaction_id = a.last_transaction_id,
           updated_at = now()
      from due as d where a.user_id = d.user_id and d.is_untouched
  ), lots as (
    update doorkey.credit_lots as l set expires_at = d.ends_at
      from due as d
     where d.is_untouched and l.user_id = d.user_id and l.is_allowance and l.expires_at = d.ended_at
       and not l.is_empty
  ), noted as (
    -- Periods that passed without anybody renewing them bring nothing afterwards.
    select doorkey.write_audit('sweep', 'periods.skipped', d.user_id, p_request_id, jsonb_build_object(
             'periods', d.skipped, 'from', d.ended_at, 'to', d.starts_at))
      from due as d where d.skipped > 0 and d.starts_at is not null
  )
  select count(*) filter (where d.is_untouched), array_agg(d.user_id) filter (where not d.is_untouched)
    into v_count, v_touched
    from due as d cross join (select count(*) from noted) as n;
  if v_touched is not null then
    v_touched := doorkey.lock_keys_of(v_touched);
    perform doorkey.begin_periods(v_touched, 'sweep', p_request_id);
    v_count := v_count + cardinality(v_touched);
  end if;
  perform doorkey.write_audit('sweep', 'periods.renewed', null, p_request_id,
    jsonb_build_object('periods', v_count, 'touched', coalesce(cardinality(v_touched), 0)));
  return v_count;
end
$$;
revoke all on function doorkey.renew_periods(integer, text) from public, anon, authenticated, service_role;
grant execute on function doorkey.renew_periods(integer, text) to service_role;

create or replace function public.renew_periods(renewed_rows integer, request_id text) returns integer
language sql set search_path = ''
as $$ select doorkey.renew_periods($1, $2); $$;
revoke all on function public.renew_periods(integer, text) from public, anon, authenticated, service_role;
grant execute on function public.renew_periods(integer, text) to service_role;

-- Expires what is left of lots that have had their time, the longest over first; of how many. The allowance of a period
-- that is to be renewed is not among them. What an open hold keeps expires when the hold is closed.
create or replace function doorkey.expire_lots(p_rows integer, p_request_id text) returns integer
language plpgsql security definer set search_path = ''
as $$
declare
  v_users uuid[];
  v_lots bigint[];
  v_amounts bigint[];
begin
  if p_rows is null or p_rows not between 1 and 1000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Expire 1 to 1000 lots at a time.';
  end if;
  select array_agg(distinct d.user_id) into v_users from (
    select a.user_id
      from doorkey.credit_lots as l join public.credit_accounts as a on a.user_id = l.user_id
     where not l.is_empty and l.expires_at <= now()
       and not (l.is_allowance and l.expires_at is not distinct from a.period_ends_at)
       and (a.held_micros = 0 or exists (
         select from doorkey.unheld_of_lots(array[a.user_id]) as f where f.lot_id = l.id and f.unheld_micros > 0))
     order by l.expires_at limit p_rows
       for no key update of a skip locked) as d;
  v_users := doorkey.lock_keys_of(v_users);
  select array_agg(f.lot_id), array_agg(f.unheld_micros) into v_lots, v_amounts
    from doorkey.unheld_of_lots(v_users) as f
    join public.credit_accounts as a on a.user_id = f.user_id
   where f.expires_at <= now() and not (f.is_allowance and f.expires_at is not distinct from a.period_ends_at)
     and f.unheld_micros > 0;
  if v_lots is null then
    return 0;
  end if;
  perform doorkey.take_from_lots(v_lots, v_amounts, 'expiry', 'Credits expired', 'sweep', p_request_id);
  select array_agg(distinct l.user_id) into v_users from doorkey.credit_lots as l where l.id = any (v_lots);
  perform doorkey.want_of(v_users);
  perform doorkey.post_out_leaving_of(v_users);
  return cardinality(v_lots);
end
$$;
revoke all on function doorkey.expire_lots(integer, text) from public, anon, authenticated, service_role;
grant execute on function doorkey.expire_lots(integer, text) to service_role;

create or replace function public.expire_lots(expired_rows integer, request_id text) returns integer
language sql set search_path = ''
as $$ select doorkey.expire_lots($1, $2); $$;
revoke all on function public.expire_lots(integer, text) from public, anon, authenticated, service_role;
grant execute on function public.expire_lots(integer, text) to service_role;

-- Each change of a plan that somebody asked for, and what was answered, to answer it again.
create table if not exists doorkey.plan_changes (
  id bigint generated always as identity primary key,
  user_id uuid not null references public.credit_accounts (user_id),
  idempotency_key text not null check (length(idempotency_key) between 1 and 200),
  -- Bare, because it outlives the plans.
  old_plan_id text not null,
  plan_id text not null,
  takes_effect text not null check (takes_effect in ('now', 'period_end')),
  effective_at timestamptz not null,
  period_ends_at timestamptz,
  actor text not null,
  reason text not null,
  request_id text,
  created_at timestamptz not null default now(),
  unique (user_id, idempotency_key)
);
alter table doorkey.plan_changes enable row level security;
revoke all on table doorkey.plan_changes from public, anon, authenticated, service_role;
revoke all on sequence doorkey.plan_changes_id_seq from public, anon, authenticated, service_role;

-- Has the allowance follow a change of plan within a period: what the new plan brings in the days that are left, less what
-- the old one would have. More is given; less is taken from what is neither spent nor held, and what can't be taken is
-- remembered, so that going down and up again wins nothing. Account and key are locked by the caller.
create or replace function doorkey.prorate_allowance(
  p_account public.credit_accounts, p_plan public.plans, p_change_id bigint, p_reason text, p_actor text,
  p_request_id text
) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  v_old public.plans;
  v_days constant numeric := extract(epoch from p_account.period_ends_at - now()) / 86400;
  v_change bigint;
  v_given bigint;
  v_id bigint;
  v_lots bigint[];
  v_amounts bigint[];
  v_taken bigint := 0;
begin
  select * into strict v_old from public.plans as p where p.id = p_account.plan_id;
  v_change := floor(v_days * (coalesce(p_plan.credits_per_period_micros::numeric / p_plan.period_days, 0)
                              - coalesce(v_old.credits_per_period_micros::numeric / v_old.period_days, 0)));
  if v_change > 0 then
    v_given := greatest(v_change - p_account.unreturned_micros, 0);
    update public.credit_accounts as a set unreturned_micros = greatest(a.unreturned_micros - v_change, 0)
     where a.user_id = p_account.user_id;
    if v_given > 0 then
      v_id := doorkey.post_grant(p_account.user_id, 'adjustment', v_given, 'plan:' || p_change_id, p_reason, p_actor,
                                 p_account.period_ends_at, 75::smallint, p_request_id);
      update doorkey.credit_lots as l set is_allowance = true where l.transaction_id = v_id;
    end if;
  elsif v_change < 0 then
    select array_agg(t.lot_id), array_agg(t.micros), coalesce(sum(t.micros), 0) into v_lots, v_amounts, v_taken from (
      select f.lot_id,
             least(f.unheld_micros, greatest(-v_change - (sum(f.unheld_micros) over newest - f.unheld_micros), 0))::bigint
               as micros
        from doorkey.unheld_of_lots(array[p_account.user_id]) as f
       where f.is_allowance and f.expires_at = p_account.period_ends_at
      window newest as (order by f.lot_id desc)) as t;
    perform doorkey.take_from_lots(v_lots, v_amounts, 'adjustment', p_reason, p_actor, p_request_id);
    update public.credit_accounts as a set unreturned_micros = a.unreturned_micros - v_change - v_taken
     where a.user_id = p_account.user_id;
  end if;
end
$$;
revoke all on function doorkey.prorate_allowance(
  public.credit_accounts, public.plans, bigint, text, text, text) from public, anon, authenticated, service_role;

-- Puts the user on another plan: now, or when their period ends. The plan they are on: a change that waits is called off.
-- Asked again with the same content it answers again; a later change replaces one that waits.
create or replace function doorkey.change_plan(
  p_user_id uuid, p_plan_id text, p_when text, p_idempotency_key text, p_actor text, p_reason text, p_request_id text
) returns table (plan_id text, effective_at timestamptz, period_ends_at timestamptz)
language plpgsql security definer set search_path = ''
as $$
declare
  v_plan public.plans;
  v_before public.credit_accounts;
  v_after public.credit_accounts;
  v_change doorkey.plan_changes;
begin
  perform doorkey.check_posting(p_idempotency_key, p_reason, p_actor);
  if p_when is null or p_when not in ('now', 'period_end') then
    raise sqlstate 'PT422' using message = 'posting_invalid', hint = 'A plan changes `now` or at `period_end`.';
  end if;
  perform doorkey.want(p_user_id);
  v_before := doorkey.lock_account(p_user_id);
  select * into v_change from doorkey.plan_changes as c
   where c.user_id = p_user_id and c.idempotency_key = p_idempotency_key;
  if found then
    if (v_change.plan_id, v_change.takes_effect, v_change.reason) is distinct from (p_plan_id, p_when, p_reason) then
      raise sqlstate 'PT409' using message = 'idempotency_conflict',
        hint = 'This key was used for another change. Use a new key for a new one.';
    end if;
    return query select v_change.plan_id, v_change.effective_at, v_change.period_ends_at;
    return;
  end if;
  if v_before.period_ends_at <= now() then
    -- No sweep came by yet. What was to begin then has begun.
    perform doorkey.begin_periods(array[p_user_id], 'credits', p_request_id);
    v_before := doorkey.lock_account(p_user_id);
  end if;
  select * into v_plan from public.plans as p where p.id = p_plan_id;
  if not found then
    raise sqlstate 'PT404' using message = 'unknown_plan', hint = 'There is no such plan.';
  end if;
  if v_plan.id = v_before.plan_id and v_before.pending_plan_id is null then
    raise sqlstate 'PT409' using message = 'plan_unchanged', hint = 'The user is on this plan, and no change waits.';
  end if;
  if not v_plan.is_active and v_plan.id <> v_before.plan_id then
    raise sqlstate 'PT409' using message = 'plan_inactive', hint = 'Nobody comes to this plan any more.';
  end if;
  if not (doorkey.desired_key(p_user_id)).is_present then
    raise sqlstate 'PT410' using message = 'user_gone', hint = 'The user was deleted.';
  end if;
  if p_when = 'period_end' and v_before.period_ends_at is null then
    raise sqlstate 'PT409' using message = 'no_period', hint = 'No period that could end. Change the plan now.';
  end if;
  insert into doorkey.plan_changes as c
    (user_id, idempotency_key, old_plan_id, plan_id, takes_effect, effective_at, actor, reason, request_id)
  values (p_user_id, p_idempotency_key, v_before.plan_id, v_plan.id, p_when,
          case when p_when = 'now' or v_plan.id = v_before.plan_id then now() else v_before.period_ends_at end,
          p_actor, p_reason, p_request_id)
  returning * into v_change;
  if v_plan.id = v_before.plan_id then
    update public.credit_accounts as a set pending_plan_id = null, updated_at = now() where a.user_id = p_user_id;
  elsif p_when = 'period_end' then
    update public.credit_accounts as a set pending_plan_id = v_plan.id, updated_at = now() where a.user_id = p_user_id;
  else
    update public.credit_accounts as a set plan_id = v_plan.id, pending_plan_id = null, updated_at = now()
     where a.user_id = p_user_id;
    if v_before.period_ends_at is null then
      perform doorkey.begin_periods(array[p_user_id], p_actor, p_request_id);
    else
      perform doorkey.prorate_allowance(v_before, v_plan, v_change.id, p_reason, p_actor, p_request_id);
      perform doorkey.post_out_leaving(p_user_id);
    end if;
  end if;
  v_after := doorkey.lock_account(p_user_id);
  update doorkey.plan_changes as c set period_ends_at = v_after.period_ends_at where c.id = v_change.id;
  perform doorkey.write_audit(p_actor, 'plan.changed', p_user_id, p_request_id, jsonb_build_object(
    'when', p_when, 'reason', p_reason, 'effective_at', v_change.effective_at,
    'before', to_jsonb(v_before) - '{user_id,created_at,updated_at}'::text[],
    'after', to_jsonb(v_after) - '{user_id,created_at,updated_at}'::text[]));
  return query select v_change.plan_id, v_change.effective_at, v_after.period_ends_at;
end
$$;
revoke all on function doorkey.change_plan(uuid, text, text, text, text, text, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.change_plan(uuid, text, text, text, text, text, text) to service_role;

create or replace function public.change_plan(
  user_id uuid, plan_id text, takes_effect text, idempotency_key text, actor text, reason text, request_id text
) returns table (new_plan_id text, effective_at timestamptz, period_ends_at timestamptz)
language sql set search_path = ''
as $$ select * from doorkey.change_plan($1, $2, $3, $4, $5, $6, $7); $$;
revoke all on function public.change_plan(uuid, text, text, text, text, text, text)
  from public, anon, authenticated, service_role;
grant execute on function public.change_plan(uuid, text, text, text, text, text, text) to service_role;
