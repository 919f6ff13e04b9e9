-- Recomputes what is stored about a user's money from the entries of the ledger, page by page, and says what differs.
--
-- The surprising thing: it mends nothing. A balance that differs from its entries means a fault of ours, and whoever looks
-- into it needs both.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- A page of users by id, after this one; null: the first. One statement, and so one moment: what others post meanwhile is
-- seen whole or not at all. At most 1,000 differences are named, and all are counted.
create or replace function doorkey.verify_ledger(p_after_user uuid, p_rows integer) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
begin
  if p_rows is null or p_rows not between 1 and 1000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Verify 1 to 1000 users at a time.';
  end if;
  return (
    with page as materialized (
      select a.* from public.credit_accounts as a
       where p_after_user is null or a.user_id > p_after_user order by a.user_id limit p_rows
    ), transactions as materialized (
      select t.user_id, t.id, t.type, t.amount_micros, t.idempotency_key,
             coalesce(sum(e.amount_micros), 0) as total,
             coalesce(sum(e.amount_micros) filter (where e.account not in ('granted', 'spent', 'expired')), 0) as own,
             coalesce(sum(e.amount_micros) filter (where e.account = 'available'), 0) as available,
             coalesce(sum(e.amount_micros) filter (where e.account = 'held'), 0) as held,
             coalesce(sum(e.amount_micros) filter (where e.account = 'leaving'), 0) as leaving,
             coalesce(sum(e.amount_micros) filter (where e.account = 'debt'), 0) as debt,
             coalesce(sum(e.amount_micros) filter (where e.account = 'receivable'), 0) as receivable,
             coalesce(sum(e.amount_micros) filter (where e.account = 'spent'), 0) as spent
        from page as g
        join public.credit_transactions as t on t.user_id = g.user_id
        left join doorkey.ledger_entries as e on e.transaction_id = t.id
       group by t.id
    ), books as (
      select t.user_id, sum(t.available) as available, sum(t.held) as held, sum(t.leaving) as leaving,
             -sum(t.debt) as debt, -sum(t.receivable) as receivable, sum(t.spent) as spent,
             -- What was given back is no receipt of its own.
             coalesce(sum(t.amount_micros) filter (where starts_with(t.idempotency_key, 'unseen:returned:')), 0) as returned
        from transactions as t group by t.user_id
    ), holds as (
      select h.user_id, coalesce(sum(h.held_micros) filter (where h.state = 'open'), 0) as held,
             coalesce(sum(h.charged_micros), 0) as charged, coalesce(sum(h.cost_micros), 0) as cost
        from page as g join doorkey.credit_holds as h on h.user_id = g.user_id group by h.user_id
    ), keys as (
      select k.user_id, sum(k.charged_cost_micros) as charged_cost, coalesce(sum(u.unseen_micros), 0) as unseen
        from page as g join public.openrouter_user_keys as k on k.user_id = g.user_id
        left join doorkey.key_usage as u on u.key_hash = k.key_hash group by k.user_id
    ), unheld as (
      select k.user_id, sum(c.charged_micros) as charged, sum(c.cost_micros - c.returned_micros) as cost
        from page as g join public.openrouter_user_keys as k on k.user_id = g.user_id
        join doorkey.unheld_costs as c on c.key_hash = k.key_hash group by k.user_id
    ), lots as (
      select l.user_id, sum(l.remaining_micros) as remaining
        from page as g join doorkey.credit_lots as l on l.user_id = g.user_id group by l.user_id
    ), takings as (
      select k.user_id, sum(k.taken_micros) as taken
        from page as g join doorkey.credit_takings as k on k.user_id = g.user_id and k.left_transaction_id is null
       group by k.user_id
    ), differences as (
      select g.user_id, null::bigint as transaction_id, c.what, c.stored, coalesce(c.computed, 0) as computed
        from page as g
        left join books as b on b.user_id = g.user_id
        left join holds as h on h.user_id = g.user_id
        left join lots as l on l.user_id = g.user_id
        left join takings as k on k.user_id = g.user_id
        left join keys as y on y.user_id = g.user_id
        left join unheld as n on n.user_id = g.user_id
       cross join lateral (values
         ('available', g.available_micros, b.available),
         ('held', g.held_micros, b.held),
         ('leaving', g.leaving_micros, b.leaving),
         ('debt', g.debt_micros, b.debt),
         ('receivable', g.receivable_micros, b.receivable),
         ('open holds', coalesce(h.held, 0), b.held),
         ('lots', coalesce(l.remaining, 0), b.available + b.held),
         ('takings', coalesce(k.taken, 0), b.leaving),
         -- Receipts, the ledger and the keys have the same costs: what keys are limited by hangs on it.
         ('charges', coalesce(h.charged, 0) + coalesce(n.charged, 0) - coalesce(b.returned, 0), b.spent),
         ('cost of the keys', coalesce(y.charged_cost, 0), coalesce(h.cost, 0) + coalesce(n.cost, 0)),
         ('unseen', coalesce(y.unseen, 0), coalesce(n.cost, 0))) as c (what, stored, computed)
      union all
      select t.user_id, t.id, c.what, c.stored, c.computed
        from transactions as t
        left join doorkey.credit_lots as l on l.transaction_id = t.id
       cross join lateral (values
         ('sum of entries', t.total, 0),
         ('amount', t.amount_micros, t.own),
         -- Given back, a part may have paid what was to be billed.
         ('size of the lot', l.amount_micros,
          case when l.id is null then null
               else t.amount_micros - case when starts_with(t.idempotency_key, 'unseen:returned:') then t.receivable else 0 end end)
       ) as c (what, stored, computed)
    ), found as (
      select * from differences as d where d.stored is distinct from d.computed
    )
    select jsonb_build_object(
      'users', (select count(*) from page),
      -- For whoever waits: how many there are in all, told with the first page only.
      'all_users', case when p_after_user is null then (select count(*) from public.credit_accounts) end,
      'last_user', (select g.user_id from page as g order by g.user_id desc limit 1),
      'transactions', (select count(*) from transactions),
      'different', (select count(*) from found),
      'differences', coalesce((
        select jsonb_agg(jsonb_build_object(
                 'user_id', f.user_id, 'transaction_id', f.transaction_id, 'what', f.what,
                 -- As text: no figure is rounded on its way.
                 'stored_micros', f.stored::text, 'computed_micros', f.computed::text)
               order by f.user_id, f.transaction_id nulls first, f.what)
          from (select * from found as o order by o.user_id, o.transaction_id nulls first, o.what limit 1000) as f),
        '[]')));
end
$$;
revoke all on function doorkey.verify_ledger(uuid, integer) from public, anon, authenticated, service_role;
grant execute on function doorkey.verify_ledger(uuid, integer) to service_role;

create or replace function public.verify_ledger(after_user uuid, user_rows integer) returns jsonb
language sql stable set search_path = ''
as $$ select doorkey.verify_ledger($1, $2); $$;
revoke all on function public.verify_ledger(uuid, integer) from public, anon, authenticated, service_role;
grant execute on function public.verify_ledger(uuid, integer) to service_role;
