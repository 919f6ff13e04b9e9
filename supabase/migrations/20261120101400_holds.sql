-- Holds: credits are kept for a call before it goes out, and what it cost is charged when it has come back.
--
-- A cost is never dropped, whatever became of its hold: the money was spent. What the hold doesn't cover comes out of
-- what is available, and beyond that the user owes it. Lock order: provisioning row (only where the key is not the one
-- in use), account, lots, key and hold.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

do $$
begin
  if to_regtype('doorkey.hold_state') is null then
    create type doorkey.hold_state as enum (
      'open',      -- keeps its amount
      'settled',   -- its call was charged
      'released',  -- nothing was spent
      'expired'    -- nobody said what became of the call; it can still be settled
    );
  end if;
end
$$;

create table if not exists doorkey.credit_holds (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references public.credit_accounts (user_id),
  -- The key that the call goes through.
  key_hash text not null references public.openrouter_user_keys (key_hash),
  -- What was asked for, and what is kept of it now: nothing on a plan without cap, and nothing once it is closed.
  amount_micros bigint not null check (amount_micros between 1 and 1000000000000),
  held_micros bigint not null check (held_micros in (0, amount_micros)),
  state doorkey.hold_state not null default 'open',
  idempotency_key text not null check (length(idempotency_key) between 1 and 200),
  request_id text,
  -- What was answered, to answer it again.
  available_after_micros bigint not null check (available_after_micros >= 0),
  -- The settlement: the provider's cost exactly as received.
  provider text,
  model text,
  generation_id text,
  cost_micros numeric check (cost_micros between 0 and 1000000000000),
  -- How many tokens it was, if that was said.
  tokens bigint check (tokens between 0 and 1000000000),
  -- The price to the fraction, what was charged of it and of what was carried, and what of that is owed.
  price_micros numeric check (price_micros >= 0),
  charged_micros bigint check (charged_micros >= 0),
  owed_micros bigint check (owed_micros between 0 and charged_micros),
  created_at timestamptz not null default now(),
  expires_at timestamptz not null check (expires_at > created_at),
  -- When it ceased to keep anything, and when it was settled.
  closed_at timestamptz,
  settled_at timestamptz,
  constraint open_exactly_until_closed check ((state = 'open') = (closed_at is null)),
  constraint holds_only_while_open check (state = 'open' or held_micros = 0),
  constraint settled_exactly_with_a_cost check (
    (state = 'settled') = (settled_at is not null)
    and num_nulls(settled_at, cost_micros, price_micros, charged_micros, owed_micros) in (0, 5)),
  constraint settled_with_its_call check (
    state = 'settled' or num_nonnulls(tokens, provider, model, generation_id) = 0),
  -- Whoever sends keys chooses them: nobody's stands in the way of another's.
  constraint one_hold_for_each_key_of_a_user unique (user_id, idempotency_key)
);
create index if not exists credit_holds_expiring on doorkey.credit_holds (expires_at) where state = 'open';
-- "What do its open ones keep? What expired lately?"
create index if not exists credit_holds_key on doorkey.credit_holds (key_hash, state, closed_at);
create index if not exists credit_holds_settled on doorkey.credit_holds (settled_at, key_hash) where state = 'settled';
-- "What did this key's receipts of a day come to?" One user may have millions.
create index if not exists credit_holds_settled_of_key on doorkey.credit_holds (key_hash, settled_at)
  include (cost_micros) where state = 'settled';
alter table doorkey.credit_holds enable row level security;
revoke all on table doorkey.credit_holds from public, anon, authenticated, service_role;

-- What the open holds of calls through this key keep.
create or replace function doorkey.held_through(p_key_hash text) returns bigint
language sql stable security definer set search_path = ''
as $$
  select coalesce(sum(h.held_micros), 0)::bigint from doorkey.credit_holds as h
   where h.key_hash = p_key_hash and h.state = 'open';
$$;
revoke all on function doorkey.held_through(text) from public, anon, authenticated, service_role;

-- One transaction about what is used, with its entries: what doesn't stay with the user is spent. What is zero is no entry.
create or replace function doorkey.post_use(
  p_user_id uuid, p_type text, p_idempotency_key text, p_reason text, p_request_id text, p_provider text, p_model text,
  p_available bigint, p_held bigint, p_debt bigint, p_receivable bigint
) returns bigint
language plpgsql security definer set search_path = ''
as $$
declare
  v_id bigint;
  v_amount constant bigint := p_available + p_held + p_debt + p_receivable;
begin
  insert into public.credit_transactions
    (user_id, type, amount_micros, idempotency_key, reason, actor, provider, model, request_id)
  values (p_user_id, p_type, v_amount, p_idempotency_key, p_reason, 'credits', p_provider, p_model, p_request_id)
  returning id into v_id;
  insert into doorkey.ledger_entries (transaction_id, account, amount_micros)
  select v_id, e.account, e.amount
    from (values ('available'::doorkey.ledger_account, p_available), ('held', p_held), ('debt', p_debt),
                 ('receivable', p_receivable), ('spent', -v_amount)) as e (account, amount)
   where e.amount <> 0;
  return v_id;
end
$$;
revoke all on function doorkey.post_use(uuid, text, text, text, text, text, text, bigint, bigint, bigint, bigint)
  from public, anon, authenticated, service_role;

-- Takes so much out of the user's lots: by priority, then expiry, then id. The account is locked by the caller.
create or replace function doorkey.spend_lots(p_user_id uuid, p_amount_micros bigint) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  v_taken bigint;
begin
  if p_amount_micros = 0 then
    return;
  end if;
  with queue as (
    select l.id, l.remaining_micros,
           sum(l.remaining_micros) over (order by l.priority, l.expires_at nulls last, l.id)
           - l.remaining_micros as before
      from doorkey.credit_lots as l
     where l.user_id = p_user_id and l.remaining_micros > 0
  ), spent as (
    update doorkey.credit_lots as l
       set remaining_micros = l.remaining_micros - least(q.remaining_micros, p_amount_micros - q.before)
      from queue as q
     where l.id = q.id and q.before < p_amount_micros
    returning least(q.remaining_micros, p_amount_micros - q.before) as micros
  )
  select sum(s.micros) into v_taken from spent as s;
  if v_taken is distinct from p_amount_micros then
    raise exception 'the lots of % hold less than their balance', p_user_id;
  end if;
end
$$;
revoke all on function doorkey.spend_lots(uuid, bigint) from public, anon, authenticated, service_role;

-- Keeps credits for one call through the user's key. Asked again with the same key and content it answers again; no lock
-- is taken on the provisioning row, so that a busy user's key can still be worked on.
create or replace function doorkey.reserve_credits(
  p_user_id uuid, p_amount_micros bigint, p_ttl_seconds integer, p_idempotency_key text, p_key_hash text,
  p_request_id text
) returns table (hold_id uuid, bound_key_hash text, expires_at timestamptz, available_after_micros bigint)
language plpgsql security definer set search_path = ''
as $$
declare
  v_account public.credit_accounts;
  v_hold doorkey.credit_holds;
  v_key public.openrouter_user_keys;
  v_plan public.plans;
  v_held bigint;
begin
  if p_amount_micros is null or p_amount_micros not between 1 and 1000000000000 then
    raise sqlstate 'PT422' using message = 'amount_out_of_range', hint = 'Reserve 1 to 1000000000000 micro-dollars.';
  end if;
  if p_ttl_seconds is null or p_ttl_seconds not between 1 and 86400 then
    raise sqlstate 'PT422' using message = 'ttl_out_of_range', hint = 'A hold lasts 1 to 86400 seconds.';
  end if;
  if p_idempotency_key is null or length(p_idempotency_key) not between 1 and 200 then
    raise sqlstate 'PT422' using message = 'idempotency_key_invalid', hint = 'Send a key of 1 to 200 characters.';
  end if;
  v_account := doorkey.lock_account(p_user_id);
  select * into v_hold from doorkey.credit_holds as h
   where h.user_id = p_user_id and h.idempotency_key = p_idempotency_key;
  if not found then
    v_key := doorkey.usable_key(p_user_id, p_key_hash);
    select * into strict v_plan from public.plans as p where p.id = v_account.plan_id;
    v_held := case when v_plan.is_uncapped then 0 else p_amount_micros end;
    if v_account.period_spent_micros + v_account.held_micros + v_held > v_plan.monthly_cap_micros then
      raise sqlstate 'PT402' using message = 'insufficient_credits',
        hint = 'The plan allows no more in this period, with what other calls hold.';
    end if;
    if v_account.available_micros < v_held then
      raise sqlstate 'PT402' using message = 'insufficient_credits',
        hint = format('%s micro-dollars are available.', v_account.available_micros);
    end if;
    insert into doorkey.credit_holds as h
      (user_id, key_hash, amount_micros, held_micros, idempotency_key, request_id, available_after_micros, expires_at)
    values (p_user_id, v_key.key_hash, p_amount_micros, v_held, p_idempotency_key, p_request_id,
            v_account.available_micros - v_held, now() + make_interval(secs => p_ttl_seconds))
    returning h.* into v_hold;
    if v_held > 0 then
      perform doorkey.post_use(
        p_user_id, 'hold', 'hold:' || v_hold.id, 'Held for a call', p_request_id, null, null, -v_held, v_held, 0, 0);
    end if;
  elsif (v_hold.amount_micros, v_hold.expires_at - v_hold.created_at, v_hold.key_hash)
     is distinct from (p_amount_micros, make_interval(secs => p_ttl_seconds),
                       coalesce(p_key_hash, v_hold.key_hash)) then
    raise sqlstate 'PT409' using message = 'idempotency_conflict',
      hint = 'This key was used for another content. Use a new key for a new hold.';
  end if;
  hold_id := v_hold.id;
  bound_key_hash := v_hold.key_hash;
  expires_at := v_hold.expires_at;
  available_after_micros := v_hold.available_after_micros;
  return next;
end
$$;
revoke all on function doorkey.reserve_credits(uuid, bigint, integer, text, text, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.reserve_credits(uuid, bigint, integer, text, text, text) to service_role;

-- This door and that of settling are not in SQL, which would be planned anew in each call.
create or replace function public.reserve_credits(
  user_id uuid, amount_micros bigint, ttl_seconds integer, idempotency_key text, key_hash text, request_id text
) returns table (hold_id uuid, bound_key_hash text, expires_at timestamptz, available_after_micros bigint)
language plpgsql set search_path = ''
as $$ begin return query select * from doorkey.reserve_credits($1, $2, $3, $4, $5, $6); end $$;
revoke all on function public.reserve_credits(uuid, bigint, integer, text, text, text)
  from public, anon, authenticated, service_role;
grant execute on function public.reserve_credits(uuid, bigint, integer, text, text, text) to service_role;

-- The key that a call of the user may go through now: the one in use. The account is locked by the caller, so that no
-- other one takes its place meanwhile.
create or replace function doorkey.usable_key(p_user_id uuid, p_key_hash text) returns public.openrouter_user_keys
language plpgsql stable security definer set search_path = ''
as $$
declare
  v_key public.openrouter_user_keys;
begin
  select k.* into v_key
    from doorkey.provisioning as w join public.openrouter_user_keys as k on k.key_hash = w.key_hash
   where w.user_id = p_user_id;
  if not found then
    raise sqlstate 'PT404' using message = 'no_key', hint = 'There is no key yet that a call could go through.';
  end if;
  if v_key.key_hash <> p_key_hash then
    raise sqlstate 'PT409' using message = 'key_replaced', hint = 'A key that retires begins nothing new.';
  end if;
  if v_key.status <> 'active' or not (doorkey.desired_key(p_user_id)).is_enabled then
    raise sqlstate 'PT403' using message = 'key_disabled', hint = 'The user is banned or gone.';
  end if;
  return v_key;
end
$$;
revoke all on function doorkey.usable_key(uuid, text) from public, anon, authenticated, service_role;

-- The hold, with its account locked. A user: it must be theirs; null: anybody's.
create or replace function doorkey.lock_hold(p_user_id uuid, p_hold_id uuid) returns doorkey.credit_holds
language plpgsql security definer set search_path = ''
as $$
declare
  v_found record;
  v_hold doorkey.credit_holds;
begin
  select h.user_id, h.key_hash, p.key_hash is distinct from h.key_hash as is_of_another_key into v_found
    from doorkey.credit_holds as h left join doorkey.provisioning as p on p.user_id = h.user_id where h.id = p_hold_id;
  if not found or v_found.user_id <> p_user_id then
    raise sqlstate 'PT404' using message = 'hold_not_found', hint = 'There is no such hold.';
  end if;
  -- Closing it may change what another key is to have. The key in use has the same limit before and after.
  if v_found.is_of_another_key then
    perform from doorkey.provisioning as p
      where p.user_id = v_found.user_id and p.key_hash is distinct from v_found.key_hash for update;
  end if;
  perform doorkey.lock_account(v_found.user_id);
  -- Everything that changes a hold locks the account: what is read now stays so.
  select * into strict v_hold from doorkey.credit_holds as h where h.id = p_hold_id;
  return v_hold;
end
$$;
revoke all on function doorkey.lock_hold(uuid, uuid) from public, anon, authenticated, service_role;

-- Has the keys set right, if the limit of one is to change now that something changed about this one: a hold was closed,
-- a cost charged. Never waits: where the key was replaced a moment ago, the row is not ours yet, and whoever has it looks
-- by themselves, or the next sweep does.
create or replace function doorkey.follow_key(p_user_id uuid, p_key_hash text) returns void
language plpgsql security definer set search_path = ''
as $$
begin
  perform from doorkey.provisioning as p
    where p.user_id = p_user_id and p.key_hash is distinct from p_key_hash for update skip locked;
  if found and (doorkey.next_key_action(p_user_id)).is_needed then
    perform doorkey.want(p_user_id);
  end if;
end
$$;
revoke all on function doorkey.follow_key(uuid, text) from public, anon, authenticated, service_role;

-- What a call costs its user, to the fraction: by the plan's price for tokens where it has one and it is known how many
-- they were, and else by the provider's cost. (Multiplied, because a quotient may be rounded.) Not in SQL, which would be
-- planned anew in each call.
create or replace function doorkey.price_of(p_plan public.plans, p_cost_micros numeric, p_tokens bigint) returns numeric
language plpgsql immutable security definer set search_path = ''
as $$
begin
  return case when p_plan.charges_by = 'tokens' and p_tokens is not null
              then p_tokens::numeric * p_plan.token_price_micros_per_1k * 0.001
              else p_cost_micros * p_plan.markup end;
end
$$;
revoke all on function doorkey.price_of(public.plans, numeric, bigint) from public, anon, authenticated, service_role;

-- Charges what something cost the provider, or its tokens (null: nobody knows them), at the plan's price: rounded down to
-- what can be posted, and the remainder carried to the next charge. A hold pays first, then what is available; beyond that
-- it is owed. Every charge is computed here. The account is locked by the caller. is_above_cost: it was more than the
-- cost times the markup, and so the limit of the key shrinks.
create or replace function doorkey.post_charge(
  p_user_id uuid, p_cost_micros numeric, p_tokens bigint, p_held_micros bigint, p_type text, p_idempotency_key text,
  p_reason text, p_provider text, p_model text, p_request_id text,
  out price_micros numeric, out charged_micros bigint, out owed_micros bigint, out is_above_cost boolean,
  out transaction_id bigint
)
language plpgsql security definer set search_path = ''
as $$
declare
  v_account record;
  v_plan public.plans;
  v_carried numeric;
  v_from_held bigint;
  v_from_available bigint;
  v_paid bigint;
begin
  select a.available_micros, a.debt_micros, a.remainder_micros, p as plan into strict v_account
    from public.credit_accounts as a join public.plans as p on p.id = a.plan_id where a.user_id = p_user_id;
  v_plan := v_account.plan;
  price_micros := doorkey.price_of(v_plan, p_cost_micros, p_tokens);
  is_above_cost := price_micros > p_cost_micros * v_plan.markup;
  v_carried := price_micros + v_account.remainder_micros;
  charged_micros := floor(v_carried);
  v_from_held := case when v_plan.is_uncapped then 0 else least(p_held_micros, charged_micros) end;
  v_from_available := case when v_plan.is_uncapped then 0
                           else least(v_account.available_micros, charged_micros - v_from_held) end;
  owed_micros := case when v_plan.is_uncapped then 0 else charged_micros - v_from_held - v_from_available end;
  -- What the hold did not need pays debts first.
  v_paid := least(p_held_micros - v_from_held, v_account.debt_micros);
  transaction_id := doorkey.post_use(
    p_user_id, p_type, p_idempotency_key, p_reason, p_request_id, p_provider, p_model,
    p_held_micros - v_from_held - v_paid - v_from_available, -p_held_micros, v_paid - owed_micros,
    case when v_plan.is_uncapped then -charged_micros else 0 end);
  perform doorkey.spend_lots(p_user_id, v_from_held + v_from_available + v_paid);
  update public.credit_accounts as a set remainder_micros = v_carried - charged_micros where a.user_id = p_user_id;
end
$$;
revoke all on function doorkey.post_charge(uuid, numeric, bigint, bigint, text, text, text, text, text, text)
  from public, anon, authenticated, service_role;

-- A price by tokens may be more than the cost that the key was charged: then what is left is less than the key may still
-- spend, and it is looked at. Never waits, as above. What it may spend more, because the price was less, it gets when the
-- next sweep comes by, or whenever its limit is set for another reason.
create or replace function doorkey.lower_key(p_user_id uuid, p_key_hash text) returns void
language plpgsql security definer set search_path = ''
as $$
begin
  if exists (select from public.openrouter_user_keys as k cross join lateral doorkey.key_limit(p_user_id, k.key_hash) as l
              where k.key_hash = p_key_hash and k.status <> 'deleted' and k.limit_micros > l.limit_micros) then
    perform from doorkey.provisioning as p where p.user_id = p_user_id for update skip locked;
    if found then
      perform doorkey.want(p_user_id);
    end if;
  end if;
end
$$;
revoke all on function doorkey.lower_key(uuid, text) from public, anon, authenticated, service_role;

-- Charges what the call of this hold cost the provider, in micro-dollars and exactly as received, or its tokens on a plan
-- with a price for them. Works on a hold in any state; asked again with the same content it answers again. A user: the
-- hold must be theirs; null: anybody's.
create or replace function doorkey.settle_hold(
  p_user_id uuid, p_hold_id uuid, p_cost_micros numeric, p_tokens bigint, p_provider text, p_model text,
  p_generation_id text, p_request_id text
) returns table (charged_micros bigint, owed_micros bigint)
language plpgsql security definer set search_path = ''
as $$
declare
  v_hold doorkey.credit_holds;
  v_charge record;
begin
  -- (NaN is more than any number.)
  if p_cost_micros is null or p_cost_micros not between 0 and 1000000000000 or min_scale(p_cost_micros) > 30 then
    raise sqlstate 'PT422' using message = 'amount_out_of_range',
      hint = 'A cost is 0 to 1000000000000 micro-dollars, with 30 places at most.';
  end if;
  if p_tokens not between 0 and 1000000000 then
    raise sqlstate 'PT422' using message = 'amount_out_of_range', hint = 'A call has 0 to 1000000000 tokens.';
  end if;
  if greatest(length(p_provider), length(p_model), length(p_generation_id)) > 200 then
    raise sqlstate 'PT422' using message = 'posting_invalid',
      hint = 'A provider, a model and a generation id have 200 characters at most.';
  end if;
  v_hold := doorkey.lock_hold(p_user_id, p_hold_id);
  if v_hold.state = 'settled' then
    if (v_hold.cost_micros, v_hold.tokens, v_hold.provider, v_hold.model, v_hold.generation_id)
       is distinct from (p_cost_micros, p_tokens, p_provider, p_model, p_generation_id) then
      raise sqlstate 'PT409' using message = 'idempotency_conflict',
        hint = 'This hold was settled with another content. A hold is for one call.';
    end if;
    charged_micros := v_hold.charged_micros;
    owed_micros := v_hold.owed_micros;
    return next;
    return;
  end if;
  v_charge := doorkey.post_charge(
    v_hold.user_id, p_cost_micros, p_tokens, v_hold.held_micros, 'usage', 'hold:' || v_hold.id, 'Call', p_provider,
    p_model, p_request_id);
  update public.openrouter_user_keys as k
     set charged_cost_micros = k.charged_cost_micros + p_cost_micros,
         -- A key that was replaced may have said what it had spent before this call was billed. Taken for sure: else what
         -- it spent besides would look as if it were this. The next time it says so, it is right again.
         reported_usage_micros = k.reported_usage_micros + case
           when k.retires_at is not null or k.status = 'deleted' then ceil(p_cost_micros) else 0 end
   where k.key_hash = v_hold.key_hash;
  update doorkey.credit_holds as h
     set state = 'settled', held_micros = 0, provider = p_provider, model = p_model, generation_id = p_generation_id,
         cost_micros = p_cost_micros, tokens = p_tokens, price_micros = v_charge.price_micros,
         charged_micros = v_charge.charged_micros, owed_micros = v_charge.owed_micros, closed_at = coalesce(h.closed_at, now()), settled_at = now()
   where h.id = v_hold.id;
  perform doorkey.follow_key(v_hold.user_id, v_hold.key_hash);
  if v_charge.is_above_cost then
    perform doorkey.lower_key(v_hold.user_id, v_hold.key_hash);
  end if;
  charged_micros := v_charge.charged_micros;
  owed_micros := v_charge.owed_micros;
  return next;
end
$$;
revoke all on function doorkey.settle_hold(uuid, uuid, numeric, bigint, text, text, text, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.settle_hold(uuid, uuid, numeric, bigint, text, text, text, text) to service_role;

create or replace function public.settle_credits(
  hold_id uuid, cost_micros numeric, tokens bigint, provider text, model text, generation_id text, request_id text
) returns table (charged_micros bigint, owed_micros bigint)
language plpgsql set search_path = ''
as $$ begin return query select * from doorkey.settle_hold(null, $1, $2, $3, $4, $5, $6, $7); end $$;
revoke all on function public.settle_credits(uuid, numeric, bigint, text, text, text, text)
  from public, anon, authenticated, service_role;
grant execute on function public.settle_credits(uuid, numeric, bigint, text, text, text, text) to service_role;

-- Ends an open hold without a charge: what it kept pays debts first, and is available again. The account is locked.
create or replace function doorkey.close_hold(
  p_hold doorkey.credit_holds, p_state doorkey.hold_state, p_request_id text
) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  v_paid bigint;
begin
  if p_hold.held_micros > 0 then
    select least(p_hold.held_micros, a.debt_micros) into strict v_paid
      from public.credit_accounts as a where a.user_id = p_hold.user_id;
    perform doorkey.post_use(
      p_hold.user_id, 'release', 'hold:' || p_hold.id,
      case p_state when 'expired' then 'Hold expired' else 'Hold released' end, p_request_id,
      null, null, p_hold.held_micros - v_paid, -p_hold.held_micros, v_paid, 0);
    perform doorkey.spend_lots(p_hold.user_id, v_paid);
  end if;
  update doorkey.credit_holds as h set state = p_state, held_micros = 0, closed_at = now() where h.id = p_hold.id;
  perform doorkey.follow_key(p_hold.user_id, p_hold.key_hash);
end
$$;
revoke all on function doorkey.close_hold(doorkey.credit_holds, doorkey.hold_state, text)
  from public, anon, authenticated, service_role;

-- The call was not made, or cost nothing. Says the hold's state: a closed one stays as it is. A user: the hold must be
-- theirs; null: anybody's.
create or replace function doorkey.release_hold(p_user_id uuid, p_hold_id uuid, p_request_id text) returns text
language plpgsql security definer set search_path = ''
as $$
declare
  v_hold doorkey.credit_holds;
begin
  v_hold := doorkey.lock_hold(p_user_id, p_hold_id);
  if v_hold.state = 'open' then
    perform doorkey.close_hold(v_hold, 'released', p_request_id);
    return 'released';
  end if;
  return v_hold.state;
end
$$;
revoke all on function doorkey.release_hold(uuid, uuid, text) from public, anon, authenticated, service_role;
grant execute on function doorkey.release_hold(uuid, uuid, text) to service_role;

create or replace function public.release_credits(hold_id uuid, request_id text) returns text
language sql set search_path = ''
as $$ select doorkey.release_hold(null, $1, $2); $$;
revoke all on function public.release_credits(uuid, text) from public, anon, authenticated, service_role;
grant execute on function public.release_credits(uuid, text) to service_role;

-- Closes holds whose time is over, the oldest first; how many. It has many users' rows at once, and so waits for none of
-- them: whose rows are locked is left to the next sweep.
create or replace function doorkey.expire_holds(p_rows integer, p_request_id text) returns integer
language plpgsql security definer set search_path = ''
as $$
declare
  v_due doorkey.credit_holds;
  v_count integer := 0;
begin
  if p_rows is null or p_rows not between 1 and 1000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Expire 1 to 1000 holds at a time.';
  end if;
  for v_due in
    select * from doorkey.credit_holds as h
     where h.state = 'open' and h.expires_at <= now() order by h.expires_at limit p_rows
  loop
    -- The account, and the row of the key where it isn't the one in use; each in a statement, in the order of locks.
    if exists (select from doorkey.provisioning as p
                where p.user_id = v_due.user_id and p.key_hash is distinct from v_due.key_hash) then
      perform from doorkey.provisioning as p where p.user_id = v_due.user_id for update skip locked;
      continue when not found;
    end if;
    perform from public.credit_accounts as a where a.user_id = v_due.user_id for no key update skip locked;
    continue when not found;
    select * into strict v_due from doorkey.credit_holds as h where h.id = v_due.id;
    continue when v_due.state <> 'open';
    perform doorkey.close_hold(v_due, 'expired', p_request_id);
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;
revoke all on function doorkey.expire_holds(integer, text) from public, anon, authenticated, service_role;
grant execute on function doorkey.expire_holds(integer, text) to service_role;

create or replace function public.expire_holds(expired_rows integer, request_id text) returns integer
language sql set search_path = ''
as $$ select doorkey.expire_holds($1, $2); $$;
revoke all on function public.expire_holds(integer, text) from public, anon, authenticated, service_role;
grant execute on function public.expire_holds(integer, text) to service_role;
