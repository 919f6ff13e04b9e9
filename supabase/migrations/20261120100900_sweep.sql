-- What the sweep asks of the database: it is the guarantee, where hints are lost and triggers fail.
--
-- Every call is bounded and ends well within hosted's eight seconds; two sweeps at once do each other no harm.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- Begins a sweep: enrols whom the trigger missed and forgets what is too old to remember.
-- Those whom the trigger noted come first; the others are found by a walk round auth.users, some thousand a time by
-- primary key: its other columns have no index that we could rely on, and we may not make one.
create or replace function doorkey.start_sweep(p_users integer)
returns table (enrolled integer, healed integer, pruned integer, oldest_due_seconds bigint, dead bigint, held_reason text, is_braked boolean)
language plpgsql security definer set search_path = ''
as $$
declare
  v_settings doorkey.settings;
  v_page uuid[];
  v_rows uuid[];
  v_is_crowded boolean;
begin
  if p_users is null or p_users not between 1 and 10000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'A sweep looks at 1 to 10000 users at a time.';
  end if;
  select * into v_settings from doorkey.settings;

  select array_agg(page.id order by page.id) into v_page
    from (select u.id from auth.users as u
           where u.id > coalesce(v_settings.sweep_cursor, '00000000-0000-0000-0000-000000000000')
           order by u.id limit p_users) as page;
  with missed as (
    select a.user_id as id from doorkey.audit_log as a
     where a.action in ('user.not_enrolled', 'user.not_noticed') and a.happened_at > now() - interval '1 day'
    union
    select unnest(v_page)
  )
  select count(*) filter (where doorkey.enrol(m.id) = 'due')::integer into enrolled
    from missed as m
    left join doorkey.provisioning as p on p.user_id = m.id
    join auth.users as u on u.id = m.id
   where u.deleted_at is null
     and (p.state = 'waiting' or (p.user_id is null and coalesce(u.created_at, now()) >= v_settings.installed_at));

  -- The other way round: keys that are not as they should be, because a trigger missed it or the plan changed. Those
  -- noted come first, and a walk round our own rows finds the rest. It stands still while a page of keys is due already:
  -- a plan may have changed that everybody is on, and whoever comes meanwhile must not stand behind them all.
  select count(*) = p_users into v_is_crowded
    from (select from doorkey.provisioning as p
           where p.state = 'due' and p.due_at <= now() and p.key_hash is not null limit p_users) as due;
  select array_agg(page.user_id order by page.user_id) into v_rows
    from (select p.user_id from doorkey.provisioning as p
           where not v_is_crowded
             and p.user_id > coalesce(v_settings.heal_cursor, '00000000-0000-0000-0000-000000000000')
           order by p.user_id limit p_users) as page;
  with looked_at as (
    select a.user_id from doorkey.audit_log as a
     where a.action = 'user.not_noticed' and a.happened_at > now() - interval '1 day'
    union
    select unnest(v_rows)
  ), wrong as (
    select p.user_id, w.is_present
      from looked_at as l
      join doorkey.provisioning as p on p.user_id = l.user_id and p.state in ('ready', 'waiting')
     cross join lateral doorkey.desired_key(p.user_id) as w
     where case p.state when 'ready' then (doorkey.next_key_action(p.user_id)).is_needed else not w.is_present end
  )
  select count(doorkey.look_again(w.user_id, not w.is_present))::integer into healed from wrong as w;

  -- At the end of a walk it begins again.
  update doorkey.settings
     set sweep_cursor = case when cardinality(v_page) = p_users then v_page[p_users] end,
         heal_cursor = case when v_is_crowded then heal_cursor
                            when cardinality(v_rows) = p_users then v_rows[p_users] end,
         last_sweep_at = now();
  delete from doorkey.key_requests as r where r.requested_at < now() - interval '1 day';
  -- A minute later than they expire: a call that looked just before is over by then.
  delete from doorkey.used_proofs as u using (
    select o.proof_id from doorkey.used_proofs as o where o.expires_at < now() - interval '1 minute'
     order by o.expires_at limit 100000 for update skip locked) as old
   where u.proof_id = old.proof_id;

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
    select from doorkey.key_requests as r
     where r.requested_at > now() - interval '1 hour'
    offset v_settings.max_keys_per_hour - 1);
  return next;
end
$$;
revoke all on function doorkey.start_sweep(integer) from public, anon, authenticated, service_role;
grant execute on function doorkey.start_sweep(integer) to service_role;

-- Who is due, who was left by a worker that died, and whose ban has ended: longest waiting first. Those of a backfill
-- who have no key yet come last, and only while the hour has room for them: after an hour without a sweep they are a
-- crowd, and nobody who signs up stands behind it.
create or replace function doorkey.due_provisioning(p_rows integer)
returns table (user_id uuid, since timestamptz)
language sql stable security definer set search_path = ''
as $$
  select w.user_id, w.since
    from (
      (select p.user_id, p.due_at as since, false as is_crowd from doorkey.provisioning as p
        where p.state = 'due' and p.due_at <= now() and (p.backfill_at is null or p.key_hash is not null)
        order by p.due_at limit p_rows)
      union all
      (select p.user_id, p.due_at, true from doorkey.provisioning as p
        where p.state = 'due' and p.due_at <= now() and p.backfill_at is not null and p.key_hash is null
        order by p.due_at limit least(p_rows, doorkey.backfill_room()))
      union all
      (select p.user_id, p.lease_expires_at, false from doorkey.provisioning as p
        where p.state = 'working' and p.lease_expires_at <= now() order by p.lease_expires_at limit p_rows)
      union all
      (select p.user_id, p.revisit_at, false from doorkey.provisioning as p
        where p.state = 'ready' and p.revisit_at <= now() order by p.revisit_at limit p_rows)
    ) as w
   order by w.is_crowd, w.since, w.user_id limit p_rows;
$$;
revoke all on function doorkey.due_provisioning(integer) from public, anon, authenticated, service_role;

-- Up to a quarter of them have failed before and go first: else the last ones' bad luck would only begin when a crowd
-- is served.
create or replace function doorkey.list_due_provisioning(p_rows integer) returns setof uuid
language plpgsql stable security definer set search_path = ''
as $$
begin
  if p_rows is null or p_rows not between 1 and 1000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Ask for 1 to 1000 rows.';
  end if;
  return query
    select w.user_id
      from (
        (select p.user_id, 0 as turn, row_number() over (order by p.due_at) as place from doorkey.provisioning as p
          where p.state = 'due' and p.failures > 0 and p.due_at <= now()
            and (p.backfill_at is null or p.key_hash is not null)
          order by p.due_at limit p_rows / 4)
        union all
        select d.user_id, 1, d.place
          from doorkey.due_provisioning(p_rows) with ordinality as d (user_id, since, place)
      ) as w
     group by w.user_id order by min(w.turn), min(w.place) limit p_rows;
end
$$;
revoke all on function doorkey.list_due_provisioning(integer) from public, anon, authenticated, service_role;
grant execute on function doorkey.list_due_provisioning(integer) to service_role;

create or replace function public.start_sweep(users integer)
returns table (enrolled integer, healed integer, pruned integer, oldest_due_seconds bigint, dead bigint, held_reason text, is_braked boolean)
language sql set search_path = ''
as $$ select * from doorkey.start_sweep($1); $$;
revoke all on function public.start_sweep(integer) from public, anon, authenticated, service_role;
grant execute on function public.start_sweep(integer) to service_role;

create or replace function public.list_due_provisioning(due_rows integer) returns setof uuid
language sql stable set search_path = ''
as $$ select doorkey.list_due_provisioning($1); $$;
revoke all on function public.list_due_provisioning(integer) from public, anon, authenticated, service_role;
grant execute on function public.list_due_provisioning(integer) to service_role;

-- What the keys by our names are. known: the database holds them to be alive. stray: made by an attempt of ours that is
-- over, and nobody's. foreign: of an attempt that this database never made: a copy of it, a branch, uses our name too.
create or replace function doorkey.classify_keys(p_key_hashes text[], p_user_ids uuid[], p_attempts integer[])
returns table (key_hash text, kind text)
language plpgsql stable security definer set search_path = ''
as $$
begin
  if p_key_hashes is null or cardinality(p_key_hashes) > 1000
     or cardinality(p_key_hashes) is distinct from cardinality(p_user_ids)
     or cardinality(p_key_hashes) is distinct from cardinality(p_attempts) then
    raise sqlstate 'PT422' using message = 'page_out_of_range',
      hint = 'Ask about up to 1000 keys, each with its user and attempt.';
  end if;
  return query
    select a.hash,
           case when k.key_hash is not null then 'known'
                when p.attempt >= a.attempt then 'stray'
                else 'foreign' end
      from unnest(p_key_hashes, p_user_ids, p_attempts) as a (hash, user_id, attempt)
      left join public.openrouter_user_keys as k on k.key_hash = a.hash and k.status <> 'deleted'
      left join doorkey.provisioning as p on p.user_id = a.user_id;
end
$$;
revoke all on function doorkey.classify_keys(text[], uuid[], integer[])
  from public, anon, authenticated, service_role;
grant execute on function doorkey.classify_keys(text[], uuid[], integer[]) to service_role;

create or replace function public.classify_keys(key_hashes text[], user_ids uuid[], attempts integer[])
returns table (key_hash text, kind text)
language sql stable set search_path = ''
as $$ select * from doorkey.classify_keys($1, $2, $3); $$;
revoke all on function public.classify_keys(text[], uuid[], integer[])
  from public, anon, authenticated, service_role;
grant execute on function public.classify_keys(text[], uuid[], integer[]) to service_role;
