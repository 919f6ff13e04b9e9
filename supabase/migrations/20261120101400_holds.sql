-- Holds: credits are kept for a call before it goes out, and what it cost is charged when it has come back.
--
-- A hold is no posting: it puts aside some of what is spendable, on the account's row, and the ledger hears of the call
-- when it is charged. A cost is never dropped, whatever became of its hold: the money was spent. What the hold doesn't
-- cover comes out of what is available, and beyond that the user owes it. Lock order: provisioning row (only where the key
-- is not the one in use), account, lots, key and hold.
--
-- Reserving and settling are on every call's way. So each says in few statements what elsewhere is a function each.

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

-- Each call writes a row and settles it, and Postgres reads the text of every check anew for each statement: so they are
-- few, and say what may not be.
create table if not exists doorkey.credit_holds (
  id uuid primary key default gen_random_uuid(),
  -- Whoever writes has locked the account, and read the key that the call goes through. Neither is ever deleted: a reference
  -- would only ask again whether it is there.
  user_id uuid not null,
  key_hash text not null,
  -- What was asked for, and what is kept of it now: nothing on a plan without cap, and nothing once it is closed.
  amount_micros bigint not null,
  held_micros bigint not null,
  state doorkey.hold_state not null default 'open',
  idempotency_key varchar(200) not null,
  request_id text,
  -- What was answered, to answer it again.
  available_after_micros bigint not null,
  -- The settlement: the provider's cost exactly as received.
  provider text,
  model text,
  generation_id text,
  cost_micros numeric,
  -- How many tokens it was, if that was said.
  tokens bigint,
  -- The price to the fraction, what was charged of it and of what was carried, and what of that is owed.
  price_micros numeric,
  charged_micros bigint,
  owed_micros bigint,
  created_at timestamptz not null default now(),
  expires_at timestamptz not null,
  -- When it ceased to keep anything, and when it was settled.
  closed_at timestamptz,
  settled_at timestamptz,
  -- (Of what is null, the least takes no notice.)
  constraint amounts_are_possible check (
    least(amount_micros - 1, available_after_micros, tokens, owed_micros, charged_micros - owed_micros) >= 0
    and least(cost_micros, price_micros) >= 0 and greatest(cost_micros, price_micros) < 'infinity'),
  constraint ends_after_its_beginning check (expires_at > created_at),
  constraint keeps_all_or_nothing_and_only_while_open check (
    held_micros = 0 or (held_micros = amount_micros and closed_at is null)),
  constraint open_exactly_until_closed check ((state = 'open') = (closed_at is null)),
  constraint settled_exactly_with_its_call check (
    case state when 'settled' then num_nulls(settled_at, cost_micros, price_micros, charged_micros, owed_micros)
               else num_nonnulls(settled_at, cost_micros, price_micros, charged_micros, owed_micros, tokens, provider, model,
                                 generation_id) end = 0),
  constraint idempotency_key_is_one check (idempotency_key <> ''),
  -- Whoever sends keys chooses them: nobody's stands in the way of another's.
  constraint one_hold_for_each_key_of_a_user unique (user_id, idempotency_key)
);
create index if not exists credit_holds_expiring on doorkey.credit_holds (expires_at) where state = 'open';
-- "What do its open ones keep? What expired lately? What did this key's receipts of a day come to?" One user may have
-- millions.
create index if not exists credit_holds_key on doorkey.credit_holds (key_hash, state, settled_at, closed_at)
  include (cost_micros);
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
     where l.user_id = p_user_id and not l.is_empty
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
  p_request_id text,
  out hold_id uuid, out bound_key_hash text, out expires_at timestamptz, out available_after_micros bigint
)
language plpgsql security definer set search_path = ''
as $$
declare
  v_account record;
  v_now record;
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
  select a.plan_id, a.available_micros, a.period_spent_micros + a.held_micros as counted_micros into v_account
    from public.credit_accounts as a where a.user_id = p_user_id for no key update;
  if not found then
    raise sqlstate 'PT404' using message = 'profile_not_found', hint = 'This user has no account.';
  end if;
  -- Everything else, in a statement of its own: it sees what there is since the lock was taken, and the key in use stays
  -- so until the end.
  select p.is_uncapped, p.monthly_cap_micros, k.key_hash, k.status = 'active' and u.id is not null as is_usable,
         h.id as hold_id, h.key_hash as hold_key_hash, h.amount_micros, h.created_at, h.expires_at, h.available_after_micros
    into strict v_now
    from public.plans as p
    left join doorkey.provisioning as w on w.user_id = p_user_id
    left join public.openrouter_user_keys as k on k.key_hash = w.key_hash
    -- Who is enabled, as desired_key has it.
    left join auth.users as u on u.id = p_user_id and u.deleted_at is null
     and (u.banned_until is null or u.banned_until <= now())
    left join doorkey.credit_holds as h on h.user_id = p_user_id and h.idempotency_key = p_idempotency_key
   where p.id = v_account.plan_id;
  if v_now.hold_id is null then
    if v_now.key_hash is null then
      raise sqlstate 'PT404' using message = 'no_key', hint = 'There is no key yet that a call could go through.';
    end if;
    if v_now.key_hash <> p_key_hash then
      raise sqlstate 'PT409' using message = 'key_replaced', hint = 'A key that retires begins nothing new.';
    end if;
    if not v_now.is_usable then
      raise sqlstate 'PT403' using message = 'key_disabled', hint = 'The user is banned or gone.';
    end if;
    v_held := case when v_now.is_uncapped then 0 else p_amount_micros end;
    if v_account.counted_micros + v_held > v_now.monthly_cap_micros then
      raise sqlstate 'PT402' using message = 'insufficient_credits',
        hint = 'The plan allows no more in this period, with what other calls hold.';
    end if;
    if v_account.available_micros < v_held then
      raise sqlstate 'PT402' using message = 'insufficient_credits',
        hint = format('%s micro-dollars are available.', v_account.available_micros);
    end if;
    bound_key_hash := v_now.key_hash;
    available_after_micros := v_account.available_micros - v_held;
    insert into doorkey.credit_holds as h
      (user_id, key_hash, amount_micros, held_micros, idempotency_key, request_id, available_after_micros, expires_at)
    values (p_user_id, bound_key_hash, p_amount_micros, v_held, p_idempotency_key, p_request_id,
            reserve_credits.available_after_micros, now() + make_interval(secs => p_ttl_seconds))
    returning h.id, h.expires_at into hold_id, expires_at;
    if v_held > 0 then
      update public.credit_accounts as a
         set available_micros = a.available_micros - v_held, held_micros = a.held_micros + v_held, updated_at = now()
       where a.user_id = p_user_id;
    end if;
  elsif (v_now.amount_micros, v_now.expires_at - v_now.created_at, v_now.hold_key_hash)
     is distinct from (p_amount_micros, make_interval(secs => p_ttl_seconds),
                       coalesce(p_key_hash, v_now.hold_key_hash)) then
    raise sqlstate 'PT409' using message = 'idempotency_conflict',
      hint = 'This key was used for another content. Use a new key for a new hold.';
  else
    hold_id := v_now.hold_id;
    bound_key_hash := v_now.hold_key_hash;
    expires_at := v_now.expires_at;
    available_after_micros := v_now.available_after_micros;
  end if;
end
$$;
revoke all on function doorkey.reserve_credits(uuid, bigint, integer, text, text, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.reserve_credits(uuid, bigint, integer, text, text, text) to service_role;

-- This door and that of settling are not in SQL, which would be planned anew in each call, and call without a query.
create or replace function public.reserve_credits(
  user_id uuid, amount_micros bigint, ttl_seconds integer, idempotency_key text, key_hash text, request_id text
) returns table (hold_id uuid, bound_key_hash text, expires_at timestamptz, available_after_micros bigint)
language plpgsql set search_path = ''
as $$
declare
  v record;
begin
  v := doorkey.reserve_credits($1, $2, $3, $4, $5, $6);
  hold_id := v.hold_id;
  bound_key_hash := v.bound_key_hash;
  expires_at := v.expires_at;
  available_after_micros := v.available_after_micros;
  return next;
end
$$;
revoke all on function public.reserve_credits(uuid, bigint, integer, text, text, text)
  from public, anon, authenticated, service_role;
grant execute on function public.reserve_credits(uuid, bigint, integer, text, text, text) to service_role;

-- Locks what stands before this hold: its account, and the row of the key where that is not the one in use: closing the
-- hold may change what another key is to have. A user: it must be theirs; null: anybody's.
create or replace function doorkey.lock_hold(p_user_id uuid, p_hold_id uuid) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  v_found record;
begin
  select h.user_id, h.key_hash into v_found from doorkey.credit_holds as h where h.id = p_hold_id;
  if not found or v_found.user_id <> p_user_id then
    raise sqlstate 'PT404' using message = 'hold_not_found', hint = 'There is no such hold.';
  end if;
  perform from doorkey.provisioning as p
    where p.user_id = v_found.user_id and p.key_hash is distinct from v_found.key_hash for update;
  perform doorkey.lock_account(v_found.user_id);
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

-- Charges what something cost the provider, or its tokens (null: nobody knows them), at the plan's price: rounded down to
-- what can be posted, and the remainder carried to the next charge. A hold pays first, then what is available; beyond that
-- it is owed. Every charge is computed here. The account is locked by the caller. is_above_cost: it was more than the
-- cost times the markup, and so the limit of the key shrinks. What it cost is counted on the account for the key in use; for
-- another one it is the caller's to add.
create or replace function doorkey.post_charge(
  p_user_id uuid, p_cost_micros numeric, p_tokens bigint, p_held_micros bigint, p_type doorkey.transaction_type,
  p_idempotency_key text, p_reason text, p_provider text, p_model text, p_is_key_in_use boolean, p_request_id text,
  out price_micros numeric, out charged_micros bigint, out owed_micros bigint, out is_above_cost boolean,
  out transaction_id bigint
)
language plpgsql security definer set search_path = ''
as $$
declare
  v record;
  v_from_held bigint := 0;
  v_from_available bigint := 0;
  v_spendable bigint;
  v_paid bigint;
begin
  -- The price: by the plan's for tokens where it has one and it is known how many they were, and else by the provider's
  -- cost. (Multiplied, because a quotient may be rounded.)
  select a.available_micros, a.debt_micros, q.price_micros, q.price_micros + a.remainder_micros as carried_micros,
         p.is_uncapped, q.price_micros > p_cost_micros * p.markup as is_above_cost
    into strict v
    from public.credit_accounts as a
    join public.plans as p on p.id = a.plan_id
   cross join lateral (
     select case when p.charges_by = 'tokens' and p_tokens is not null
                 then p_tokens::numeric * p.token_price_micros_per_1k * 0.001
                 else p_cost_micros * p.markup end as price_micros) as q
   where a.user_id = p_user_id;
  price_micros := v.price_micros;
  is_above_cost := v.is_above_cost;
  charged_micros := floor(v.carried_micros);
  owed_micros := 0;
  if not v.is_uncapped then
    v_from_held := least(p_held_micros, charged_micros);
    v_from_available := least(v.available_micros, charged_micros - v_from_held);
    owed_micros := charged_micros - v_from_held - v_from_available;
  end if;
  -- What the hold did not need pays debts first.
  v_paid := least(p_held_micros - v_from_held, v.debt_micros);
  v_spendable := v_from_held + v_from_available + v_paid;
  insert into public.credit_transactions as t
    (user_id, type, amount_micros, spendable_micros, debt_micros, receivable_micros, system_account, released_micros,
     remainder_micros, key_cost_micros, idempotency_key, reason, actor, provider, model, request_id)
  values (p_user_id, p_type, -charged_micros, -v_spendable, v_paid - owed_micros,
          case when v.is_uncapped then -charged_micros else 0 end, 'spent', p_held_micros,
          v.carried_micros - charged_micros, case when p_is_key_in_use then p_cost_micros else 0 end, p_idempotency_key,
          p_reason, 'credits', p_provider, p_model, p_request_id)
  returning t.id into transaction_id;
  if v_spendable > 0 then
    -- Nearly always the lot that is spent next has enough.
    update doorkey.credit_lots as l set remaining_micros = l.remaining_micros - v_spendable
     where l.id = (select o.id from doorkey.credit_lots as o where o.user_id = p_user_id and not o.is_empty
                    order by o.priority, o.expires_at nulls last, o.id limit 1)
       and l.remaining_micros >= v_spendable;
    if not found then
      perform doorkey.spend_lots(p_user_id, v_spendable);
    end if;
  end if;
end
$$;
revoke all on function doorkey.post_charge(uuid, numeric, bigint, bigint, doorkey.transaction_type, text, text, text, text, boolean, text)
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
  p_generation_id text, p_request_id text, out charged_micros bigint, out owed_micros bigint
)
language plpgsql security definer set search_path = ''
as $$
declare
  v_hold record;
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
  -- The usual case, a hold of the key in use: that key has the same limit before and after, and its row is not locked.
  perform from doorkey.credit_holds as h
     join doorkey.provisioning as w on w.user_id = h.user_id and w.key_hash = h.key_hash
     join public.credit_accounts as a on a.user_id = h.user_id
    where h.id = p_hold_id and h.user_id = coalesce(p_user_id, h.user_id)
      for no key update of a;
  if not found then
    perform doorkey.lock_hold(p_user_id, p_hold_id);
  end if;
  -- Everything that changes a hold locks the account: what is read now stays so.
  select h.user_id, h.key_hash, h.state, h.held_micros, h.charged_micros, h.owed_micros,
         (h.cost_micros, h.tokens, h.provider, h.model, h.generation_id)
         is distinct from (p_cost_micros, p_tokens, p_provider, p_model, p_generation_id) as is_other,
         w.key_hash is distinct from h.key_hash as is_of_another_key
    into strict v_hold
    from doorkey.credit_holds as h left join doorkey.provisioning as w on w.user_id = h.user_id where h.id = p_hold_id;
  if v_hold.state = 'settled' then
    if v_hold.is_other then
      raise sqlstate 'PT409' using message = 'idempotency_conflict',
        hint = 'This hold was settled with another content. A hold is for one call.';
    end if;
    charged_micros := v_hold.charged_micros;
    owed_micros := v_hold.owed_micros;
    return;
  end if;
  v_charge := doorkey.post_charge(
    v_hold.user_id, p_cost_micros, p_tokens, v_hold.held_micros, 'usage', 'hold:' || p_hold_id, 'Call', p_provider,
    p_model, not v_hold.is_of_another_key, p_request_id);
  update doorkey.credit_holds as h
     set state = 'settled', held_micros = 0, provider = p_provider, model = p_model, generation_id = p_generation_id,
         cost_micros = p_cost_micros, tokens = p_tokens, price_micros = v_charge.price_micros,
         charged_micros = v_charge.charged_micros, owed_micros = v_charge.owed_micros,
         closed_at = coalesce(h.closed_at, now()), settled_at = now()
   where h.id = p_hold_id;
  if v_hold.is_of_another_key then
    -- A key that was replaced may have said what it had spent before this call was billed. Taken for sure: else what it
    -- spent besides would look as if it were this. The next time it says so, it is right again.
    update public.openrouter_user_keys as k
       set charged_cost_micros = k.charged_cost_micros + p_cost_micros,
           reported_usage_micros = k.reported_usage_micros + ceil(p_cost_micros)
     where k.key_hash = v_hold.key_hash;
    perform doorkey.follow_key(v_hold.user_id, v_hold.key_hash);
  end if;
  if v_charge.is_above_cost then
    perform doorkey.lower_key(v_hold.user_id, v_hold.key_hash);
  end if;
  charged_micros := v_charge.charged_micros;
  owed_micros := v_charge.owed_micros;
end
$$;
revoke all on function doorkey.settle_hold(uuid, uuid, numeric, bigint, text, text, text, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.settle_hold(uuid, uuid, numeric, bigint, text, text, text, text) to service_role;

create or replace function public.settle_credits(
  hold_id uuid, cost_micros numeric, tokens bigint, provider text, model text, generation_id text, request_id text
) returns table (charged_micros bigint, owed_micros bigint)
language plpgsql set search_path = ''
as $$
declare
  v record;
begin
  v := doorkey.settle_hold(null, $1, $2, $3, $4, $5, $6, $7);
  charged_micros := v.charged_micros;
  owed_micros := v.owed_micros;
  return next;
end
$$;
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
    update public.credit_accounts as a
       set available_micros = a.available_micros + p_hold.held_micros, held_micros = a.held_micros - p_hold.held_micros,
           updated_at = now()
     where a.user_id = p_hold.user_id
    returning least(p_hold.held_micros, a.debt_micros) into strict v_paid;
    if v_paid > 0 then
      insert into public.credit_transactions
        (user_id, type, amount_micros, spendable_micros, debt_micros, system_account, idempotency_key, reason, actor,
         request_id)
      values (p_hold.user_id, 'adjustment', 0, -v_paid, v_paid, 'spent', 'hold:' || p_hold.id,
              'What a call did not need pays a debt', 'credits', p_request_id);
      perform doorkey.spend_lots(p_hold.user_id, v_paid);
    end if;
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
  perform doorkey.lock_hold(p_user_id, p_hold_id);
  select * into strict v_hold from doorkey.credit_holds as h where h.id = p_hold_id;
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
