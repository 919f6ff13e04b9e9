-- The arms of the welcome experiment, and the domains of throw-away mail, for operators without SQL.
--
-- The surprising thing: an arm is not removed. Weighing nothing, nobody comes to it any more, and it still says what those
-- who are in it were given.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- By experiment and name, after that one; is_running: whether new users are shared out among that experiment's.
create or replace function doorkey.list_welcome_arms(p_after_experiment text, p_after_arm text, p_rows integer)
returns table (experiment text, arm text, weight integer, amount_micros bigint, days integer, is_running boolean)
language plpgsql stable security definer set search_path = ''
as $$
begin
  if p_rows is null or p_rows not between 1 and 1000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Ask for 1 to 1000 rows.';
  end if;
  return query
    select a.experiment, a.arm, a.weight, a.amount_micros, a.days,
           a.experiment is not distinct from s.welcome_experiment
      from doorkey.welcome_arms as a cross join doorkey.settings as s
     where p_after_experiment is null or (a.experiment, a.arm) > (p_after_experiment, p_after_arm)
     order by a.experiment, a.arm limit p_rows;
end
$$;
revoke all on function doorkey.list_welcome_arms(text, text, integer) from public, anon, authenticated, service_role;
grant execute on function doorkey.list_welcome_arms(text, text, integer) to service_role;

create or replace function public.list_welcome_arms(after_experiment text, after_arm text, arm_rows integer)
returns table (experiment text, arm text, weight integer, amount_micros bigint, days integer, is_running boolean)
language sql stable set search_path = ''
as $$ select * from doorkey.list_welcome_arms($1, $2, $3); $$;
revoke all on function public.list_welcome_arms(text, text, integer) from public, anon, authenticated, service_role;
grant execute on function public.list_welcome_arms(text, text, integer) to service_role;

-- Has an arm be so from now on, for who comes; says whether its experiment is the one that runs.
create or replace function doorkey.set_welcome_arm(
  p_experiment text, p_arm text, p_weight integer, p_amount_micros bigint, p_days integer, p_actor text, p_request_id text
) returns boolean
language plpgsql security definer set search_path = ''
as $$
begin
  perform doorkey.act_as(p_actor, p_request_id);
  begin
    insert into doorkey.welcome_arms as a (experiment, arm, weight, amount_micros, days)
    values (p_experiment, p_arm, p_weight, p_amount_micros, p_days)
    on conflict on constraint welcome_arms_pkey do update
       set weight = excluded.weight, amount_micros = excluded.amount_micros, days = excluded.days;
  exception when check_violation or not_null_violation then
    raise sqlstate 'PT422' using message = 'arm_invalid',
      hint = 'Names have 1 to 63 characters, a weight is 0 to 1000000, an amount 0 to 1000000000000, days are positive.';
  end;
  return (select s.welcome_experiment is not distinct from p_experiment from doorkey.settings as s);
end
$$;
revoke all on function doorkey.set_welcome_arm(text, text, integer, bigint, integer, text, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.set_welcome_arm(text, text, integer, bigint, integer, text, text) to service_role;

create or replace function public.set_welcome_arm(
  experiment text, arm text, weight integer, amount_micros bigint, days integer, actor text, request_id text
) returns boolean
language sql set search_path = ''
as $$ select doorkey.set_welcome_arm($1, $2, $3, $4, $5, $6, $7); $$;
revoke all on function public.set_welcome_arm(text, text, integer, bigint, integer, text, text)
  from public, anon, authenticated, service_role;
grant execute on function public.set_welcome_arm(text, text, integer, bigint, integer, text, text) to service_role;

-- By name, after that one.
create or replace function doorkey.list_disposable_domains(p_after_domain text, p_rows integer) returns setof text
language plpgsql stable security definer set search_path = ''
as $$
begin
  if p_rows is null or p_rows not between 1 and 1000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Ask for 1 to 1000 rows.';
  end if;
  return query
    select d.domain from doorkey.disposable_domains as d
     where p_after_domain is null or d.domain > p_after_domain order by d.domain limit p_rows;
end
$$;
revoke all on function doorkey.list_disposable_domains(text, integer) from public, anon, authenticated, service_role;
grant execute on function doorkey.list_disposable_domains(text, integer) to service_role;

create or replace function public.list_disposable_domains(after_domain text, domain_rows integer) returns setof text
language sql stable set search_path = ''
as $$ select doorkey.list_disposable_domains($1, $2); $$;
revoke all on function public.list_disposable_domains(text, integer) from public, anon, authenticated, service_role;
grant execute on function public.list_disposable_domains(text, integer) to service_role;

-- Whether mail there counts as throw-away from now on, for who comes; says whether that is something new.
create or replace function doorkey.set_disposable_domain(
  p_domain text, p_is_disposable boolean, p_actor text, p_request_id text
) returns boolean
language plpgsql security definer set search_path = ''
as $$
begin
  perform doorkey.act_as(p_actor, p_request_id);
  if p_is_disposable then
    insert into doorkey.disposable_domains (domain) values (p_domain) on conflict do nothing;
  else
    delete from doorkey.disposable_domains as d where d.domain = p_domain;
  end if;
  return found;
exception when check_violation or not_null_violation then
  raise sqlstate 'PT422' using message = 'domain_invalid', hint = 'Such as mailinator.com, in small letters.';
end
$$;
revoke all on function doorkey.set_disposable_domain(text, boolean, text, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.set_disposable_domain(text, boolean, text, text) to service_role;

create or replace function public.set_disposable_domain(
  domain text, is_disposable boolean, actor text, request_id text
) returns boolean
language sql set search_path = ''
as $$ select doorkey.set_disposable_domain($1, $2, $3, $4); $$;
revoke all on function public.set_disposable_domain(text, boolean, text, text)
  from public, anon, authenticated, service_role;
grant execute on function public.set_disposable_domain(text, boolean, text, text) to service_role;
