-- What the sweep asks of the database: it is the guarantee, where hints are lost and triggers fail.
--
-- Every call is bounded and ends well within hosted's eight seconds; two sweeps at once do each other no harm.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- Begins a sweep: enrols whom the trigger missed and forgets what is too old to remember.
-- Those whom the trigger noted come first; the others are found by a walk round auth.users, some thousand a time by
-- primary key: its other columns have no index that we could rely on, and we may not make one.
create or replace function doorkey.start_sweep(p_users integer)
returns table (enrolled integer, pruned integer, oldest_due_seconds bigint, dead bigint, held_reason text, is_braked boolean)
language plpgsql security definer set search_path = ''
as $$
declare
  v_settings doorkey.settings;
  v_page uuid[];
begin
  if p_users is null or p_users not between 1 and 10000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'A sweep looks at 1 to 10000 users at a time.';
  end if;
  select * into v_settings from doorkey.settings;

  select array_agg(page.id order by page.id) into v_page
    from (select u.id from auth.users as u
           where v_settings.sweep_cursor is null or u.id > v_settings.sweep_cursor
           order by u.id limit p_users) as page;
  with missed as (
    select a.user_id as id from doorkey.audit_log as a
     where a.action = 'user.not_enrolled' and a.happened_at > now() - interval '1 day'
    union
    select unnest(v_page)
  )
  select count(*) filter (where doorkey.enrol(m.id) = 'due')::integer into enrolled
    from missed as m
    left join doorkey.provisioning as p on p.user_id = m.id
    join auth.users as u on u.id = m.id
   where (p.user_id is null or p.state = 'waiting')
     and u.deleted_at is null and coalesce(u.created_at, now()) >= v_settings.installed_at;

  -- At the end of the walk it begins again.
  update doorkey.settings
     set sweep_cursor = case when cardinality(v_page) = p_users then v_page[p_users] end,
         last_sweep_at = now();

  with old as (
    select a.id from doorkey.audit_log as a
     where a.happened_at < now() - make_interval(days => v_settings.audit_days)
     order by a.id limit 1000
  ), gone as (
    delete from doorkey.audit_log as a using old where a.id = old.id returning 1
  )
  select count(*)::integer into pruned from gone;

  select coalesce(floor(extract(epoch from now() - min(d.since))), 0)::bigint into oldest_due_seconds
    from doorkey.due_provisioning(1) as d;
  select count(*) into dead from doorkey.provisioning as p where p.state = 'dead';
  held_reason := v_settings.held_reason;
  is_braked := v_settings.max_keys_per_hour is not null and exists (
    select from public.openrouter_user_keys as k
     where k.created_at > now() - interval '1 hour'
    offset v_settings.max_keys_per_hour - 1);
  return next;
end
$$;
revoke all on function doorkey.start_sweep(integer) from public, anon, authenticated, service_role;
grant execute on function doorkey.start_sweep(integer) to service_role;

-- Who is due, who was left by a worker that died, and whose ban has ended: longest waiting first.
create or replace function doorkey.due_provisioning(p_rows integer)
returns table (user_id uuid, since timestamptz)
language sql stable security definer set search_path = ''
as $$
  select w.user_id, w.since
    from (
      (select p.user_id, p.due_at as since from doorkey.provisioning as p
        where p.state = 'due' and p.due_at <= now() order by p.due_at limit p_rows)
      union all
      (select p.user_id, p.lease_expires_at from doorkey.provisioning as p
        where p.state = 'working' and p.lease_expires_at <= now() order by p.lease_expires_at limit p_rows)
      union all
      (select p.user_id, p.revisit_at from doorkey.provisioning as p
        where p.state = 'ready' and p.revisit_at <= now() order by p.revisit_at limit p_rows)
    ) as w
   order by w.since, w.user_id limit p_rows;
$$;
revoke all on function doorkey.due_provisioning(integer) from public, anon, authenticated, service_role;

create or replace function doorkey.list_due_provisioning(p_rows integer) returns setof uuid
language plpgsql stable security definer set search_path = ''
as $$
begin
  if p_rows is null or p_rows not between 1 and 1000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Ask for 1 to 1000 rows.';
  end if;
  return query select d.user_id from doorkey.due_provisioning(p_rows) as d;
end
$$;
revoke all on function doorkey.list_due_provisioning(integer) from public, anon, authenticated, service_role;
grant execute on function doorkey.list_due_provisioning(integer) to service_role;

create or replace function public.start_sweep(users integer)
returns table (enrolled integer, pruned integer, oldest_due_seconds bigint, dead bigint, held_reason text, is_braked boolean)
language sql set search_path = ''
as $$ select * from doorkey.start_sweep($1); $$;
revoke all on function public.start_sweep(integer) from public, anon, authenticated, service_role;
grant execute on function public.start_sweep(integer) to service_role;

create or replace function public.list_due_provisioning(due_rows integer) returns setof uuid
language sql stable set search_path = ''
as $$ select doorkey.list_due_provisioning($1); $$;
revoke all on function public.list_due_provisioning(integer) from public, anon, authenticated, service_role;
grant execute on function public.list_due_provisioning(integer) to service_role;

-- Which of these keys the database holds to be alive. Whatever else goes by our name at OpenRouter is a stray.
create or replace function doorkey.list_known_keys(p_key_hashes text[]) returns setof text
language plpgsql stable security definer set search_path = ''
as $$
begin
  if p_key_hashes is null or cardinality(p_key_hashes) > 1000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Ask about up to 1000 keys.';
  end if;
  return query
    select k.key_hash from public.openrouter_user_keys as k
     where k.key_hash = any (p_key_hashes) and k.status <> 'deleted';
end
$$;
revoke all on function doorkey.list_known_keys(text[]) from public, anon, authenticated, service_role;
grant execute on function doorkey.list_known_keys(text[]) to service_role;

create or replace function public.list_known_keys(key_hashes text[]) returns setof text
language sql stable set search_path = ''
as $$ select doorkey.list_known_keys($1); $$;
revoke all on function public.list_known_keys(text[]) from public, anon, authenticated, service_role;
grant execute on function public.list_known_keys(text[]) to service_role;
