-- Users from before the installation: counted, then enrolled batch by batch. The sweep makes their keys.
--
-- Nothing remembers how far a backfill has come but the rows that it made: whoever has one is passed over, so it can be
-- stopped anywhere and begun again. auth.users is read by its primary key only, some thousand users a call: its other
-- columns have no index that we could rely on.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- The next users from before who have no row, by id, in some thousand of auth.users. State null: left out, because they
-- are banned or deleted. `next_after`: where to go on; null: that was the last of them.
create or replace function doorkey.next_old_users(
  p_after uuid, p_user_id uuid, p_created_since timestamptz, p_created_before timestamptz, p_users integer,
  out user_ids uuid[], out kinds text[], out states doorkey.provisioning_state[], out next_after uuid
)
-- Without statistics, as in a project just restored, the plan would be to read the whole table and sort it.
language plpgsql stable security definer set search_path = '' set enable_sort = off
as $$
declare
  c_looked_at constant integer := 5000;
  v_page uuid[];
begin
  -- The ids first, and nothing else about them: any further condition here, and the plan may be to read and sort the
  -- whole table.
  if p_user_id is null then
    select array_agg(page.id order by page.id) into v_page
      from (select u.id from auth.users as u
             where u.id > coalesce(p_after, '00000000-0000-0000-0000-000000000000')
             order by u.id limit c_looked_at) as page;
  else
    v_page := array[p_user_id];
  end if;
  with chosen as (
    select u.id, u.is_anonymous,
           u.email_confirmed_at is not null or u.phone_confirmed_at is not null as is_confirmed,
           u.deleted_at is not null or coalesce(u.banned_until > now(), false) as is_left_out
      from auth.users as u
     where u.id = any (v_page)
       and u.created_at < (select s.installed_at from doorkey.settings as s)
       and (p_created_since is null or u.created_at >= p_created_since)
       and (p_created_before is null or u.created_at < p_created_before)
       -- Not "not exists": that may be planned as one look at all rows there are, for the sake of five thousand.
       and (select p.user_id from doorkey.provisioning as p where p.user_id = u.id) is null
     order by u.id limit p_users
  )
  select array_agg(c.id order by c.id),
         array_agg(case when c.is_left_out then 'left_out' when c.is_anonymous then 'anonymous'
                        when c.is_confirmed then 'confirmed' else 'unconfirmed' end order by c.id),
         array_agg(case when not c.is_left_out
                        then doorkey.first_state(c.is_anonymous, c.is_confirmed) end order by c.id)
    into user_ids, kinds, states
    from chosen as c;
  next_after := case
    when cardinality(user_ids) = p_users then user_ids[p_users]
    when cardinality(v_page) = c_looked_at then v_page[c_looked_at]
  end;
end
$$;
revoke all on function doorkey.next_old_users(uuid, uuid, timestamptz, timestamptz, integer)
  from public, anon, authenticated, service_role;

-- Counts the next users whom a backfill would enrol, by kind. `due`: how many of them would get a key now; the others
-- would wait, as they would had they signed up today.
create or replace function doorkey.preview_backfill(
  p_after uuid, p_user_id uuid, p_created_since timestamptz, p_created_before timestamptz, p_users integer
)
returns table (confirmed bigint, unconfirmed bigint, anonymous bigint, left_out bigint, due bigint, next_after uuid)
language plpgsql stable security definer set search_path = ''
as $$
begin
  if p_users is null or p_users not between 1 and 5000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Look at 1 to 5000 users at a time.';
  end if;
  return query
    select count(*) filter (where o.kind = 'confirmed'),
           count(*) filter (where o.kind = 'unconfirmed'),
           count(*) filter (where o.kind = 'anonymous'),
           count(*) filter (where o.kind = 'left_out'),
           count(*) filter (where o.state = 'due'),
           page.next_after
      from doorkey.next_old_users(p_after, p_user_id, p_created_since, p_created_before, p_users) as page
      left join lateral unnest(page.kinds, page.states) as o (kind, state) on true
     group by page.next_after;
end
$$;
revoke all on function doorkey.preview_backfill(uuid, uuid, timestamptz, timestamptz, integer)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.preview_backfill(uuid, uuid, timestamptz, timestamptz, integer) to service_role;

create or replace function public.preview_backfill(
  after uuid, user_id uuid, created_since timestamptz, created_before timestamptz, users integer
)
returns table (confirmed bigint, unconfirmed bigint, anonymous bigint, left_out bigint, due bigint, next_after uuid)
language sql stable set search_path = ''
as $$ select * from doorkey.preview_backfill($1, $2, $3, $4, $5); $$;
revoke all on function public.preview_backfill(uuid, uuid, timestamptz, timestamptz, integer)
  from public, anon, authenticated, service_role;
grant execute on function public.preview_backfill(uuid, uuid, timestamptz, timestamptz, integer) to service_role;

-- Enrols the next users. Each who is due gets a moment of their own, after the last one given away: whoever calls, and
-- however many at once, the rate holds.
create or replace function doorkey.backfill_users(
  p_after uuid, p_user_id uuid, p_created_since timestamptz, p_created_before timestamptz, p_users integer,
  p_per_hour integer, p_request_id text
)
returns table (due integer, waiting integer, unfilled_profiles integer, next_after uuid)
language plpgsql security definer set search_path = '' set lock_timeout = '3s'
as $$
declare
  v_page record;
  v_row record;
  v_next_at timestamptz;
  v_pause constant interval := make_interval(secs => 3600.0 / nullif(p_per_hour, 0));
  v_object text;
begin
  if p_users is null or p_users not between 1 and 1000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Enrol 1 to 1000 users at a time.';
  end if;
  if p_per_hour is null or p_per_hour not between 1 and coalesce(doorkey.backfill_ceiling(), 1000000) then
    raise sqlstate 'PT422' using message = 'rate_out_of_range',
      hint = 'At least one an hour; and a tenth of max_keys_per_hour is kept for signups.';
  end if;
  perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('doorkey.backfill_users'));
  select greatest(now(), max(p.backfill_at) + v_pause) into v_next_at
    from doorkey.provisioning as p where p.backfill_at is not null;
  select * into v_page
    from doorkey.next_old_users(p_after, p_user_id, p_created_since, p_created_before, p_users);
  due := 0;
  waiting := 0;
  unfilled_profiles := 0;
  next_after := v_page.next_after;
  for v_row in
    insert into doorkey.provisioning as p (user_id, state, due_at, backfill_at)
    select o.id, o.state, o.due_at, o.due_at
      from (select u.id, u.state,
                   case when u.state = 'due'
                        then v_next_at + v_pause * (count(*) filter (where u.state = 'due') over (order by u.id) - 1)
                        else now() end as due_at
              from unnest(v_page.user_ids, v_page.states) as u (id, state)) as o
     where o.state is not null
     order by o.id
    on conflict on constraint provisioning_pkey do nothing
    returning p.user_id, p.state
  loop
    due := due + (v_row.state = 'due')::integer;
    waiting := waiting + (v_row.state = 'waiting')::integer;
    begin
      perform doorkey.fill_profile(v_row.user_id);
    exception
      -- A table that is locked for one is locked for all: better the whole batch later.
      when lock_not_available then
        raise sqlstate 'PT409' using message = 'profiles_locked', hint = 'Somebody holds public.profiles. Try again later.';
      when others or assert_failure then
        get stacked diagnostics v_object = column_name;
        unfilled_profiles := unfilled_profiles + 1;
        perform doorkey.write_audit('operator', 'profile.not_filled', v_row.user_id, p_request_id,
          jsonb_strip_nulls(jsonb_build_object('sqlstate', sqlstate, 'object', nullif(v_object, ''))));
    end;
  end loop;
  if due + waiting > 0 then
    perform doorkey.write_audit('operator', 'users.backfilled', null, p_request_id,
      jsonb_build_object('due', due, 'waiting', waiting, 'unfilled_profiles', unfilled_profiles, 'per_hour', p_per_hour));
  end if;
  return next;
end
$$;
revoke all on function doorkey.backfill_users(uuid, uuid, timestamptz, timestamptz, integer, integer, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.backfill_users(uuid, uuid, timestamptz, timestamptz, integer, integer, text)
  to service_role;

create or replace function public.backfill_users(
  after uuid, user_id uuid, created_since timestamptz, created_before timestamptz, users integer,
  per_hour integer, request_id text
)
returns table (due integer, waiting integer, unfilled_profiles integer, next_after uuid)
language sql set search_path = ''
as $$ select * from doorkey.backfill_users($1, $2, $3, $4, $5, $6, $7); $$;
revoke all on function public.backfill_users(uuid, uuid, timestamptz, timestamptz, integer, integer, text)
  from public, anon, authenticated, service_role;
grant execute on function public.backfill_users(uuid, uuid, timestamptz, timestamptz, integer, integer, text)
  to service_role;

-- How all backfills together stand, what a key of theirs costs, and what holds them up.
create or replace function doorkey.backfill_progress()
returns table (
  waiting bigint, due bigint, working bigint, ready bigint, dead bigint, gone bigint, ahead_seconds double precision,
  last_sweep_seconds double precision, held_reason text, max_keys_per_hour integer, max_per_hour integer,
  provision_on text, welcome_micros bigint, micros_per_credit bigint, is_uncapped boolean
)
language sql stable security definer set search_path = ''
as $$
  select b.waiting, b.due, b.working, b.ready, b.dead, b.gone,
         -- Until the last moment that was given away.
         greatest(extract(epoch from b.last_at - now()), 0)::double precision,
         extract(epoch from now() - s.last_sweep_at)::double precision,
         s.held_reason, s.max_keys_per_hour, doorkey.backfill_ceiling(), s.provision_on,
         l.welcome_credits_micros, s.micros_per_credit, l.is_uncapped
    from doorkey.settings as s
    join public.plans as l on l.id = s.default_plan_id
   cross join (
     select count(*) filter (where p.state = 'waiting') as waiting,
            count(*) filter (where p.state = 'due') as due,
            count(*) filter (where p.state = 'working') as working,
            count(*) filter (where p.state = 'ready') as ready,
            count(*) filter (where p.state = 'dead') as dead,
            count(*) filter (where p.state = 'gone') as gone,
            max(p.backfill_at) as last_at
       from doorkey.provisioning as p where p.backfill_at is not null
   ) as b;
$$;
revoke all on function doorkey.backfill_progress() from public, anon, authenticated, service_role;
grant execute on function doorkey.backfill_progress() to service_role;

create or replace function public.get_backfill_progress()
returns table (
  waiting bigint, due bigint, working bigint, ready bigint, dead bigint, gone bigint, ahead_seconds double precision,
  last_sweep_seconds double precision, held_reason text, max_keys_per_hour integer, max_per_hour integer,
  provision_on text, welcome_micros bigint, micros_per_credit bigint, is_uncapped boolean
)
language sql stable set search_path = ''
as $$ select * from doorkey.backfill_progress(); $$;
revoke all on function public.get_backfill_progress() from public, anon, authenticated, service_role;
grant execute on function public.get_backfill_progress() to service_role;
