-- What happened to a person's credits, and what they were used for: page after page, at the same cost however far back.
--
-- The surprising thing: a page is merged from one short walk per type. So one index serves every filter, and whoever looks
-- for their three purchases doesn't walk through a million calls.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- Newest first. p_types: null is all. p_since is in it, p_until is not; null is no bound. p_before_at and p_before_id: where
-- the last page ended; null: from the newest on.
create or replace function doorkey.transactions_of(
  p_user_id uuid, p_types text[], p_since timestamptz, p_until timestamptz, p_before_at timestamptz, p_before_id bigint,
  p_rows integer
) returns table (
  id bigint, type text, amount_micros bigint, reason text, provider text, model text, created_at timestamptz
)
language plpgsql stable security definer set search_path = ''
as $$
begin
  if p_rows is null or p_rows not between 1 and 1000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Ask for 1 to 1000 rows.';
  end if;
  return query
    select page.*
      from unnest(enum_range(null::doorkey.transaction_type)) as k (type)
     cross join lateral (
             select t.id, t.type::text, t.amount_micros, t.reason::text, t.provider, t.model, t.created_at
               from public.credit_transactions as t
              where t.user_id = p_user_id and t.type = k.type
                and t.created_at >= coalesce(p_since, '-infinity') and t.created_at < coalesce(p_until, 'infinity')
                and (t.created_at, t.id) < (coalesce(p_before_at, 'infinity'), coalesce(p_before_id, 0))
              order by t.created_at desc, t.id desc limit p_rows) as page
     where p_types is null or k.type::text = any (p_types)
     order by page.created_at desc, page.id desc limit p_rows;
end
$$;
revoke all on function
  doorkey.transactions_of(uuid, text[], timestamptz, timestamptz, timestamptz, bigint, integer)
  from public, anon, authenticated, service_role;
grant execute on function
  doorkey.transactions_of(uuid, text[], timestamptz, timestamptz, timestamptz, bigint, integer)
  to service_role;

create or replace function public.list_transactions(
  user_id uuid, types text[], since timestamptz, until timestamptz, before_at timestamptz, before_id bigint,
  transaction_rows integer
) returns table (
  id bigint, type text, amount_micros bigint, reason text, provider text, model text, created_at timestamptz
)
language sql stable set search_path = ''
as $$ select * from doorkey.transactions_of($1, $2, $3, $4, $5, $6, $7); $$;
revoke all on function
  public.list_transactions(uuid, text[], timestamptz, timestamptz, timestamptz, bigint, integer)
  from public, anon, authenticated, service_role;
grant execute on function
  public.list_transactions(uuid, text[], timestamptz, timestamptz, timestamptz, bigint, integer)
  to service_role;

create or replace function doorkey.my_transactions(
  p_types text[], p_since timestamptz, p_until timestamptz, p_before_at timestamptz, p_before_id bigint, p_rows integer
) returns table (
  id bigint, type text, amount_micros bigint, reason text, provider text, model text, created_at timestamptz
)
language sql stable security definer set search_path = ''
as $$
  select * from doorkey.transactions_of((select auth.uid()), $1, $2, $3, $4, $5, $6);
$$;
revoke all on function doorkey.my_transactions(text[], timestamptz, timestamptz, timestamptz, bigint, integer)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.my_transactions(text[], timestamptz, timestamptz, timestamptz, bigint, integer)
  to authenticated;

create or replace function public.list_my_transactions(
  types text[], since timestamptz, until timestamptz, before_at timestamptz, before_id bigint, transaction_rows integer
) returns table (
  id bigint, type text, amount_micros bigint, reason text, provider text, model text, created_at timestamptz
)
language sql stable set search_path = ''
as $$ select * from doorkey.my_transactions($1, $2, $3, $4, $5, $6); $$;
revoke all on function public.list_my_transactions(text[], timestamptz, timestamptz, timestamptz, bigint, integer)
  from public, anon, authenticated, service_role;
grant execute on function public.list_my_transactions(text[], timestamptz, timestamptz, timestamptz, bigint, integer)
  to authenticated;

-- What was charged, by day (UTC) and model, the newest day first. No model: calls that went past us, straight to
-- OpenRouter, which the sync found. p_after_day and p_after_model: where the last page ended, '' for no model; null: from the
-- last day on. Day after day, until the page is full: a page reads the days that it shows.
create or replace function doorkey.usage_of(
  p_user_id uuid, p_first_day date, p_last_day date, p_after_day date, p_after_model text, p_rows integer
) returns table (day date, model text, calls bigint, charged_micros bigint)
language plpgsql stable security definer set search_path = ''
as $$
declare
  c_max_days constant integer := 92;
  v_day date := least(p_last_day, p_after_day);
  v_left integer := p_rows;
  v_found integer;
begin
  if p_rows is null or p_rows not between 1 and 1000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Ask for 1 to 1000 rows.';
  end if;
  if (p_last_day - p_first_day between 0 and c_max_days - 1) is not true then
    raise sqlstate 'PT422' using message = 'span_out_of_range', hint = format('Ask for 1 to %s days.', c_max_days);
  end if;
  while v_left > 0 and v_day >= p_first_day loop
    return query
      select v_day, nullif(u.name, ''), u.calls, u.charged
        from (select coalesce(t.model, '') collate "C" as name, count(*) as calls,
                     (-sum(t.amount_micros))::bigint as charged
                from public.credit_transactions as t
               where t.user_id = p_user_id and t.type = 'usage'
                 and t.created_at >= v_day::timestamp at time zone 'UTC'
                 and t.created_at < (v_day + 1)::timestamp at time zone 'UTC'
               group by 1) as u
       where v_day is distinct from p_after_day or u.name > p_after_model
       order by u.name limit v_left;
    get diagnostics v_found = row_count;
    v_left := v_left - v_found;
    v_day := v_day - 1;
  end loop;
end
$$;
revoke all on function doorkey.usage_of(uuid, date, date, date, text, integer)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.usage_of(uuid, date, date, date, text, integer) to service_role;

create or replace function public.get_usage(
  user_id uuid, first_day date, last_day date, after_day date, after_model text, usage_rows integer
) returns table (day date, model text, calls bigint, charged_micros bigint)
language sql stable set search_path = ''
as $$ select * from doorkey.usage_of($1, $2, $3, $4, $5, $6); $$;
revoke all on function public.get_usage(uuid, date, date, date, text, integer)
  from public, anon, authenticated, service_role;
grant execute on function public.get_usage(uuid, date, date, date, text, integer) to service_role;

create or replace function doorkey.my_usage(
  p_first_day date, p_last_day date, p_after_day date, p_after_model text, p_rows integer
) returns table (day date, model text, calls bigint, charged_micros bigint)
language sql stable security definer set search_path = ''
as $$ select * from doorkey.usage_of((select auth.uid()), $1, $2, $3, $4, $5); $$;
revoke all on function doorkey.my_usage(date, date, date, text, integer) from public, anon, authenticated, service_role;
grant execute on function doorkey.my_usage(date, date, date, text, integer) to authenticated;

create or replace function public.get_my_usage(
  first_day date, last_day date, after_day date, after_model text, usage_rows integer
) returns table (day date, model text, calls bigint, charged_micros bigint)
language sql stable set search_path = ''
as $$ select * from doorkey.my_usage($1, $2, $3, $4, $5); $$;
revoke all on function public.get_my_usage(date, date, date, text, integer)
  from public, anon, authenticated, service_role;
grant execute on function public.get_my_usage(date, date, date, text, integer) to authenticated;
