-- Recomputes what is stored about a user's money from the entries of the ledger, page by page, and says what differs.
--
-- The surprising thing: it mends nothing. A balance that differs from its entries means a fault of ours, and whoever looks
-- into it needs both.
--
-- A page reads so many transactions, whoever has them. Where a user's don't fit, what is stored of that user is taken down
-- when the first are read, with the number of their last transaction then, and is carried from page to page with what was
-- added up so far. Numbers are drawn and transactions committed while the user's account is locked: so those up to that
-- number are all there, stay as they are, and are exactly what the figures taken down must be. What is posted meanwhile has
-- a higher number, and is left out. Receipts of calls are settled for good: they are read when their transaction is.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- What is stored of these users' money, each figure beside what is known of it without the ledger; now. To that the ledger
-- adds what it has up to the user's last transaction. Read whole, because it can change: what grows with time, and not
-- with calls.
create or replace function doorkey.open_books(p_user_ids uuid[])
returns table (
  user_id uuid, last_transaction_id bigint, period_after_id bigint, what text, stored numeric, computed numeric)
language sql stable security definer set search_path = ''
as $$
  select a.user_id, a.last_transaction_id, a.period_after_transaction_id, c.what, coalesce(c.stored, 0),
         coalesce(c.computed, 0)
    from unnest(p_user_ids) as u (id)
   cross join lateral (select * from public.credit_accounts as b where b.user_id = u.id limit 1) as a
   cross join lateral (
     select sum(doorkey.cost_of_key(k.key_hash)) as charged_cost, sum(doorkey.held_through(k.key_hash)) as held,
            sum(g.unseen_micros) as unseen, sum(n.cost) as unheld_cost, sum(n.price) as unheld_price
       from public.openrouter_user_keys as k
       left join lateral (select * from doorkey.key_usage as x where x.key_hash = k.key_hash limit 1) as g on true
      cross join lateral (
        select sum(x.cost_micros - x.returned_micros) as cost,
               sum((x.cost_micros - x.returned_micros) * x.markup) as price
          from doorkey.unheld_costs as x where x.key_hash = k.key_hash) as n
      where k.user_id = a.user_id) as k
   cross join lateral (values
     ('available', a.available_micros, -coalesce(k.held, 0)),
     ('leaving', a.leaving_micros, 0),
     ('debt', a.debt_micros, 0),
     ('receivable', a.receivable_micros, 0),
     ('held', a.held_micros, k.held),
     ('lots', (select sum(l.remaining_micros) from doorkey.credit_lots as l
                where l.user_id = a.user_id and not l.is_empty), 0),
     ('takings', (select sum(g.taken_micros) from doorkey.credit_takings as g
                   where g.user_id = a.user_id and g.left_transaction_id is null and g.taken_micros > 0), 0),
     ('spent in the period', a.period_spent_micros, 0),
     -- What all prices come to beyond what was charged.
     ('remainder', a.remainder_micros, k.unheld_price),
     -- What keys are limited by hangs on it.
     ('cost of the keys', k.charged_cost, k.unheld_cost),
     ('unseen', k.unseen, k.unheld_cost)) as c (what, stored, computed);
$$;
revoke all on function doorkey.open_books(uuid[]) from public, anon, authenticated, service_role;

-- These transactions, each with what it moves, its receipt and its lot. Looked up one by one, by their keys:
-- joined, whole tables might be read for a page. spent: what its receipt says was charged; null: it has none.
create or replace function doorkey.add_up(p_transaction_ids bigint[])
returns table (
  transaction_id bigint, user_id uuid, amount_micros bigint, own numeric, spendable numeric,
  leaving numeric, debt numeric, receivable numeric, spent numeric, charged_micros bigint, cost_micros numeric,
  price_micros numeric, lot_micros bigint, is_return boolean
)
language sql stable security definer set search_path = ''
as $$
  select t.id, t.user_id, t.amount_micros,
         t.spendable_micros + t.leaving_micros + t.debt_micros + t.receivable_micros, t.spendable_micros, t.leaving_micros,
         t.debt_micros, t.receivable_micros, case t.system_account when 'spent' then -t.amount_micros else 0 end,
         coalesce(h.charged_micros, c.charged_micros), h.cost_micros, h.price_micros, l.amount_micros,
         starts_with(t.idempotency_key, 'unseen:returned:')
    from unnest(p_transaction_ids) as i (id)
   cross join lateral (select * from public.credit_transactions as x where x.id = i.id limit 1) as t
    left join lateral (
      select * from doorkey.credit_holds as x
       where t.type = 'usage' and x.user_id = t.user_id and x.state = 'settled'
         and x.id = case when t.idempotency_key ~ '^hold:[0-9a-f-]{36}$' then substr(t.idempotency_key, 6)::uuid end
       limit 1) as h on true
    left join lateral (select * from doorkey.unheld_costs as x where x.transaction_id = i.id limit 1) as c on true
    left join lateral (select * from doorkey.credit_lots as x where x.transaction_id = i.id limit 1) as l on true;
$$;
revoke all on function doorkey.add_up(bigint[]) from public, anon, authenticated, service_role;

-- The transactions that follow this one: of its user, and then of these, who come after. One user after the other, in the
-- order of their index.
create or replace function doorkey.next_transactions(p_after public.credit_transactions, p_user_ids uuid[], p_rows integer)
returns bigint[]
language plpgsql stable security definer set search_path = ''
as $$
declare
  v_ids bigint[];
begin
  v_ids := array(
    select t.id from public.credit_transactions as t
     where t.user_id = p_after.user_id and t.type = p_after.type
       and (t.created_at, t.id) < (p_after.created_at, p_after.id)
     order by t.created_at desc, t.id desc limit p_rows);
  if cardinality(v_ids) < p_rows then
    v_ids := v_ids || array(
      select t.id from public.credit_transactions as t
       where t.user_id = p_after.user_id and t.type > p_after.type
       order by t.type, t.created_at desc, t.id desc limit p_rows - cardinality(v_ids));
  end if;
  if cardinality(v_ids) < p_rows then
    v_ids := v_ids || array(
      select t.id from public.credit_transactions as t
       where t.user_id >= p_user_ids[1] and t.user_id <= p_user_ids[cardinality(p_user_ids)]
       order by t.user_id, t.type, t.created_at desc, t.id desc limit p_rows - cardinality(v_ids));
  end if;
  return v_ids;
end
$$;
revoke all on function doorkey.next_transactions(public.credit_transactions, uuid[], integer)
  from public, anon, authenticated, service_role;

-- A page: so many users by id, after this one (null: the first), and so many transactions of theirs. Where the last user has
-- more, `next` names the last transaction read, with what is carried; it is said again to go on. One statement, and so one
-- moment. At most 1,000 differences are named, and all are counted.
create or replace function doorkey.verify_ledger(
  p_after_user uuid, p_after_transaction bigint, p_carried text, p_users integer, p_transactions integer
) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
declare
  v_after public.credit_transactions;
  v_users uuid[];
  v_ids bigint[];
  v_unfinished uuid;
  v_last uuid;
begin
  if p_users is null or p_users not between 1 and 1000
     or p_transactions is null or p_transactions not between 1 and 100000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range',
      hint = 'Verify 1 to 1000 users and 1 to 100000 transactions at a time.';
  end if;
  select * into v_after from public.credit_transactions as t where t.id = p_after_transaction;
  if (p_after_transaction is null) <> (p_carried is null)
     or (p_carried is not null and v_after.user_id is distinct from p_after_user) then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Go on with what the last page said.';
  end if;
  if p_after_user is null then
    v_users := array(select a.user_id from public.credit_accounts as a order by a.user_id limit p_users);
  else
    v_users := array(select a.user_id from public.credit_accounts as a
                      where a.user_id > p_after_user order by a.user_id limit p_users);
  end if;
  v_ids := doorkey.next_transactions(v_after, v_users, p_transactions);
  v_last := case when cardinality(v_users) = p_users then v_users[p_users] end;
  if cardinality(v_ids) = p_transactions then
    select t.user_id into strict v_unfinished
      from public.credit_transactions as t where t.id = v_ids[p_transactions];
    v_users := array(select u.id from unnest(v_users) as u (id) where u.id <= v_unfinished order by u.id);
    v_last := v_unfinished;
  end if;
  return (
    with opened as materialized (
      select b.* from doorkey.open_books(v_users) as b
      union all
      select p_after_user, c.*
        from jsonb_to_recordset(p_carried::jsonb)
          as c (last_transaction_id bigint, period_after_id bigint, what text, stored numeric, computed numeric)
    ), counted as materialized (
      select a.*, a.transaction_id > o.period_after_id as is_of_period
        from doorkey.add_up(v_ids) as a
        join (select distinct o.user_id, o.last_transaction_id, o.period_after_id from opened as o) as o on o.user_id = a.user_id
       where a.transaction_id <= o.last_transaction_id
    ), sums as (
      select c.user_id, sum(c.spendable) as spendable, sum(c.leaving) as leaving,
             sum(c.debt) as debt, sum(c.receivable) as receivable, sum(c.cost_micros) as cost,
             coalesce(sum(c.price_micros), 0) - sum(c.spent) as uncharged,
             sum(c.spent) filter (where c.is_of_period) as spent_in_period
        from counted as c group by c.user_id
    ), figures as materialized (
      select o.user_id, o.last_transaction_id, o.period_after_id, o.what, o.stored, o.computed + coalesce(
               case o.what when 'available' then s.spendable when 'leaving' then s.leaving
                           when 'debt' then -s.debt when 'receivable' then -s.receivable
                           when 'lots' then s.spendable
                           when 'takings' then s.leaving when 'spent in the period' then s.spent_in_period
                           when 'remainder' then s.uncharged when 'cost of the keys' then s.cost end, 0) as computed
        from opened as o left join sums as s on s.user_id = o.user_id
    ), found as materialized (
      select f.user_id, null::bigint as transaction_id, f.what, f.stored, f.computed
        from figures as f where f.user_id is distinct from v_unfinished and f.stored <> f.computed
      union all
      select t.user_id, t.transaction_id, c.what, c.stored, c.computed
        from counted as t
       cross join lateral (values
         ('amount', t.amount_micros, t.own),
         -- Only what is used is spent, for a receipt; what is given back is a part of one.
         ('charges', coalesce(t.charged_micros, case when t.is_return then -t.amount_micros else 0 end), t.spent),
         -- Given back, a part may have paid what was to be billed.
         ('size of the lot', t.lot_micros, case when t.lot_micros is not null
            then t.amount_micros - case when t.is_return then t.receivable else 0 end end)
       ) as c (what, stored, computed)
       where c.stored is distinct from c.computed
    )
    select jsonb_build_object(
      'users', cardinality(v_users) + (p_carried is not null)::integer - (v_unfinished is not null)::integer,
      -- For whoever waits: how many there are in all, told with the first page only.
      'all_users', case when p_after_user is null then (select count(*) from public.credit_accounts) end,
      'transactions', (select count(*) from counted),
      'next', case when v_last is not null then jsonb_build_object(
        'after_user', v_last,
        'after_transaction', case when v_unfinished is not null then v_ids[p_transactions] end,
        -- As text, here and below: no figure is rounded on its way.
        'carried', (select jsonb_agg(to_jsonb(f) - 'user_id')::text from figures as f where f.user_id = v_unfinished)) end,
      'different', (select count(*) from found),
      'differences', coalesce((
        select jsonb_agg(jsonb_build_object(
                 'user_id', f.user_id, 'transaction_id', f.transaction_id, 'what', f.what,
                 'stored_micros', f.stored::text, 'computed_micros', f.computed::text)
               order by f.user_id, f.transaction_id nulls first, f.what)
          from (select * from found as o order by o.user_id, o.transaction_id nulls first, o.what limit 1000) as f),
        '[]')));
end
$$;
revoke all on function doorkey.verify_ledger(uuid, bigint, text, integer, integer)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.verify_ledger(uuid, bigint, text, integer, integer) to service_role;

create or replace function public.verify_ledger(
  after_user uuid, after_transaction bigint, carried text, user_rows integer, transaction_rows integer
) returns jsonb
language sql stable set search_path = ''
as $$ select doorkey.verify_ledger($1, $2, $3, $4, $5); $$;
revoke all on function public.verify_ledger(uuid, bigint, text, integer, integer)
  from public, anon, authenticated, service_role;
grant execute on function public.verify_ledger(uuid, bigint, text, integer, integer) to service_role;

-- A page of all holds, after this user's of this key (null: the first): a receipt of which the ledger knows nothing. (That
-- those it knows agree is seen from there.) Each has its transaction at the same moment: nothing is carried.
create or replace function doorkey.verify_receipts(p_after_user uuid, p_after_key text, p_rows integer) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
begin
  if p_rows is null or p_rows not between 1 and 100000 or (p_after_user is null) <> (p_after_key is null) then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Verify 1 to 100000 holds at a time.';
  end if;
  return (
    with page as materialized (
      select h.* from doorkey.credit_holds as h
       where (h.user_id, h.idempotency_key)
             > (coalesce(p_after_user, '00000000-0000-0000-0000-000000000000'), coalesce(p_after_key, ''))
       order by h.user_id, h.idempotency_key limit p_rows
    ), found as materialized (
      select h.user_id, h.cost_micros, h.idempotency_key
        from page as h
       where h.state = 'settled' and h.user_id is distinct from (
         select t.user_id from public.credit_transactions as t
          where t.type = 'usage' and t.idempotency_key = 'hold:' || h.id)
    )
    select jsonb_build_object(
      'receipts', (select count(*) from page),
      'next', (select jsonb_build_object('after_user', l.user_id, 'after_key', l.idempotency_key)
                 from (select * from page as g order by g.user_id desc, g.idempotency_key desc limit 1) as l
                where (select count(*) from page) = p_rows),
      'different', (select count(*) from found),
      'differences', coalesce((
        select jsonb_agg(jsonb_build_object(
                 'user_id', f.user_id, 'transaction_id', null, 'what', 'receipt without a transaction',
                 'stored_micros', f.cost_micros::text, 'computed_micros', '0')
               order by f.user_id, f.idempotency_key)
          from (select * from found as o order by o.user_id, o.idempotency_key limit 1000) as f), '[]')));
end
$$;
revoke all on function doorkey.verify_receipts(uuid, text, integer) from public, anon, authenticated, service_role;
grant execute on function doorkey.verify_receipts(uuid, text, integer) to service_role;

create or replace function public.verify_receipts(after_user uuid, after_key text, hold_rows integer) returns jsonb
language sql stable set search_path = ''
as $$ select doorkey.verify_receipts($1, $2, $3); $$;
revoke all on function public.verify_receipts(uuid, text, integer) from public, anon, authenticated, service_role;
grant execute on function public.verify_receipts(uuid, text, integer) to service_role;
