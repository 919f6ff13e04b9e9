-- Ledger, receipts and OpenRouter side by side, per key and UTC day; every difference has a name.
--
-- A day alone tells little: a call that is billed before midnight and settled after it is missing in one day and too much in
-- the next. So what is judged is the difference of all days up to a midnight, against the calls that were in flight then.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- What OpenRouter had for the key at this moment beyond what the ledger had: all days before it.
create or replace function doorkey.difference_until(p_key_hash text, p_until timestamptz) returns numeric
language sql stable security definer set search_path = ''
as $$
  select coalesce((select sum(d.reported_micros) from doorkey.key_usage_days as d
                    where d.key_hash = p_key_hash and d.day < (p_until at time zone 'utc')::date), 0)
         - coalesce((select sum(h.cost_micros) from doorkey.credit_holds as h
                      where h.key_hash = p_key_hash and h.state = 'settled' and h.settled_at < p_until), 0)
         - coalesce((select sum(c.cost_micros - c.returned_micros) from doorkey.unheld_costs as c
                      where c.key_hash = p_key_hash and c.day < (p_until at time zone 'utc')::date), 0);
$$;
revoke all on function doorkey.difference_until(text, timestamptz) from public, anon, authenticated, service_role;

-- Why OpenRouter and the ledger differ at this moment by so much: null: they don't.
-- OpenRouter has more: calls had been billed and not settled. It has less: it bills late, or was read before; or a receipt
-- came late for what had been charged unseen, and that is still to be given back; or the next reading is long overdue.
create or replace function doorkey.cause_of(
  p_key_hash text, p_until timestamptz, p_difference numeric, p_markup numeric
) returns text
language plpgsql stable security definer set search_path = ''
as $$
declare
  v_until constant timestamptz := least(p_until, now());
  v_usage doorkey.key_usage;
  v_read_at timestamptz;
  v_allowed numeric;
  v_uncharged numeric := 0;
begin
  if abs(p_difference) <= doorkey.usage_tolerance() then
    return null;
  end if;
  select * into v_usage from doorkey.key_usage as u where u.key_hash = p_key_hash;
  -- Never read: nothing of it can be there.
  select coalesce(v_usage.read_at, k.created_at) into v_read_at
    from public.openrouter_user_keys as k where k.key_hash = p_key_hash;
  if p_difference > 0 then
    select sum(coalesce(h.cost_micros, h.amount_micros / p_markup)) into v_allowed
      from doorkey.credit_holds as h
     where h.key_hash = p_key_hash and h.created_at < v_until
       and ((h.state = 'settled' and h.settled_at >= v_until) or h.state = 'open'
            or (h.state = 'expired' and h.settled_at is null
                and h.closed_at > v_until - doorkey.late_receipt_time()));
    v_allowed := coalesce(v_allowed, 0);
    -- Read, and not charged yet: the account was busy. (Receipts since then are charged, and U may not have them.)
    if v_usage.looked_at < v_usage.read_at then
      select greatest(v_usage.reported_micros - doorkey.cost_of_key(p_key_hash) + coalesce(sum(h.cost_micros), 0), 0)
        into v_uncharged
        from doorkey.credit_holds as h
       where h.key_hash = p_key_hash and h.state = 'settled' and h.settled_at > v_usage.read_at;
    end if;
    return case when p_difference <= v_allowed + doorkey.usage_tolerance() then 'in_flight'
                when p_difference <= v_allowed + v_uncharged + doorkey.usage_tolerance() then 'unseen'
                else 'unknown' end;
  end if;
  select coalesce(sum(h.cost_micros), 0) into v_allowed
    from doorkey.credit_holds as h
   where h.key_hash = p_key_hash and h.state = 'settled' and h.settled_at < v_until
     and h.settled_at > least(v_until, v_read_at) - doorkey.late_receipt_time();
  return case when -p_difference <= v_allowed + doorkey.usage_tolerance() then
                -- A reading comes every hour.
                case when v_read_at < least(v_until, now() - interval '3 hours') then 'unread' else 'in_flight' end
              when -p_difference <= v_allowed + coalesce(v_usage.unseen_micros, 0) + doorkey.usage_tolerance() then 'unseen'
              else 'unknown' end;
end
$$;
revoke all on function doorkey.cause_of(text, timestamptz, numeric, numeric)
  from public, anon, authenticated, service_role;

-- The keys about which anything is known on this day, page by page. Never by whole tables, whatever statistics say: where
-- they are of a time when one key had all the receipts, all would be read again for each key.
create or replace function doorkey.drift_report(p_day date, p_after_key text, p_rows integer)
returns table (
  key_hash text, user_id uuid, ledger_micros numeric, receipts_micros numeric, openrouter_micros numeric,
  byok_micros numeric, difference_micros numeric, cause text)
language plpgsql stable security definer set search_path = '' set enable_seqscan = off
as $$
declare
  v_from constant timestamptz := p_day::timestamp at time zone 'utc';
  v_until constant timestamptz := (p_day + 1)::timestamp at time zone 'utc';
  v_after constant text := coalesce(p_after_key, '');
begin
  if p_day is null or p_rows is null or p_rows not between 1 and 1000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Ask for a day, and for 1 to 1000 rows.';
  end if;
  return query
    with keys as (
      (select d.key_hash from doorkey.key_usage_days as d
        where d.day = p_day and d.key_hash > v_after order by d.key_hash limit p_rows)
      union
      (select c.key_hash from doorkey.unheld_costs as c
        where c.day = p_day and c.key_hash > v_after order by c.key_hash limit p_rows)
      union
      -- Key by key, whatever statistics say: all receipts of the day would be read again for each page.
      (select k.key_hash
         from public.openrouter_user_keys as k
        cross join lateral (
          select from doorkey.credit_holds as h
           where h.key_hash = k.key_hash and h.state = 'settled' and h.settled_at >= v_from and h.settled_at < v_until
           limit 1) as h
        where k.key_hash > v_after order by k.key_hash limit p_rows)
    ), page as (
      select k.key_hash from keys as k order by k.key_hash limit p_rows
    ), figures as (
      select g.key_hash, k.user_id, p.markup, coalesce(d.reported_micros, 0) as reported,
             coalesce(d.byok_micros, 0) as byok,
             coalesce((select sum(h.cost_micros) from doorkey.credit_holds as h
                        where h.key_hash = g.key_hash and h.state = 'settled'
                          and h.settled_at >= v_from and h.settled_at < v_until), 0) as receipts,
             coalesce((select sum(c.cost_micros - c.returned_micros) from doorkey.unheld_costs as c
                        where c.key_hash = g.key_hash and c.day = p_day), 0) as unseen,
             doorkey.difference_until(g.key_hash, v_from) as before
        from page as g
        join public.openrouter_user_keys as k on k.key_hash = g.key_hash
        join public.credit_accounts as a on a.user_id = k.user_id
        join public.plans as p on p.id = a.plan_id
        left join doorkey.key_usage_days as d on d.key_hash = g.key_hash and d.day = p_day
    ), judged as (
      select f.*, f.reported - f.receipts - f.unseen as difference,
             doorkey.cause_of(f.key_hash, v_from, f.before, f.markup) as cause_before,
             doorkey.cause_of(
               f.key_hash, v_until, f.before + f.reported - f.receipts - f.unseen, f.markup) as cause_after
        from figures as f
    )
    select j.key_hash, j.user_id, j.receipts + j.unseen, j.receipts, j.reported, j.byok, j.difference,
           case when abs(j.difference) <= doorkey.usage_tolerance() then
                  case when j.unseen <> 0 then 'unseen' when j.byok <> 0 then 'byok' end
                when 'unknown' in (coalesce(j.cause_before, ''), coalesce(j.cause_after, '')) then
                  -- A receipt may have named as credits what was paid with a key of one's own.
                  case when abs(abs(j.difference) - j.byok) <= doorkey.usage_tolerance() then 'byok' else 'unknown' end
                when 'unseen' in (j.cause_before, j.cause_after) then 'unseen'
                when 'unread' in (j.cause_before, j.cause_after) then 'unread'
                else 'in_flight' end
      from judged as j order by j.key_hash;
end
$$;
revoke all on function doorkey.drift_report(date, text, integer) from public, anon, authenticated, service_role;
grant execute on function doorkey.drift_report(date, text, integer) to service_role;

create or replace function public.report_drift(day date, after_key text, key_rows integer)
returns table (
  key_hash text, user_id uuid, ledger_micros numeric, receipts_micros numeric, openrouter_micros numeric,
  byok_micros numeric, difference_micros numeric, cause text)
language sql stable set search_path = ''
as $$ select * from doorkey.drift_report($1, $2, $3); $$;
revoke all on function public.report_drift(date, text, integer) from public, anon, authenticated, service_role;
grant execute on function public.report_drift(date, text, integer) to service_role;
