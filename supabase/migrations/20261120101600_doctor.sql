-- Whether all is well, for operators: the doctor and /health/ready read it off from one answer.
--
-- The surprising thing is what is left out: this says what is, and never what ought to be. That is known by whoever asks,
-- so that an older database is judged by newer rules. A part that can't be looked at is null, and doesn't hide the others.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- Who may call each of our functions in `public`, and what is behind it: both are needed. A grant that is missing shuts
-- a door, one too many opens it to everybody.
create or replace function doorkey.open_doors() returns jsonb
language sql stable security definer set search_path = ''
as $$
  select jsonb_agg(jsonb_build_object(
           'name', d.proname,
           'arguments', coalesce(to_jsonb(d.proargnames[1:d.pronargs]), '[]'::jsonb),
           'callers', (select coalesce(jsonb_agg(r.name), '[]'::jsonb) from unnest(d.roles) as r (name)
                        where has_function_privilege(r.name, d.oid, 'execute')),
           'callers_behind', (select coalesce(jsonb_agg(r.name), '[]'::jsonb) from unnest(d.roles) as r (name)
                               where has_schema_privilege(r.name, 'doorkey', 'usage')
                                 and has_function_privilege(r.name, b.oid, 'execute')),
           'behind', (select jsonb_agg(distinct m.found[1]) from regexp_matches(d.prosrc, d.calls, 'g') as m (found)))
           order by d.proname)
    from (select p.oid, p.proname, p.proargnames, p.pronargs, p.prosrc, '\mdoorkey\.([a-z_]+)\(' as calls,
                 array['anon', 'authenticated', 'service_role'] as roles,
                 substring(p.prosrc from '\mdoorkey\.([a-z_]+)\(') as behind
            from pg_catalog.pg_proc as p where p.pronamespace = 'public'::regnamespace) as d
    join pg_catalog.pg_proc as b on b.pronamespace = 'doorkey'::regnamespace and b.proname = d.behind;
$$;
revoke all on function doorkey.open_doors() from public, anon, authenticated, service_role;

-- Which of our functions inside somebody else may call, and who. The schema is never exposed; but a function of the host's
-- may be a way in, for whoever has the grant.
create or replace function doorkey.open_inside() returns jsonb
language sql stable security definer set search_path = ''
as $$
  select coalesce(jsonb_agg(jsonb_build_object('name', f.proname, 'callers', f.callers) order by f.proname), '[]'::jsonb)
    from (select p.proname, jsonb_agg(r.name order by r.name) as callers
            from pg_catalog.pg_proc as p, unnest(array['anon', 'authenticated', 'service_role']) as r (name)
           where p.pronamespace = 'doorkey'::regnamespace and has_function_privilege(r.name, p.oid, 'execute')
           group by p.oid, p.proname) as f;
$$;
revoke all on function doorkey.open_inside() from public, anon, authenticated, service_role;

-- The versions that the Supabase CLI noted, the host's among them. Null: it never came by, or we may not look.
create or replace function doorkey.applied_migrations() returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
declare
  v_versions jsonb;
begin
  if to_regclass('supabase_migrations.schema_migrations') is not null then
    execute 'select jsonb_agg(m.version order by m.version) from supabase_migrations.schema_migrations as m'
       into v_versions;
  end if;
  return v_versions;
exception when insufficient_privilege or undefined_column then
  return null;
end
$$;
revoke all on function doorkey.applied_migrations() from public, anon, authenticated, service_role;

-- Null: pg_net is not there. How many requests wait is counted up to a thousand; null: we may not look.
create or replace function doorkey.pg_net_health() returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
declare
  v_is_worker_up boolean;
  v_waiting integer;
begin
  if to_regclass('net.http_request_queue') is null then
    return null;
  end if;
  if to_regprocedure('net.check_worker_is_up()') is not null then
    begin
      execute 'select net.check_worker_is_up()';
      v_is_worker_up := true;
    exception when insufficient_privilege then
      v_is_worker_up := null;
    when others then
      v_is_worker_up := false;
    end;
  end if;
  begin
    execute 'select count(*) from (select from net.http_request_queue limit 1000) as q' into v_waiting;
  exception when insufficient_privilege then
    v_waiting := null;
  end;
  return jsonb_build_object('is_worker_up', v_is_worker_up, 'waiting', v_waiting);
-- Where the schema is closed, even looking for something in it is refused.
exception when insufficient_privilege then
  return jsonb_build_object('is_worker_up', null, 'waiting', null);
end
$$;
revoke all on function doorkey.pg_net_health() from public, anon, authenticated, service_role;

create or replace function doorkey.health() returns jsonb
language sql stable security definer set search_path = ''
as $$
  select jsonb_build_object(
    'now', clock_timestamp(),
    'installed_at', s.installed_at,
    'seconds_installed', floor(extract(epoch from now() - s.installed_at))::bigint,
    'webhook_url', s.webhook_url,
    'is_webhook_secret_set', s.webhook_secret is not null,
    -- Those that fire: not switched off, nor kept for replicas.
    'triggers', (
      select coalesce(jsonb_agg(t.tgname order by t.tgname), '[]'::jsonb) from pg_catalog.pg_trigger as t
       where t.tgrelid = 'auth.users'::regclass and t.tgenabled in ('O', 'A') and starts_with(t.tgname, 'zz_doorkey_')),
    'doors', doorkey.open_doors(),
    'inside', doorkey.open_inside(),
    'migrations', doorkey.applied_migrations(),
    'pg_net', doorkey.pg_net_health(),
    'seconds_since_sweep', floor(extract(epoch from now() - s.last_sweep_at))::bigint,
    'oldest_due_seconds', (
      select coalesce(floor(extract(epoch from now() - min(d.since))), 0)::bigint
        from doorkey.due_provisioning(1) as d),
    'dead', (
      select coalesce(jsonb_agg(jsonb_build_object('error', d.last_error, 'users', d.users)
                                order by d.users desc, d.last_error), '[]'::jsonb)
        from (select coalesce(w.last_error, 'unknown') as last_error, count(*) as users
                from doorkey.provisioning as w where w.state = 'dead' group by 1) as d),
    'held_reason', s.held_reason,
    'max_keys_per_hour', s.max_keys_per_hour,
    'is_braked', s.max_keys_per_hour is not null and exists (
      select from doorkey.key_requests as r where r.requested_at > now() - interval '1 hour'
      offset s.max_keys_per_hour - 1),
    -- What the live keys may still spend, as far as was reported when each was last changed.
    'keys', (
      select jsonb_build_object(
               'live', count(*),
               'spendable_micros', coalesce(sum(greatest(k.limit_micros - k.reported_usage_micros, 0)), 0)::bigint,
               'uncapped', count(*) filter (where k.limit_micros is null))
        from public.openrouter_user_keys as k where k.status = 'active'))
  from doorkey.settings as s;
$$;
revoke all on function doorkey.health() from public, anon, authenticated, service_role;
grant execute on function doorkey.health() to service_role;

create or replace function public.get_doorkey_health() returns jsonb
language sql stable set search_path = ''
as $$ select doorkey.health(); $$;
revoke all on function public.get_doorkey_health() from public, anon, authenticated, service_role;
grant execute on function public.get_doorkey_health() to service_role;

-- Shows that the database holds the secret that signs the hints: an HMAC over a nonce of either side. What is signed can
-- never be a hint, where the second of three words is a time. Null: there is no secret.
create or replace function doorkey.prove_webhook_secret(p_nonce text)
returns table (database_nonce text, proof text)
language plpgsql security definer set search_path = ''
as $$
begin
  if p_nonce is null or p_nonce !~ '^[0-9a-f]{32,64}$' then
    raise sqlstate 'PT422' using message = 'nonce_invalid', hint = '32 to 64 hexadecimal digits.';
  end if;
  database_nonce := replace(gen_random_uuid()::text, '-', '');
  proof := (select doorkey.sign_webhook(s.webhook_secret, 'doorkey', 'doctor', database_nonce || p_nonce)
              from doorkey.settings as s);
  return next;
end
$$;
revoke all on function doorkey.prove_webhook_secret(text) from public, anon, authenticated, service_role;
grant execute on function doorkey.prove_webhook_secret(text) to service_role;

create or replace function public.prove_webhook_secret(nonce text)
returns table (database_nonce text, proof text)
language sql set search_path = ''
as $$ select * from doorkey.prove_webhook_secret($1); $$;
revoke all on function public.prove_webhook_secret(text) from public, anon, authenticated, service_role;
grant execute on function public.prove_webhook_secret(text) to service_role;
