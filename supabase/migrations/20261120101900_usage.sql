-- What OpenRouter says each key has spent in its life, and what is charged for it beyond the receipts.
--
-- A key's charged cost is R + N: R came by receipts (settled holds), N was seen in OpenRouter's figure U alone. Only what U
-- has beyond R + N and beyond what calls in flight may account for is charged; a receipt that comes later takes N down
-- again. See docs/decisions/0021. Lock order: provisioning row, the figures of a key, account, lots, key. The sync has many
-- keys' figures first, and so waits for nothing after that.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- Costs that were charged to a key outside of any hold.
create table if not exists doorkey.unheld_costs (
  transaction_id bigint primary key references public.credit_transactions (id),
  key_hash text not null references public.openrouter_user_keys (key_hash),
  -- The UTC day on which it was spent.
  day date not null,
  cost_micros numeric not null check (cost_micros between 0 and 1000000000000),
  markup numeric not null check (markup >= 0),
  charged_micros bigint not null check (charged_micros >= 0),
  owed_micros bigint not null check (owed_micros between 0 and charged_micros),
  -- What of the cost was given back, because a receipt for it came late.
  returned_micros numeric not null default 0 check (returned_micros between 0 and cost_micros),
  created_at timestamptz not null default now()
);
create index if not exists unheld_costs_key on doorkey.unheld_costs (key_hash, day);
create index if not exists unheld_costs_day on doorkey.unheld_costs (day, key_hash);
alter table doorkey.unheld_costs enable row level security;
revoke all on table doorkey.unheld_costs from public, anon, authenticated, service_role;

create table if not exists doorkey.key_usage (
  key_hash text primary key references public.openrouter_user_keys (key_hash),
  -- U: OpenRouter's lifetime figure, exact; it only grows. BYOK usage is beside it, and never charged.
  reported_micros numeric not null default 0 check (reported_micros >= 0),
  byok_micros numeric not null default 0 check (byok_micros >= 0),
  -- When U was read, and in which round of the sync the key was counted last.
  read_at timestamptz,
  round bigint,
  -- N, and how much of the cost was ever charged unseen or returned: what names a transaction.
  unseen_micros numeric not null default 0 check (unseen_micros >= 0),
  unseen_charged_micros numeric not null default 0 check (unseen_charged_micros >= 0),
  unseen_returned_micros numeric not null default 0 check (unseen_returned_micros >= 0),
  -- R + N was above U by so much ever since this reading.
  surplus_since timestamptz,
  surplus_micros numeric check (surplus_micros > 0),
  -- U and R + N differ, and the key was deleted: no reading will have anybody look again.
  is_open boolean not null default false,
  looked_at timestamptz not null default '-infinity',
  -- The key was deleted: when OpenRouter is to be asked what it had spent after all (see ..._last_words.sql).
  last_word_due_at timestamptz,
  check ((surplus_since is null) = (surplus_micros is null)),
  check (unseen_micros = unseen_charged_micros - unseen_returned_micros)
);
create index if not exists key_usage_open on doorkey.key_usage (looked_at) where is_open;
create index if not exists key_usage_last_words on doorkey.key_usage (last_word_due_at)
  where last_word_due_at is not null;
alter table doorkey.key_usage enable row level security;
revoke all on table doorkey.key_usage from public, anon, authenticated, service_role;

-- What of U falls on each UTC day.
create table if not exists doorkey.key_usage_days (
  key_hash text not null references public.openrouter_user_keys (key_hash),
  day date not null,
  reported_micros numeric not null default 0 check (reported_micros >= 0),
  byok_micros numeric not null default 0 check (byok_micros >= 0),
  primary key (key_hash, day)
);
create index if not exists key_usage_days_day on doorkey.key_usage_days (day, key_hash);
alter table doorkey.key_usage_days enable row level security;
revoke all on table doorkey.key_usage_days from public, anon, authenticated, service_role;

-- What the sync met that it does not understand: named, never guessed, never charged.
create table if not exists doorkey.usage_findings (
  key_hash text not null,
  -- went_back: U is lower than it was, by the amount; until it is not. missing: not in a whole round, though we think it is
  -- alive; until it is seen. byok: lifetime BYOK usage; until a day passed without any. Those three at the latest until the
  -- key is gone and its last word is heard. foreign: spends, and this database doesn't know it. not_deleted: we think it is
  -- gone. absurd: its figures are no amounts, or beyond all reason; it is passed over. Those until a whole round met none
  -- of it.
  kind text not null check (kind in ('went_back', 'missing', 'foreign', 'byok', 'not_deleted', 'absurd')),
  amount_micros numeric not null default 0,
  first_seen_at timestamptz not null default now(),
  last_seen_at timestamptz not null default now(),
  resolved_at timestamptz,
  primary key (key_hash, kind)
);
alter table doorkey.usage_findings enable row level security;
revoke all on table doorkey.usage_findings from public, anon, authenticated, service_role;

-- How far the present round has come.
create table if not exists doorkey.usage_sync (
  only_row boolean primary key default true check (only_row),
  round bigint not null default 0,
  started_at timestamptz,
  finished_at timestamptz,
  page_offset integer not null default 0 check (page_offset >= 0),
  -- The last key of the page before: it must come again, else pages have shifted.
  anchor text,
  is_second_look boolean not null default false
);
alter table doorkey.usage_sync enable row level security;
revoke all on table doorkey.usage_sync from public, anon, authenticated, service_role;
insert into doorkey.usage_sync default values on conflict do nothing;

-- How long after it expired a hold may still be settled, before its call counts as unseen: longer than any call lasts.
create or replace function doorkey.late_receipt_time() returns interval
language sql immutable security definer set search_path = ''
as $$ select interval '1 hour'; $$;
revoke all on function doorkey.late_receipt_time() from public, anon, authenticated, service_role;

-- What OpenRouter's figures may be off by: they are binary fractions of dollars.
create or replace function doorkey.usage_tolerance() returns numeric
language sql immutable security definer set search_path = ''
as $$ select 0.001; $$;
revoke all on function doorkey.usage_tolerance() from public, anon, authenticated, service_role;

-- What calls whose receipts may still come can have cost, by what was reserved for them.
create or replace function doorkey.cost_in_flight(p_key_hash text, p_markup numeric) returns numeric
language sql stable security definer set search_path = ''
as $$
  select coalesce(sum(h.amount_micros), 0) / p_markup
    from doorkey.credit_holds as h
   where h.key_hash = p_key_hash
     and (h.state = 'open' or (h.state = 'expired' and h.settled_at is null and h.closed_at > now() - doorkey.late_receipt_time()));
$$;
revoke all on function doorkey.cost_in_flight(text, numeric) from public, anon, authenticated, service_role;

-- Posts a cost without a receipt to a key's owner: nobody knows its tokens. The provisioning row (unless the key is the one
-- in use) and the account are locked.
create or replace function doorkey.post_unheld_cost(
  p_user_id uuid, p_key_hash text, p_day date, p_cost_micros numeric, p_idempotency_key text, p_request_id text
) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  v_is_in_use constant boolean := doorkey.is_key_in_use(p_user_id, p_key_hash);
  v_charge record;
begin
  v_charge := doorkey.post_charge(
    p_user_id, p_cost_micros, null, 0, 'usage', p_idempotency_key, 'Use without a receipt', null, null, v_is_in_use,
    p_request_id);
  insert into doorkey.unheld_costs (transaction_id, key_hash, day, cost_micros, markup, charged_micros, owed_micros)
  select v_charge.transaction_id, p_key_hash, p_day, p_cost_micros, p.markup, v_charge.charged_micros,
         v_charge.owed_micros
    from public.credit_accounts as a join public.plans as p on p.id = a.plan_id where a.user_id = p_user_id;
  insert into doorkey.key_usage as u (key_hash, unseen_micros, unseen_charged_micros)
  values (p_key_hash, p_cost_micros, p_cost_micros)
  on conflict (key_hash) do update
     set unseen_micros = u.unseen_micros + excluded.unseen_micros,
         unseen_charged_micros = u.unseen_charged_micros + excluded.unseen_charged_micros;
  update public.openrouter_user_keys as k set charged_cost_micros = k.charged_cost_micros + p_cost_micros
   where k.key_hash = p_key_hash and not v_is_in_use;
end
$$;
revoke all on function doorkey.post_unheld_cost(uuid, text, date, numeric, text, text)
  from public, anon, authenticated, service_role;

-- Adds to what of a key's U falls on a day.
create or replace function doorkey.add_usage(p_key_hash text, p_day date, p_reported_micros numeric, p_byok_micros numeric)
returns void
language sql security definer set search_path = ''
as $$
  insert into doorkey.key_usage_days as d (key_hash, day, reported_micros, byok_micros)
  select p_key_hash, p_day, p_reported_micros, p_byok_micros where p_reported_micros > 0 or p_byok_micros > 0
  on conflict (key_hash, day) do update
     set reported_micros = d.reported_micros + excluded.reported_micros,
         byok_micros = d.byok_micros + excluded.byok_micros;
$$;
revoke all on function doorkey.add_usage(text, date, numeric, numeric) from public, anon, authenticated, service_role;

-- What of a key's U falls on which day: read with that day's own figure, the part before midnight is known exactly.
-- Of that, and without the figure (null) of all, each day since the reading before has what the ledger has for it and
-- OpenRouter hadn't yet. What is left falls on the last day before midnight, or, without the figure, on the reading's.
create or replace function doorkey.split_usage(
  p_key_hash text, p_since timestamptz, p_read_at timestamptz, p_from_micros numeric, p_to_micros numeric,
  p_daily_micros numeric, p_byok_micros numeric
) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  v_today constant date := (p_read_at at time zone 'utc')::date;
  v_before constant date := (p_since at time zone 'utc')::date;
  v_left numeric := p_to_micros - p_from_micros;
  v_earlier numeric := v_left;
  v_part numeric;
begin
  if v_before < v_today then
    if p_daily_micros is not null then
      v_earlier := greatest(least(p_to_micros - p_daily_micros - p_from_micros, v_left), 0);
    end if;
    for v_days in 1 .. v_today - v_before loop
      v_part := case when v_days = v_today - v_before and p_daily_micros is not null then v_earlier
                     else least(greatest(-doorkey.day_difference(p_key_hash, v_before + v_days - 1), 0), v_earlier) end;
      perform doorkey.add_usage(p_key_hash, v_before + v_days - 1, v_part, 0);
      v_earlier := v_earlier - v_part;
      v_left := v_left - v_part;
    end loop;
  end if;
  perform doorkey.add_usage(p_key_hash, v_today, v_left, p_byok_micros);
end
$$;
revoke all on function doorkey.split_usage(text, timestamptz, timestamptz, numeric, numeric, numeric, numeric)
  from public, anon, authenticated, service_role;

-- What OpenRouter has for this key and day beyond what the ledger has.
create or replace function doorkey.day_difference(p_key_hash text, p_day date) returns numeric
language sql stable security definer set search_path = ''
as $$
  select coalesce((select d.reported_micros from doorkey.key_usage_days as d
                    where d.key_hash = p_key_hash and d.day = p_day), 0)
         - coalesce((select sum(h.cost_micros) from doorkey.credit_holds as h
                      where h.key_hash = p_key_hash and h.state = 'settled'
                        and h.settled_at >= p_day::timestamp at time zone 'utc'
                        and h.settled_at < (p_day + 1)::timestamp at time zone 'utc'), 0)
         - coalesce((select sum(c.cost_micros - c.returned_micros) from doorkey.unheld_costs as c
                      where c.key_hash = p_key_hash and c.day = p_day), 0);
$$;
revoke all on function doorkey.day_difference(text, date) from public, anon, authenticated, service_role;

-- A change of the key was answered with its lifetime figure: a reading, and before a deletion the last one.
create or replace function doorkey.note_usage(p_key_hash text, p_usage_micros numeric) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  v_usage doorkey.key_usage;
begin
  insert into doorkey.key_usage (key_hash)
  select k.key_hash from public.openrouter_user_keys as k where k.key_hash = p_key_hash
  on conflict do nothing;
  select * into v_usage from doorkey.key_usage as u where u.key_hash = p_key_hash for update;
  if not found or p_usage_micros <= v_usage.reported_micros then
    return;
  end if;
  perform doorkey.split_usage(
    p_key_hash, coalesce(v_usage.read_at, k.created_at), greatest(now(), v_usage.read_at), v_usage.reported_micros,
    p_usage_micros, null, 0)
    from public.openrouter_user_keys as k where k.key_hash = p_key_hash;
  update doorkey.key_usage as u
     set reported_micros = p_usage_micros, read_at = greatest(now(), u.read_at)
   where u.key_hash = p_key_hash;
end
$$;
revoke all on function doorkey.note_usage(text, numeric) from public, anon, authenticated, service_role;

-- Charges what was spent unseen: on the days on which OpenRouter has more than the ledger, the oldest first.
create or replace function doorkey.charge_unseen(
  p_user_id uuid, p_key_hash text, p_cost_micros numeric, p_read_at timestamptz, p_request_id text
) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  v_left numeric := p_cost_micros;
  v_part numeric;
  v_gap record;
  c_near_days constant integer := 7;
  -- Longer than a period.
  c_far_days constant integer := 35;
  -- Of the day of the reading, of the one before, and so on.
  v_gaps numeric[];
  -- What one cost may be.
  c_most constant numeric := 1000000000000;
  v_last constant date := (p_read_at at time zone 'utc')::date;
begin
  -- A key with calls in flight all the time may wait longer for what it used besides: where these days can't have been
  -- all, those before are looked at, too.
  v_gaps := array(select doorkey.day_difference(p_key_hash, v_last - n.days)
                    from generate_series(0, c_near_days) as n (days) order by n.days);
  if (select sum(greatest(g.micros, 0)) from unnest(v_gaps) as g (micros))
     < p_cost_micros - doorkey.usage_tolerance() then
    v_gaps := v_gaps || array(select doorkey.day_difference(p_key_hash, v_last - n.days)
                                from generate_series(c_near_days + 1, c_far_days) as n (days) order by n.days);
  end if;
  for v_gap in
    select v_last - g.days::integer + 1 as day, case when g.days > 1 then g.micros end as micros
      from unnest(v_gaps) with ordinality as g (micros, days) order by g.days desc
  loop
    continue when v_gap.micros <= 0;
    -- What no earlier day has a gap for is of the day of the reading.
    v_gap.micros := least(v_left, coalesce(v_gap.micros, v_left));
    while v_gap.micros > 0 loop
      v_part := least(v_gap.micros, c_most);
      -- Named by all that was ever charged to this key unseen: said again, it would be the same.
      perform doorkey.post_unheld_cost(
        p_user_id, p_key_hash, v_gap.day, v_part,
        format('unseen:%s:%s', p_key_hash, trim_scale(u.unseen_charged_micros)), p_request_id)
        from doorkey.key_usage as u where u.key_hash = p_key_hash;
      v_left := v_left - v_part;
      v_gap.micros := v_gap.micros - v_part;
    end loop;
  end loop;
end
$$;
revoke all on function doorkey.charge_unseen(uuid, text, numeric, timestamptz, text)
  from public, anon, authenticated, service_role;

-- Gives back what was charged unseen, the latest first, at the price at which it was charged. The account is locked.
create or replace function doorkey.return_unseen(
  p_user_id uuid, p_key_hash text, p_cost_micros numeric, p_request_id text
) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  v_account public.credit_accounts;
  v_cost doorkey.unheld_costs;
  v_left numeric := p_cost_micros;
  v_part numeric;
  v_carried numeric;
  v_back bigint;
  v_receivable bigint;
  v_paid bigint;
  v_id bigint;
  v_is_in_use constant boolean := doorkey.is_key_in_use(p_user_id, p_key_hash);
begin
  select * into strict v_account from public.credit_accounts as a where a.user_id = p_user_id;
  v_carried := v_account.remainder_micros;
  for v_cost in
    select * from doorkey.unheld_costs as c
     where c.key_hash = p_key_hash and c.returned_micros < c.cost_micros order by c.transaction_id desc
  loop
    exit when v_left = 0;
    v_part := least(v_left, v_cost.cost_micros - v_cost.returned_micros);
    update doorkey.unheld_costs as c set returned_micros = c.returned_micros + v_part
     where c.transaction_id = v_cost.transaction_id;
    v_carried := v_carried - v_part * v_cost.markup;
    v_left := v_left - v_part;
  end loop;
  if v_left <> 0 then
    raise exception 'less was charged to % unseen than is to be returned', p_key_hash;
  end if;
  v_back := greatest(ceil(-v_carried), 0);
  v_receivable := least(v_back, v_account.receivable_micros);
  v_paid := least(v_back - v_receivable, v_account.debt_micros);
  insert into public.credit_transactions
    (user_id, type, amount_micros, spendable_micros, debt_micros, receivable_micros, system_account, remainder_micros,
     key_cost_micros, idempotency_key, reason, actor, request_id)
  select p_user_id, 'adjustment', v_back, v_back - v_receivable - v_paid, v_paid, v_receivable, 'spent',
         v_carried + v_back, case when v_is_in_use then -p_cost_micros else 0 end,
         format('unseen:returned:%s:%s', p_key_hash, trim_scale(u.unseen_returned_micros)),
         'A receipt came for what was charged without one', 'credits', p_request_id
    from doorkey.key_usage as u where u.key_hash = p_key_hash
  returning id into strict v_id;
  if v_back > v_receivable then
    -- They end as the lot does that was spent from last; where that is over, or none, they don't.
    insert into doorkey.credit_lots (user_id, transaction_id, amount_micros, remaining_micros, priority, expires_at)
    select p_user_id, v_id, v_back - v_receivable, v_back - v_receivable - v_paid, coalesce(l.priority, 100), l.expires_at
      from (select) as one
      left join lateral (
        select o.priority, o.expires_at from doorkey.credit_lots as o
         where o.user_id = p_user_id and o.remaining_micros < o.amount_micros and coalesce(o.expires_at > now(), true)
         order by o.priority desc, o.expires_at desc nulls first, o.id desc limit 1) as l on true;
  end if;
  update doorkey.key_usage as u
     set unseen_micros = u.unseen_micros - p_cost_micros,
         unseen_returned_micros = u.unseen_returned_micros + p_cost_micros
   where u.key_hash = p_key_hash;
  update public.openrouter_user_keys as k
     set charged_cost_micros = k.charged_cost_micros - p_cost_micros,
         -- The late receipt was added to what a replaced key had said; what it said had it already.
         reported_usage_micros = case when k.retires_at is null and k.status <> 'deleted' then k.reported_usage_micros
           else least(k.reported_usage_micros, ceil(greatest(u.reported_micros, k.charged_cost_micros - p_cost_micros))) end
    from doorkey.key_usage as u where k.key_hash = p_key_hash and u.key_hash = k.key_hash and not v_is_in_use;
end
$$;
revoke all on function doorkey.return_unseen(uuid, text, numeric, text) from public, anon, authenticated, service_role;

-- Compares what OpenRouter said of a key with what the ledger has, and charges or gives back the difference. Its figures
-- are locked by the caller. Says the cost charged, negative where it was given back; null: somebody else has the account
-- now, and the next round looks again.
create or replace function doorkey.judge_usage(p_key_hash text, p_request_id text) returns numeric
language plpgsql security definer set search_path = ''
as $$
declare
  v_key public.openrouter_user_keys;
  v_usage doorkey.key_usage;
  v_difference numeric;
  v_surplus numeric;
  v_moved numeric := 0;
  c_tolerance constant numeric := doorkey.usage_tolerance();
begin
  select * into strict v_key from public.openrouter_user_keys as k where k.key_hash = p_key_hash;
  if exists (select from doorkey.provisioning as p
              where p.user_id = v_key.user_id and p.key_hash is distinct from p_key_hash) then
    perform from doorkey.provisioning as p where p.user_id = v_key.user_id for update skip locked;
    if not found then
      return null;
    end if;
  end if;
  perform from public.credit_accounts as a where a.user_id = v_key.user_id for no key update skip locked;
  if not found then
    return null;
  end if;
  select * into strict v_key from public.openrouter_user_keys as k where k.key_hash = p_key_hash;
  select * into strict v_usage from doorkey.key_usage as u where u.key_hash = p_key_hash;
  v_difference := v_usage.reported_micros - doorkey.cost_of_key(p_key_hash);
  -- A call that was in flight when U was read need not be in it.
  v_surplus := least(v_usage.unseen_micros, -v_difference - (
    select coalesce(sum(h.cost_micros), 0) from doorkey.credit_holds as h
     where h.key_hash = p_key_hash and h.state = 'settled' and h.settled_at > v_usage.read_at
       and h.closed_at > v_usage.read_at - doorkey.late_receipt_time()));
  if v_difference > c_tolerance then
    v_moved := v_difference - doorkey.cost_in_flight(p_key_hash, p.markup)
      from public.credit_accounts as a join public.plans as p on p.id = a.plan_id where a.user_id = v_key.user_id;
    if v_moved > c_tolerance then
      perform doorkey.charge_unseen(v_key.user_id, p_key_hash, v_moved, v_usage.read_at, p_request_id);
    else
      v_moved := 0;
    end if;
    v_surplus := null;
  elsif coalesce(v_surplus, 0) <= c_tolerance then
    v_surplus := null;
  elsif (case when v_key.status = 'deleted' then now() else v_usage.read_at end)
        >= v_usage.surplus_since + doorkey.late_receipt_time() then
    -- It was so at an earlier reading: a receipt came for what had been charged without one.
    v_moved := -least(v_surplus, v_usage.surplus_micros);
    perform doorkey.return_unseen(v_key.user_id, p_key_hash, -v_moved, p_request_id);
    v_surplus := null;
  end if;
  update doorkey.key_usage as u
     set surplus_micros = least(v_surplus, case when v_surplus is not null then u.surplus_micros end),
         surplus_since = case when v_surplus is not null then coalesce(u.surplus_since, case
           when v_key.status = 'deleted' then now() else u.read_at end) end,
         is_open = v_key.status = 'deleted' and (v_surplus is not null or abs(v_difference - v_moved) > c_tolerance),
         looked_at = now()
   where u.key_hash = p_key_hash;
  if v_moved <> 0 then
    perform doorkey.follow_key(v_key.user_id, p_key_hash);
  end if;
  if v_moved < 0 then
    -- Given back at the price of then: the user's plan may have another one now, and the key come to too much.
    perform doorkey.lower_key(v_key.user_id, p_key_hash);
  end if;
  return v_moved;
end
$$;
revoke all on function doorkey.judge_usage(text, text) from public, anon, authenticated, service_role;

-- Where the sync is to go on; no row: the last round began less than so many seconds ago and is done.
create or replace function doorkey.begin_usage_sync(p_every_seconds integer)
returns table (round bigint, page_offset integer, anchor text, is_second_look boolean)
language plpgsql security definer set search_path = ''
as $$
begin
  if p_every_seconds is null or p_every_seconds not between 60 and 86400 then
    raise sqlstate 'PT422' using message = 'delay_out_of_range', hint = 'A round begins every 60 to 86400 seconds.';
  end if;
  update doorkey.usage_sync as s
     set round = s.round + 1, started_at = now(), finished_at = null, page_offset = 0, anchor = null,
         is_second_look = false
   where s.started_at is null or (s.finished_at is not null and s.started_at <= now() - make_interval(secs => p_every_seconds));
  return query
    select s.round, s.page_offset, s.anchor, s.is_second_look from doorkey.usage_sync as s where s.finished_at is null;
end
$$;
revoke all on function doorkey.begin_usage_sync(integer) from public, anon, authenticated, service_role;
grant execute on function doorkey.begin_usage_sync(integer) to service_role;

create or replace function public.begin_usage_sync(every_seconds integer)
returns table (round bigint, page_offset integer, anchor text, is_second_look boolean)
language sql set search_path = ''
as $$ select * from doorkey.begin_usage_sync($1); $$;
revoke all on function public.begin_usage_sync(integer) from public, anon, authenticated, service_role;
grant execute on function public.begin_usage_sync(integer) to service_role;

-- Writes down what is odd about a key; said again, only when it was seen last.
create or replace function doorkey.find_usage(p_key_hashes text[], p_kind text, p_amounts numeric[]) returns void
language sql security definer set search_path = ''
as $$
  insert into doorkey.usage_findings as f (key_hash, kind, amount_micros)
  select a.hash, p_kind, coalesce(a.amount, 0) from unnest(p_key_hashes, p_amounts) as a (hash, amount) order by a.hash
  on conflict (key_hash, kind) do update
     set amount_micros = excluded.amount_micros, last_seen_at = now(), resolved_at = null;
$$;
revoke all on function doorkey.find_usage(text[], text, numeric[]) from public, anon, authenticated, service_role;

-- Has the user's keys set once more, unless somebody is at work on them at this moment; 1 or 0.
create or replace function doorkey.have_rechecked(p_user_id uuid, p_request_id text) returns integer
language plpgsql security definer set search_path = ''
as $$
begin
  perform from doorkey.provisioning as p where p.user_id = p_user_id and p.state = 'ready' for update skip locked;
  if not found then
    return 0;
  end if;
  perform doorkey.recheck_key(p_user_id, p_request_id);
  return 1;
end
$$;
revoke all on function doorkey.have_rechecked(uuid, text) from public, anon, authenticated, service_role;

-- One page of the list of keys, as it was read at p_read_at: each key is counted once a round. Says what came of it, and
-- where the round is now: the cursor moves on only from where this page was read.
create or replace function doorkey.record_usage(
  p_round bigint, p_offset integer, p_next_offset integer, p_anchor text, p_is_second_look boolean,
  p_key_hashes text[], p_usage_micros numeric[], p_byok_micros numeric[], p_daily_micros numeric[],
  p_limit_micros numeric[], p_disabled_hashes text[], p_read_at timestamptz, p_request_id text
) returns table (
  counted integer, unseen_micros numeric, returned_micros numeric, busy integer, odd integer, limits_healed integer,
  page_offset integer, anchor text, is_second_look boolean, is_finished boolean)
language plpgsql security definer set search_path = ''
as $$
declare
  v_sync doorkey.usage_sync;
  v_key text;
  v_moved numeric;
  v_user_id uuid;
  v_missing text[];
  v_users uuid[];
  v_absurd text[];
  c_tolerance constant numeric := doorkey.usage_tolerance();
  c_most constant numeric := 1000000000000000;
  -- By how much, at most, and how long a page takes to come here; less than a round.
  c_clocks_differ constant interval := '10 minutes';
begin
  if p_key_hashes is null or cardinality(p_key_hashes) > 1000 or p_round is null or p_offset is null
     or p_read_at is null or p_read_at > now() + interval '5 minutes'
     or exists (select from unnest(array[cardinality(p_usage_micros), cardinality(p_byok_micros),
                  cardinality(p_daily_micros), cardinality(p_limit_micros)]) as n (rows)
                 where n.rows is distinct from cardinality(p_key_hashes)) then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Record up to 1000 keys, each with its figures.';
  end if;
  -- Whose figures are none are set aside: one key must not keep all others from being read. (NaN is more than any number.)
  v_absurd := array(
    select a.hash from unnest(p_key_hashes, p_usage_micros, p_byok_micros, p_daily_micros) as a (hash, usage, byok, daily)
     where exists (select from unnest(array[a.usage, a.byok, a.daily]) as f (micros)
                    where f.micros is null or f.micros not between 0 and c_most or min_scale(f.micros) > 30));
  -- One page after the other: pages overlap, and so would their locks.
  select * into strict v_sync from doorkey.usage_sync for update;
  unseen_micros := 0; returned_micros := 0; busy := 0; odd := 0; limits_healed := 0;

  -- Locked before they are looked at: the answer to a change of a key may be about to count the same use (note_usage).
  insert into doorkey.key_usage (key_hash)
  select k.key_hash from public.openrouter_user_keys as k where k.key_hash = any (p_key_hashes) order by k.key_hash
  on conflict do nothing;
  perform from doorkey.key_usage as u where u.key_hash = any (p_key_hashes) order by u.key_hash for update;

  -- The readings. U never falls; what it had when it was read last, and what is new, is needed of each.
  with page as (
    select * from unnest(p_key_hashes, p_usage_micros, p_byok_micros, p_daily_micros) as a (hash, usage, byok, daily)
     where a.hash <> all (v_absurd)
  ), fresh as (
    select a.hash, a.usage, a.byok, a.daily, coalesce(u.reported_micros, 0) as usage_before,
           coalesce(u.byok_micros, 0) as byok_before, coalesce(u.read_at, k.created_at) as since,
           k.status = 'deleted' and k.deleted_at < p_read_at - interval '1 hour' as is_undead
      from page as a join public.openrouter_user_keys as k on k.key_hash = a.hash
      left join doorkey.key_usage as u on u.key_hash = a.hash
     where u.round is distinct from p_round and (u.read_at is null or u.read_at < p_read_at)
  ), split as (
    select doorkey.split_usage(f.hash, f.since, p_read_at, f.usage_before, greatest(f.usage, f.usage_before), f.daily,
                               greatest(f.byok - f.byok_before, 0))
      from fresh as f where f.usage > f.usage_before or f.byok > f.byok_before
  ), found as (
    select doorkey.find_usage(array[f.hash], o.kind, array[o.amount])
      from fresh as f cross join lateral (values
        -- Whose clock goes ahead may have read before what came shortly before by the database's.
        ('went_back', f.usage_before - f.usage,
         f.usage < f.usage_before - c_tolerance and f.since < p_read_at - c_clocks_differ),
        ('byok', f.byok, f.byok > f.byok_before),
        ('not_deleted', f.usage, f.is_undead)) as o (kind, amount, is_so)
     where o.is_so
    union all
    select doorkey.find_usage(array[a.hash], 'absurd', array[a.usage])
      from unnest(p_key_hashes, p_usage_micros) as a (hash, usage) where a.hash = any (v_absurd)
    union all
    select doorkey.find_usage(array[a.hash], 'foreign', array[a.usage]) from page as a
     where (a.usage > 0 or a.byok > 0)
       and not exists (select from public.openrouter_user_keys as k where k.key_hash = a.hash)
  ), taken as (
    insert into doorkey.key_usage as u (key_hash, reported_micros, byok_micros, read_at, round)
    select f.hash, f.usage, f.byok, p_read_at, p_round from fresh as f order by f.hash
    on conflict (key_hash) do update
       set reported_micros = greatest(u.reported_micros, excluded.reported_micros),
           byok_micros = greatest(u.byok_micros, excluded.byok_micros), read_at = excluded.read_at,
           round = excluded.round
    returning 1
  )
  select (select count(*) from taken), (select count(*) from found) + 0 * (select count(*) from split)
    into counted, odd;
  -- Something younger than this page was read of these, or their figures are none: they were seen nevertheless.
  update doorkey.key_usage as u set round = p_round
   where u.key_hash = any (p_key_hashes) and coalesce(u.round, p_round - 1) < p_round;
  -- What is no longer odd. Figures say so only if no younger ones were read. (The rest is told by the end of the round.)
  update doorkey.usage_findings as f set resolved_at = now()
    from unnest(p_key_hashes, p_usage_micros) as a (hash, usage)
    join doorkey.key_usage as u on u.key_hash = a.hash
   where f.key_hash = a.hash and f.resolved_at is null
     and case f.kind when 'missing' then true
                     when 'went_back' then u.read_at = p_read_at and a.usage >= u.reported_micros - c_tolerance
                     when 'byok' then u.read_at = p_read_at and f.last_seen_at < p_read_at - interval '1 day'
                     else false end;

  for v_key in
    select u.key_hash from doorkey.key_usage as u join doorkey.key_costs as c on c.key_hash = u.key_hash
     where u.key_hash = any (p_key_hashes)
       and (abs(u.reported_micros - c.cost_micros) > c_tolerance or u.surplus_since is not null)
    union
    (select u.key_hash from doorkey.key_usage as u
      where u.is_open and u.looked_at < now() - interval '1 hour' order by u.looked_at limit 100)
    order by 1
  loop
    v_moved := doorkey.judge_usage(v_key, p_request_id);
    unseen_micros := unseen_micros + greatest(coalesce(v_moved, 0), 0);
    returned_micros := returned_micros - least(coalesce(v_moved, 0), 0);
    busy := busy + (v_moved is null)::integer;
  end loop;

  -- Keys that are not as they were left, and nobody is at work on them.
  for v_user_id in
    select distinct k.user_id
      from unnest(p_key_hashes, p_limit_micros) as a (hash, cap)
      join public.openrouter_user_keys as k on k.key_hash = a.hash
      join doorkey.provisioning as p on p.user_id = k.user_id
     where p.state = 'ready' and k.status <> 'deleted' and k.updated_at < p_read_at - interval '1 minute'
       and (k.limit_micros is distinct from a.cap or (k.status = 'active') = (a.hash = any (p_disabled_hashes)))
     order by k.user_id
  loop
    limits_healed := limits_healed + doorkey.have_rechecked(v_user_id, p_request_id);
  end loop;

  update doorkey.usage_sync as s
     set page_offset = coalesce(p_next_offset, s.page_offset), anchor = p_anchor, is_second_look = p_is_second_look,
         finished_at = case when p_next_offset is null then now() end
   where s.round = p_round and s.page_offset = p_offset and s.finished_at is null;
  if found and p_next_offset is null then
    -- The round is over: who was not in it?
    select array_agg(m.key_hash), array_agg(m.user_id) into v_missing, v_users
      from (select k.key_hash, k.user_id from public.openrouter_user_keys as k
              left join doorkey.key_usage as u on u.key_hash = k.key_hash
             where k.status <> 'deleted' and k.created_at < v_sync.started_at and u.round is distinct from p_round
             order by k.key_hash limit 100) as m;
    perform doorkey.find_usage(v_missing, 'missing', null);
    odd := odd + coalesce(cardinality(v_missing), 0);
    -- And what was not odd in all of it, or can't be any more, because nothing will be heard of the key again.
    update doorkey.usage_findings as f set resolved_at = now()
     where f.resolved_at is null
       and case when f.kind in ('foreign', 'not_deleted', 'absurd') then f.last_seen_at < v_sync.started_at
                else exists (select from public.openrouter_user_keys as k
                               left join doorkey.key_usage as u on u.key_hash = k.key_hash
                              where k.key_hash = f.key_hash and k.status = 'deleted' and u.last_word_due_at is null) end;
    -- OpenRouter is asked for each by name: it may be there, or the user gets another one.
    perform doorkey.have_rechecked(m.user_id, p_request_id) from unnest(v_users) as m (user_id);
  end if;
  select s.page_offset, s.anchor, s.is_second_look, s.finished_at is not null or s.round <> p_round
    into page_offset, anchor, is_second_look, is_finished from doorkey.usage_sync as s;
  return next;
end
$$;
revoke all on function doorkey.record_usage(
  bigint, integer, integer, text, boolean, text[], numeric[], numeric[], numeric[], numeric[], text[], timestamptz, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.record_usage(
  bigint, integer, integer, text, boolean, text[], numeric[], numeric[], numeric[], numeric[], text[], timestamptz, text)
  to service_role;

create or replace function public.record_usage(
  round bigint, read_offset integer, next_offset integer, next_anchor text, next_is_second_look boolean,
  key_hashes text[], usage_micros numeric[], byok_micros numeric[], daily_micros numeric[],
  limit_micros numeric[], disabled_hashes text[], read_at timestamptz, request_id text
) returns table (
  counted integer, unseen_micros numeric, returned_micros numeric, busy integer, odd integer, limits_healed integer,
  page_offset integer, anchor text, is_second_look boolean, is_finished boolean)
language sql set search_path = ''
as $$ select * from doorkey.record_usage($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13); $$;
revoke all on function public.record_usage(
  bigint, integer, integer, text, boolean, text[], numeric[], numeric[], numeric[], numeric[], text[], timestamptz, text)
  from public, anon, authenticated, service_role;
grant execute on function public.record_usage(
  bigint, integer, integer, text, boolean, text[], numeric[], numeric[], numeric[], numeric[], text[], timestamptz, text)
  to service_role;
