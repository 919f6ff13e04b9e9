-- Plans, for operators without SQL: look, add, set.
--
-- The surprising thing: no key is touched here. What changes the limits of keys (the markup, the cap, that there is none)
-- is found by the sweep, which walks round all keys, some thousand a minute, and has those set right that are not as
-- they should be: a plan may have more users than one statement could serve. What was charged stays as it was charged.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- By their ids, after that one, closed ones too: each as its row is, how many accounts are on it, and whether new users
-- come to it.
create or replace function doorkey.list_plans(p_after_id text, p_rows integer) returns setof jsonb
language plpgsql stable security definer set search_path = ''
as $$
begin
  if p_rows is null or p_rows not between 1 and 1000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Ask for 1 to 1000 rows.';
  end if;
  return query
    select to_jsonb(p) || jsonb_build_object(
             'accounts', (select count(*) from public.credit_accounts as a where a.plan_id = p.id),
             'is_default', p.id = s.default_plan_id)
      from public.plans as p cross join doorkey.settings as s
     where p_after_id is null or p.id > p_after_id
     order by p.id limit p_rows;
end
$$;
revoke all on function doorkey.list_plans(text, integer) from public, anon, authenticated, service_role;
grant execute on function doorkey.list_plans(text, integer) to service_role;

create or replace function public.list_plans(after_id text, plan_rows integer) returns setof jsonb
language sql stable set search_path = ''
as $$ select doorkey.list_plans($1, $2); $$;
revoke all on function public.list_plans(text, integer) from public, anon, authenticated, service_role;
grant execute on function public.list_plans(text, integer) to service_role;

-- Sets these columns of a plan to these values, as text (models and features: as JSON), and leaves the others as they
-- are; null: not set. is_new: there is no such plan yet. Repeatable with the same content. Says how the plan was (null: it
-- was not) and is, how many accounts are on it, and how many users the sweep walks round.
create or replace function doorkey.set_plan(
  p_plan_id text, p_is_new boolean, p_columns text[], p_values text[], p_actor text, p_request_id text
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
  c_hint constant text := 'A column that a plan has not, a value that it may not have, or two that do not go together.';
  v_before public.plans;
  v_after public.plans;
  v_wish jsonb;
  v_names text;
begin
  if p_columns <@ array[
       'name', 'price_micros', 'period_days', 'credits_per_period_micros', 'monthly_cap_micros', 'welcome_credits_micros',
       'welcome_credits_days', 'markup', 'charges_by', 'token_price_micros_per_1k', 'is_uncapped', 'requests_per_minute',
       'requests_per_day', 'allowed_models', 'features', 'is_active'] is not true
     or cardinality(p_columns) not between 1 and 100 or cardinality(p_values) is distinct from cardinality(p_columns) then
    raise sqlstate 'PT422' using message = 'plan_invalid', hint = c_hint;
  end if;
  perform doorkey.act_as(p_actor, p_request_id);
  select * into v_before from public.plans as p where p.id = p_plan_id for no key update;
  if not found and p_is_new is not true then
    raise sqlstate 'PT404' using message = 'unknown_plan', hint = 'There is no such plan.';
  end if;
  begin
    select jsonb_object_agg(c.name, case when c.name in ('allowed_models', 'features') then c.value::jsonb
                                         else to_jsonb(c.value) end),
           string_agg(distinct quote_ident(c.name), ', ')
      into v_wish, v_names
      from unnest(p_columns, p_values) as c (name, value);
    v_after := jsonb_populate_record(v_before, v_wish);
    if v_before.id is null then
      execute format(
        'insert into public.plans as p (id, %1$s)'
        ' select $1, %1$s from jsonb_populate_record(null::public.plans, $2) returning p.*', v_names)
         into v_after using p_plan_id, v_wish;
    elsif p_is_new and v_after is distinct from v_before then
      raise sqlstate 'PT409' using message = 'plan_exists', hint = 'There is a plan of this name, with another content.';
    else
      execute format(
        'update public.plans as p set (%1$s) = (select %1$s from jsonb_populate_record(p, $2)) where p.id = $1'
        ' returning p.*', v_names)
         into v_after using p_plan_id, v_wish;
    end if;
    -- Stored, it would be another one: rounded to what fits.
    if (v_wish ->> 'markup')::numeric <> v_after.markup then
      raise sqlstate 'PT422' using message = 'plan_invalid', hint = 'A markup has six places at most.';
    end if;
  exception
    when unique_violation then
      raise sqlstate 'PT409' using message = 'plan_exists', hint = 'It was added a moment ago. Look at it.';
    when data_exception or integrity_constraint_violation then
      raise sqlstate 'PT422' using message = 'plan_invalid', hint = c_hint;
  end;
  if v_before.is_active and not v_after.is_active
     and exists (select from doorkey.settings as s where s.default_plan_id = p_plan_id) then
    raise sqlstate 'PT409' using message = 'plan_is_default', hint = 'Set another default_plan_id first.';
  end if;
  return jsonb_build_object(
    'before', case when v_before.id is not null then to_jsonb(v_before) end,
    'after', to_jsonb(v_after),
    'accounts', (select count(*) from public.credit_accounts as a where a.plan_id = p_plan_id),
    'users', (select count(*) from doorkey.provisioning));
end
$$;
revoke all on function doorkey.set_plan(text, boolean, text[], text[], text, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.set_plan(text, boolean, text[], text[], text, text) to service_role;

create or replace function public.set_plan(
  plan_id text, is_new boolean, plan_columns text[], plan_values text[], actor text, request_id text
) returns jsonb
language sql set search_path = ''
as $$ select doorkey.set_plan($1, $2, $3, $4, $5, $6); $$;
revoke all on function public.set_plan(text, boolean, text[], text[], text, text)
  from public, anon, authenticated, service_role;
grant execute on function public.set_plan(text, boolean, text[], text[], text, text) to service_role;
