-- Credits that an operator gives and takes, and how any credits leave: refunds, clawbacks, and what expires.
--
-- What is taken can still be spent at OpenRouter until the key's limit is lowered there. So it goes to `leaving` first,
-- where no hold finds it, and is posted out when OpenRouter has confirmed. Who can't spend it any more, because it is
-- spent, comes to owe it. Lock order: provisioning row, account, lots.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- One row for each time that credits were taken and could still be spent; its transaction moves them to `leaving`.
create table if not exists doorkey.credit_takings (
  transaction_id bigint primary key references public.credit_transactions (id),
  user_id uuid not null references public.credit_accounts (user_id),
  -- The lot that it is about; null: those that would have been spent next.
  lot_id bigint references doorkey.credit_lots (id),
  -- What was asked for; what was there, and went to `leaving`; what was spent already, and is owed instead.
  asked_micros bigint not null check (asked_micros > 0),
  taken_micros bigint not null check (taken_micros >= 0),
  owed_micros bigint not null default 0 check (owed_micros >= 0),
  -- The grant that it takes back. At most once.
  reverses_transaction_id bigint unique references public.credit_transactions (id),
  -- What posted it out; null: the key may still be able to spend it.
  left_transaction_id bigint unique references public.credit_transactions (id),
  check (taken_micros + owed_micros <= asked_micros)
);
create index if not exists credit_takings_leaving
  on doorkey.credit_takings (user_id) where left_transaction_id is null and taken_micros > 0;
create index if not exists credit_takings_user on doorkey.credit_takings (user_id);
create index if not exists credit_takings_lot on doorkey.credit_takings (lot_id);
alter table doorkey.credit_takings enable row level security;
revoke all on table doorkey.credit_takings from public, anon, authenticated, service_role;

-- Whether OpenRouter may let a key of the user spend more than the ledger does: a limit is to be lowered yet, or was set
-- by somebody whom nobody has heard of since. Whose key works on it is asked for the last time when that one finishes.
create or replace function doorkey.is_limit_to_be_lowered(p_user_id uuid) returns boolean
language sql stable security definer set search_path = ''
as $$
  select exists (select from doorkey.provisioning as p where p.user_id = p_user_id and p.state = 'working')
      or exists (
        select from public.openrouter_user_keys as k
         cross join lateral doorkey.key_limit(p_user_id, k.key_hash) as l
         where k.user_id = p_user_id and k.status <> 'deleted' and not l.is_uncapped
           and (k.limit_micros is null or k.limit_micros > l.limit_micros or k.is_doubtful or k.confirm_at is not null));
$$;
revoke all on function doorkey.is_limit_to_be_lowered(uuid) from public, anon, authenticated, service_role;

-- Posts out what is leaving, once no key of the user can spend it any more. Called by whatever confirms a limit; the
-- provisioning row is locked by the caller.
create or replace function doorkey.post_out_leaving(p_user_id uuid) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  v_leaving record;
  v_id bigint;
begin
  if not exists (select from doorkey.credit_takings as g
                  where g.user_id = p_user_id and g.left_transaction_id is null and g.taken_micros > 0) then
    return;
  end if;
  perform doorkey.lock_account(p_user_id);
  if doorkey.is_limit_to_be_lowered(p_user_id) then
    return;
  end if;
  for v_leaving in
    select t.*, g.taken_micros
      from doorkey.credit_takings as g join public.credit_transactions as t on t.id = g.transaction_id
     where g.user_id = p_user_id and g.left_transaction_id is null and g.taken_micros > 0
     order by t.id
  loop
    insert into public.credit_transactions
      (user_id, type, amount_micros, leaving_micros, system_account, idempotency_key, reason, actor, request_id)
    values (p_user_id, v_leaving.type, -v_leaving.taken_micros, -v_leaving.taken_micros, doorkey.end_of(v_leaving.type),
            'left:' || v_leaving.id, v_leaving.reason, v_leaving.actor, v_leaving.request_id)
    returning id into v_id;
    update doorkey.credit_takings as g set left_transaction_id = v_id where g.transaction_id = v_leaving.id;
  end loop;
end
$$;
revoke all on function doorkey.post_out_leaving(uuid) from public, anon, authenticated, service_role;

-- Where credits end that are taken: what has had its time is expired, all else goes back to where it came from.
create or replace function doorkey.end_of(p_type doorkey.transaction_type) returns doorkey.system_account
language sql immutable security definer set search_path = ''
as $$
  select case when p_type in ('expiry', 'renewal') then 'expired' else 'granted' end::doorkey.system_account;
$$;
revoke all on function doorkey.end_of(doorkey.transaction_type) from public, anon, authenticated, service_role;

-- Takes credits out of one lot, or, if none is named, out of those that would have been spent next. Only what is
-- available; what isn't there any more is owed if it is a refund or an adjustment (then all of the user's credits answer
-- for it, and not the lot alone), and forgone else. A repeat with the same content answers as the first did.
create or replace function doorkey.take_credits(
  p_user_id uuid, p_type doorkey.transaction_type, p_amount_micros bigint, p_idempotency_key text, p_reason text, p_actor text,
  p_request_id text, p_lot_id bigint,
  out transaction_id bigint, out taken_micros bigint, out owed_micros bigint
)
language plpgsql security definer set search_path = ''
as $$
declare
  v_available bigint;
  v_from_lot bigint := 0;
  v_known record;
  v_becomes_debt constant boolean := p_type in ('refund', 'adjustment');
begin
  if p_amount_micros is null or p_amount_micros <= 0 then
    raise sqlstate 'PT422' using message = 'amount_out_of_range', hint = 'Take a positive number of micro-dollars.';
  end if;
  perform doorkey.want(p_user_id);
  v_available := (doorkey.lock_account(p_user_id)).available_micros;
  taken_micros := least(p_amount_micros, v_available);
  if p_lot_id is not null then
    select least(taken_micros, l.remaining_micros) into strict v_from_lot
      from doorkey.credit_lots as l where l.id = p_lot_id and l.user_id = p_user_id;
    taken_micros := case when v_becomes_debt then taken_micros else v_from_lot end;
  end if;
  owed_micros := case when v_becomes_debt then p_amount_micros - taken_micros else 0 end;
  insert into public.credit_transactions
    (user_id, type, amount_micros, spendable_micros, leaving_micros, debt_micros, system_account, idempotency_key, reason,
     actor, request_id)
  values (p_user_id, p_type, -owed_micros, -taken_micros, taken_micros, -owed_micros, doorkey.end_of(p_type),
          p_idempotency_key, p_reason, p_actor, p_request_id)
  on conflict on constraint credit_transactions_once do nothing
  returning id into transaction_id;
  if transaction_id is null then
    select t.user_id, t.reason, g.transaction_id, g.lot_id, g.asked_micros, g.taken_micros, g.owed_micros into v_known
      from public.credit_transactions as t left join doorkey.credit_takings as g on g.transaction_id = t.id
     where t.type = p_type and t.idempotency_key = p_idempotency_key;
    if (v_known.user_id, v_known.reason, v_known.asked_micros, v_known.lot_id)
       is distinct from (p_user_id, p_reason, p_amount_micros, p_lot_id) then
      raise sqlstate 'PT409' using message = 'idempotency_conflict',
        hint = 'This key was used for another content. Use a new key for new credits.';
    end if;
    transaction_id := v_known.transaction_id;
    taken_micros := v_known.taken_micros;
    owed_micros := v_known.owed_micros;
    return;
  end if;
  update doorkey.credit_lots as l
     set remaining_micros = l.remaining_micros - v_from_lot, withdrawn_micros = l.withdrawn_micros + v_from_lot
   where l.id = p_lot_id;
  perform doorkey.spend_lots(p_user_id, taken_micros - v_from_lot);
  insert into doorkey.credit_takings as g (transaction_id, user_id, lot_id, asked_micros, taken_micros, owed_micros)
  values (take_credits.transaction_id, p_user_id, p_lot_id, p_amount_micros, take_credits.taken_micros,
          take_credits.owed_micros);
  perform doorkey.post_out_leaving(p_user_id);
end
$$;
revoke all on function doorkey.take_credits(uuid, doorkey.transaction_type, bigint, text, text, text, text, bigint)
  from public, anon, authenticated, service_role;

-- What an operator was answered, to answer it again.
create table if not exists doorkey.posting_answers (
  transaction_id bigint primary key references public.credit_transactions (id),
  available_after_micros bigint not null check (available_after_micros >= 0)
);
alter table doorkey.posting_answers enable row level security;
revoke all on table doorkey.posting_answers from public, anon, authenticated, service_role;

-- What was available to the user right after this transaction: now, if it was posted now. Their account is locked by the
-- caller.
create or replace function doorkey.available_after(p_user_id uuid, p_transaction_id bigint) returns bigint
language plpgsql security definer set search_path = ''
as $$
begin
  insert into doorkey.posting_answers (transaction_id, available_after_micros)
  select p_transaction_id, a.available_micros from public.credit_accounts as a where a.user_id = p_user_id
  on conflict (transaction_id) do nothing;
  return (select r.available_after_micros from doorkey.posting_answers as r where r.transaction_id = p_transaction_id);
end
$$;
revoke all on function doorkey.available_after(uuid, bigint) from public, anon, authenticated, service_role;

-- Whether this was posted before. What an operator calls a posting is set apart from what we call ours.
create or replace function doorkey.is_posted(p_type doorkey.transaction_type, p_operator_key text) returns boolean
language sql stable security definer set search_path = ''
as $$
  select exists (select from public.credit_transactions as t
                  where t.type = p_type and t.idempotency_key = 'operator:' || p_operator_key);
$$;
revoke all on function doorkey.is_posted(doorkey.transaction_type, text) from public, anon, authenticated, service_role;

-- What an operator must say, whatever they do.
create or replace function doorkey.check_posting(p_idempotency_key text, p_reason text, p_actor text) returns void
language plpgsql immutable security definer set search_path = ''
as $$
begin
  if p_idempotency_key is null or length(p_idempotency_key) not between 1 and 180 then
    raise sqlstate 'PT422' using message = 'idempotency_key_invalid', hint = 'Send a key of 1 to 180 characters.';
  end if;
  if p_reason is null or length(p_reason) not between 1 and 500 then
    raise sqlstate 'PT422' using message = 'posting_invalid', hint = 'Give a reason of 1 to 500 characters.';
  end if;
  if p_actor is null or length(p_actor) not between 1 and 200 then
    raise sqlstate 'PT422' using message = 'posting_invalid', hint = 'Say who asks, in 1 to 200 characters.';
  end if;
end
$$;
revoke all on function doorkey.check_posting(text, text, text) from public, anon, authenticated, service_role;

-- An operator gives credits (a positive amount) or takes them (a negative one), and the key's limit follows. Asked again
-- with the same content it answers again: the same user, type, amount, reason and expiry. Who asks may be another one.
create or replace function doorkey.post_credits(
  p_user_id uuid, p_type text, p_amount_micros bigint, p_idempotency_key text, p_reason text, p_actor text,
  p_expires_at timestamptz, p_request_id text
) returns table (transaction_id bigint, available_after_micros bigint, owed_micros bigint)
language plpgsql security definer set search_path = ''
as $$
declare
  v_before public.credit_accounts;
  v_after public.credit_accounts;
  v_is_repeat boolean;
  v_type doorkey.transaction_type;
  v_id bigint;
  v_owed bigint := 0;
begin
  perform doorkey.check_posting(p_idempotency_key, p_reason, p_actor);
  if p_type is null or p_type not in ('purchase', 'bonus', 'refund', 'adjustment') then
    raise sqlstate 'PT422' using message = 'posting_invalid',
      hint = 'Post a purchase, a bonus, a refund or an adjustment.';
  end if;
  if p_amount_micros is null or p_amount_micros = 0 or p_amount_micros not between -1000000000000 and 1000000000000
     or (p_type = 'purchase' and p_amount_micros < 0) then
    raise sqlstate 'PT422' using message = 'amount_out_of_range',
      hint = 'Post 1 to 1000000000000 micro-dollars, or as many with a minus sign; a purchase is positive.';
  end if;
  v_type := p_type;
  perform doorkey.want(p_user_id);
  v_before := doorkey.lock_account(p_user_id);
  v_is_repeat := doorkey.is_posted(v_type, p_idempotency_key);
  if p_expires_at is not null and (p_amount_micros < 0 or (p_expires_at <= now() and not v_is_repeat)) then
    raise sqlstate 'PT422' using message = 'posting_invalid', hint = 'Only what is given can expire, and later.';
  end if;
  -- Whoever is gone can't spend it. What sets their books right, a refund or an adjustment, is posted.
  if p_type in ('purchase', 'bonus') and p_amount_micros > 0 and not v_is_repeat
     and not (doorkey.desired_key(p_user_id)).is_present then
    raise sqlstate 'PT404' using message = 'profile_not_found', hint = 'The user was deleted.';
  end if;
  if p_amount_micros < 0 then
    select t.transaction_id, t.owed_micros into v_id, v_owed
      from doorkey.take_credits(p_user_id, v_type, -p_amount_micros, 'operator:' || p_idempotency_key, p_reason,
                                p_actor, p_request_id, null) as t;
  else
    v_id := doorkey.grant_credits(p_user_id, v_type, p_amount_micros, 'operator:' || p_idempotency_key, p_reason,
                                  p_actor, p_expires_at, p_request_id);
    if (select l.expires_at from doorkey.credit_lots as l where l.transaction_id = v_id)
       is distinct from p_expires_at then
      raise sqlstate 'PT409' using message = 'idempotency_conflict',
        hint = 'This key was used for credits that expire at another time.';
    end if;
  end if;
  if not v_is_repeat then
    v_after := doorkey.lock_account(p_user_id);
    perform doorkey.write_audit(p_actor, 'credits.posted', p_user_id, p_request_id, jsonb_build_object(
      'transaction_id', v_id, 'type', p_type, 'amount_micros', p_amount_micros, 'reason', p_reason,
      'available_before_micros', v_before.available_micros, 'available_after_micros', v_after.available_micros,
      'debt_before_micros', v_before.debt_micros, 'debt_after_micros', v_after.debt_micros));
  end if;
  return query select v_id, doorkey.available_after(p_user_id, v_id), v_owed;
end
$$;
revoke all on function doorkey.post_credits(uuid, text, bigint, text, text, text, timestamptz, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.post_credits(uuid, text, bigint, text, text, text, timestamptz, text) to service_role;

create or replace function public.post_credits(
  user_id uuid, type text, amount_micros bigint, idempotency_key text, reason text, actor text,
  expires_at timestamptz, request_id text
) returns table (transaction_id bigint, available_after_micros bigint, owed_micros bigint)
language sql set search_path = ''
as $$ select * from doorkey.post_credits($1, $2, $3, $4, $5, $6, $7, $8); $$;
revoke all on function public.post_credits(uuid, text, bigint, text, text, text, timestamptz, text)
  from public, anon, authenticated, service_role;
grant execute on function public.post_credits(uuid, text, bigint, text, text, text, timestamptz, text) to service_role;

-- Takes a whole grant back, once, by an entry that reverses it: what is left of its lot first, then of others; what is
-- spent already is owed. What left that lot by itself, because it expired, is not taken a second time.
create or replace function doorkey.reverse_transaction(
  p_transaction_id bigint, p_idempotency_key text, p_reason text, p_actor text, p_request_id text
) returns table (transaction_id bigint, available_after_micros bigint, owed_micros bigint)
language plpgsql security definer set search_path = ''
as $$
declare
  v_lot doorkey.credit_lots;
  v_before public.credit_accounts;
  v_after public.credit_accounts;
  v_known record;
  v_amount bigint;
  v_id bigint;
  v_owed bigint;
begin
  perform doorkey.check_posting(p_idempotency_key, p_reason, p_actor);
  if not exists (select from public.credit_transactions as t where t.id = p_transaction_id) then
    raise sqlstate 'PT404' using message = 'transaction_not_found', hint = 'There is no such transaction.';
  end if;
  select l.* into v_lot from doorkey.credit_lots as l where l.transaction_id = p_transaction_id;
  if not found then
    raise sqlstate 'PT409' using message = 'transaction_not_reversible', hint = 'Only what gave credits can be reversed.';
  end if;
  perform doorkey.want(v_lot.user_id);
  v_before := doorkey.lock_account(v_lot.user_id);
  select g.transaction_id, g.owed_micros, t.idempotency_key, t.reason into v_known
    from doorkey.credit_takings as g join public.credit_transactions as t on t.id = g.transaction_id
   where g.reverses_transaction_id = p_transaction_id;
  if found then
    if v_known.idempotency_key <> 'operator:' || p_idempotency_key then
      raise sqlstate 'PT409' using message = 'already_reversed',
        hint = format('Transaction %s did it.', v_known.transaction_id);
    elsif v_known.reason <> p_reason then
      raise sqlstate 'PT409' using message = 'idempotency_conflict', hint = 'This key was used with another reason.';
    end if;
    return query select v_known.transaction_id, doorkey.available_after(v_lot.user_id, v_known.transaction_id),
                        v_known.owed_micros;
    return;
  end if;
  if doorkey.is_posted('adjustment', p_idempotency_key) then
    raise sqlstate 'PT409' using message = 'idempotency_conflict', hint = 'This key was used for another posting.';
  end if;
  select l.amount_micros - l.withdrawn_micros into strict v_amount from doorkey.credit_lots as l where l.id = v_lot.id;
  if v_amount = 0 then
    raise sqlstate 'PT409' using message = 'transaction_not_reversible', hint = 'All of it has left already.';
  end if;
  select t.transaction_id, t.owed_micros into v_id, v_owed
    from doorkey.take_credits(v_lot.user_id, 'adjustment', v_amount, 'operator:' || p_idempotency_key, p_reason, p_actor,
                              p_request_id, v_lot.id) as t;
  update doorkey.credit_takings as g set reverses_transaction_id = p_transaction_id where g.transaction_id = v_id;
  v_after := doorkey.lock_account(v_lot.user_id);
  perform doorkey.write_audit(p_actor, 'credits.reversed', v_lot.user_id, p_request_id, jsonb_build_object(
    'transaction_id', v_id, 'reverses_transaction_id', p_transaction_id, 'amount_micros', -v_amount, 'reason', p_reason,
    'available_before_micros', v_before.available_micros, 'available_after_micros', v_after.available_micros,
    'debt_before_micros', v_before.debt_micros, 'debt_after_micros', v_after.debt_micros));
  return query select v_id, doorkey.available_after(v_lot.user_id, v_id), v_owed;
end
$$;
revoke all on function doorkey.reverse_transaction(bigint, text, text, text, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.reverse_transaction(bigint, text, text, text, text) to service_role;

create or replace function public.reverse_transaction(
  transaction_id bigint, idempotency_key text, reason text, actor text, request_id text
) returns table (reversing_id bigint, available_after_micros bigint, owed_micros bigint)
language sql set search_path = ''
as $$ select * from doorkey.reverse_transaction($1, $2, $3, $4, $5); $$;
revoke all on function public.reverse_transaction(bigint, text, text, text, text)
  from public, anon, authenticated, service_role;
grant execute on function public.reverse_transaction(bigint, text, text, text, text) to service_role;
