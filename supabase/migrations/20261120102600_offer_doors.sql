-- Offers, for operators without SQL: look, add, end.
--
-- The surprising thing: an offer that is there is never changed here, only ended. Users were told what it says; whoever
-- wants another amount wants another code. (The rows are still rows, and may be edited as role postgres.)

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- By their codes, after that one. `standing`: open, to_come, over, or used_up when as many have it as may.
create or replace function doorkey.list_welcome_offers(p_after_code text, p_rows integer)
returns table (
  code text, amount_micros bigint, days integer, starts_at timestamptz, ends_at timestamptz, max_grants integer,
  granted integer, standing text, is_switched_on boolean
)
language plpgsql stable security definer set search_path = ''
as $$
begin
  if p_rows is null or p_rows not between 1 and 1000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Ask for 1 to 1000 rows.';
  end if;
  return query
    select o.code, o.amount_micros, o.days, o.starts_at, o.ends_at, o.max_grants, o.granted,
           case when now() < o.starts_at then 'to_come'
                when now() >= o.ends_at then 'over'
                when o.granted >= o.max_grants then 'used_up'
                else 'open' end,
           s.welcome_offers
      from doorkey.welcome_offers as o cross join doorkey.settings as s
     where p_after_code is null or o.code > p_after_code
     order by o.code limit p_rows;
end
$$;
revoke all on function doorkey.list_welcome_offers(text, integer) from public, anon, authenticated, service_role;
grant execute on function doorkey.list_welcome_offers(text, integer) to service_role;

create or replace function public.list_welcome_offers(after_code text, offer_rows integer)
returns table (
  code text, amount_micros bigint, days integer, starts_at timestamptz, ends_at timestamptz, max_grants integer,
  granted integer, standing text, is_switched_on boolean
)
language sql stable set search_path = ''
as $$ select * from doorkey.list_welcome_offers($1, $2); $$;
revoke all on function public.list_welcome_offers(text, integer) from public, anon, authenticated, service_role;
grant execute on function public.list_welcome_offers(text, integer) to service_role;

-- Offers it from now on; says whether offers are switched on. Repeatable with the same content.
create or replace function doorkey.add_welcome_offer(
  p_code text, p_amount_micros bigint, p_days integer, p_ends_at timestamptz, p_max_grants integer, p_actor text,
  p_request_id text
) returns boolean
language plpgsql security definer set search_path = ''
as $$
begin
  perform doorkey.act_as(p_actor, p_request_id);
  begin
    insert into doorkey.welcome_offers as o (code, amount_micros, days, ends_at, max_grants)
    values (p_code, p_amount_micros, p_days, p_ends_at, p_max_grants)
    on conflict on constraint welcome_offers_pkey do nothing;
  exception when check_violation or not_null_violation then
    raise sqlstate 'PT422' using message = 'offer_invalid',
      hint = 'A code is of small letters, digits, dots and dashes; amounts, days and bounds are positive; an end is to come.';
  end;
  if not exists (
    select from doorkey.welcome_offers as o
     where o.code = p_code
       and (o.amount_micros, o.days, o.ends_at, o.max_grants)
           is not distinct from (p_amount_micros, p_days, p_ends_at, p_max_grants)
  ) then
    raise sqlstate 'PT409' using message = 'offer_exists', hint = 'It is there with another content, or over.';
  end if;
  return (select s.welcome_offers from doorkey.settings as s);
end
$$;
revoke all on function doorkey.add_welcome_offer(text, bigint, integer, timestamptz, integer, text, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.add_welcome_offer(text, bigint, integer, timestamptz, integer, text, text)
  to service_role;

create or replace function public.add_welcome_offer(
  code text, amount_micros bigint, days integer, ends_at timestamptz, max_grants integer, actor text, request_id text
) returns boolean
language sql set search_path = ''
as $$ select doorkey.add_welcome_offer($1, $2, $3, $4, $5, $6, $7); $$;
revoke all on function public.add_welcome_offer(text, bigint, integer, timestamptz, integer, text, text)
  from public, anon, authenticated, service_role;
grant execute on function public.add_welcome_offer(text, bigint, integer, timestamptz, integer, text, text)
  to service_role;

-- Nobody is welcomed by it any more; who was, keeps what they have and were promised. Says since when, also if it was over.
create or replace function doorkey.end_welcome_offer(p_code text, p_actor text, p_request_id text) returns timestamptz
language plpgsql security definer set search_path = ''
as $$
declare
  v_offer doorkey.welcome_offers;
begin
  select * into v_offer from doorkey.welcome_offers as o where o.code = p_code for update;
  if not found then
    raise sqlstate 'PT404' using message = 'offer_not_found', hint = 'There is no offer with this code.';
  end if;
  if v_offer.ends_at <= now() then
    return v_offer.ends_at;
  end if;
  perform doorkey.act_as(p_actor, p_request_id);
  -- One that is still to come ends after it began, if only by a microsecond.
  update doorkey.welcome_offers as o
     set starts_at = least(o.starts_at, now() - interval '1 microsecond'), ends_at = now()
   where o.code = p_code;
  return now();
end
$$;
revoke all on function doorkey.end_welcome_offer(text, text, text) from public, anon, authenticated, service_role;
grant execute on function doorkey.end_welcome_offer(text, text, text) to service_role;

create or replace function public.end_welcome_offer(code text, actor text, request_id text) returns timestamptz
language sql set search_path = ''
as $$ select doorkey.end_welcome_offer($1, $2, $3); $$;
revoke all on function public.end_welcome_offer(text, text, text) from public, anon, authenticated, service_role;
grant execute on function public.end_welcome_offer(text, text, text) to service_role;
