-- The desired state of each user's key, and the only ways to change it.
--
-- One row per user, level-triggered: "make the key as it should be". Whatever changes the wish bumps `wanted`, also
-- while a worker holds the lease; finishing completes only what was claimed, else the row is due again. The attempt
-- number fences: a worker that wakes up after its lease cannot overwrite the winner.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

do $$
begin
  if to_regtype('doorkey.provisioning_state') is null then
    create type doorkey.provisioning_state as enum (
      'waiting',  -- nothing to do until something happens: address unconfirmed, anonymous, or by hand only
      'due',      -- to be worked on from due_at on
      'working',  -- leased by attempt number `attempt` until lease_expires_at
      'ready',    -- the key is as wanted
      'dead',     -- given up; visible, and can be redriven
      'gone'      -- the user is gone, and so is their key
    );
  end if;
end
$$;

create table if not exists doorkey.provisioning (
  -- Bare on purpose: an unrevoked key outlives the user.
  user_id uuid primary key,
  state doorkey.provisioning_state not null,
  -- Version of the wish, and the version that the running or last attempt took up.
  wanted bigint not null default 1 check (wanted > 0),
  claimed bigint check (claimed <= wanted),
  attempt integer not null default 0 check (attempt >= 0),
  -- Attempts that failed since the last success.
  failures integer not null default 0 check (failures >= 0),
  due_at timestamptz not null default now(),
  lease_expires_at timestamptz,
  -- The live key, once there is one.
  key_hash text references public.openrouter_user_keys (key_hash),
  -- Another key is wanted in its place, and this long it may finish what it began; null: no other one.
  rotation_grace_seconds integer check (rotation_grace_seconds between 0 and 604800),
  last_error text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  -- Since when a key is wanted, where that was later than the row: an address was confirmed, somebody stopped being anonymous.
  wanted_at timestamptz not null default now(),
  ready_at timestamptz,
  -- By whom the first key was asked for: the hint, the user's own first request, or the sweep. Null: nobody said.
  provisioned_by text check (provisioned_by in ('eager', 'lazy', 'sweep')),
  -- When time itself changes the wish: a ban or a grace period ends, and no update of the user will announce it.
  revisit_at timestamptz,
  -- For users from before the installation: the moment that a backfill gave them. Null: enrolled in any other way.
  backfill_at timestamptz,
  constraint leased_exactly_while_working check ((state = 'working') = (lease_expires_at is not null)),
  constraint ready_only_with_a_key check (state <> 'ready' or key_hash is not null),
  constraint no_key_before_or_after check (state not in ('waiting', 'gone') or key_hash is null),
  constraint rotates_only_a_key check (rotation_grace_seconds is null or key_hash is not null),
  constraint dead_with_a_reason check (state <> 'dead' or last_error is not null)
);
-- "What is due?", for the sweep.
create index if not exists provisioning_due
  on doorkey.provisioning (due_at) where state = 'due';
create index if not exists provisioning_retried
  on doorkey.provisioning (due_at) where state = 'due' and failures > 0;
create index if not exists provisioning_leased
  on doorkey.provisioning (lease_expires_at) where state = 'working';
create index if not exists provisioning_revisited
  on doorkey.provisioning (revisit_at) where state = 'ready' and revisit_at is not null;
create index if not exists provisioning_dead
  on doorkey.provisioning (updated_at) where state = 'dead';
-- "How far has the backfill come, and when is the next moment to give away?"
create index if not exists provisioning_backfilled
  on doorkey.provisioning (backfill_at, state) where backfill_at is not null;
-- Not of those who have none: a signup need not write to it.
create index if not exists provisioning_key on doorkey.provisioning (key_hash) where key_hash is not null;
alter table doorkey.provisioning enable row level security;
revoke all on table doorkey.provisioning from public, anon, authenticated, service_role;

-- When keys were asked for at OpenRouter, whatever came of it: for the hourly brake. Remembered for a day.
create table if not exists doorkey.key_requests (
  user_id uuid not null,
  attempt integer not null,
  requested_at timestamptz not null default now(),
  primary key (user_id, attempt)
);
create index if not exists key_requests_time on doorkey.key_requests (requested_at);
alter table doorkey.key_requests enable row level security;
revoke all on table doorkey.key_requests from public, anon, authenticated, service_role;

-- The state that a user's row begins in. Not in SQL, which would be planned anew in every signup.
create or replace function doorkey.first_state(p_is_anonymous boolean, p_is_confirmed boolean)
returns doorkey.provisioning_state
language plpgsql stable security definer set search_path = ''
as $$
begin
  return (
    select case
      when p_is_anonymous and not s.provision_anonymous then 'waiting'
      when s.provision_on = 'manual' then 'waiting'
      when s.provision_on = 'confirmed' and not p_is_confirmed then 'waiting'
      else 'due'
    end::doorkey.provisioning_state
    from doorkey.settings as s);
end
$$;
revoke all on function doorkey.first_state(boolean, boolean) from public, anon, authenticated, service_role;

-- Enters the user, or wakes a row that was waiting, and says the state. Null: not served (created before the
-- installation and not backfilled, deleted, or unknown). Repeatable; everything that may enrol one user calls this.
create or replace function doorkey.enrol(p_user_id uuid) returns doorkey.provisioning_state
language plpgsql security definer set search_path = ''
as $$
declare
  v_state doorkey.provisioning_state;
begin
  select doorkey.first_state(u.is_anonymous, u.email_confirmed_at is not null or u.phone_confirmed_at is not null)
    into v_state
    from auth.users as u
   where u.id = p_user_id and u.deleted_at is null
     and (coalesce(u.created_at, now()) >= (select s.installed_at from doorkey.settings as s)
          -- Whom a backfill entered is served like everybody else.
          or exists (select from doorkey.provisioning as p where p.user_id = u.id));
  if not found then
    return null;
  end if;
  insert into doorkey.provisioning (user_id, state) values (p_user_id, v_state)
  on conflict (user_id) do update
     set state = excluded.state, due_at = now(), wanted_at = now(), updated_at = now()
   where provisioning.state = 'waiting' and excluded.state = 'due'
  returning provisioning.state into v_state;
  if not found then
    select p.state into v_state from doorkey.provisioning as p where p.user_id = p_user_id;
  end if;
  return v_state;
end
$$;
revoke all on function doorkey.enrol(uuid) from public, anon, authenticated, service_role;

-- Something about the wish changed. Whoever is working now will find that out when they finish.
create or replace function doorkey.want_of(p_user_ids uuid[]) returns void
language sql security definer set search_path = ''
as $$
  update doorkey.provisioning
     set wanted = wanted + 1,
         state = case when state in ('ready', 'dead') then 'due' else state end,
         due_at = case when state in ('ready', 'dead') then now() else due_at end,
         failures = case when state = 'dead' then 0 else failures end,
         updated_at = now()
   where user_id = any (p_user_ids);
$$;
revoke all on function doorkey.want_of(uuid[]) from public, anon, authenticated, service_role;

create or replace function doorkey.want(p_user_id uuid) returns void
language sql security definer set search_path = ''
as $$ select doorkey.want_of(array[p_user_id]); $$;
revoke all on function doorkey.want(uuid) from public, anon, authenticated, service_role;

-- How the user's key should be, as auth.users says now. `changes_at`: when it will say otherwise by itself. Not in SQL,
-- which would be planned anew in each call; and no view: Auth must be able to change its columns.
create or replace function doorkey.desired_key(
  p_user_id uuid, out is_present boolean, out is_enabled boolean, out changes_at timestamptz
)
language plpgsql stable security definer set search_path = ''
as $$
begin
  select u.banned_until is null or u.banned_until <= now(),
         case when u.banned_until > now() then u.banned_until end
    into is_enabled, changes_at
    from auth.users as u where u.id = p_user_id and u.deleted_at is null;
  is_present := found;
  is_enabled := coalesce(is_enabled, false);
end
$$;
revoke all on function doorkey.desired_key(uuid) from public, anon, authenticated, service_role;

-- Whether the time of a key that retires is over: it finishes nothing more, and is deleted. So too if yet another key is
-- wanted, or the user may not use any.
create or replace function doorkey.is_retirement_over(p_user_id uuid, p_retires_at timestamptz) returns boolean
language sql stable security definer set search_path = ''
as $$
  select p_retires_at <= now() or not d.is_enabled
         or exists (select from doorkey.provisioning as p
                     where p.user_id = p_user_id and p.rotation_grace_seconds is not null)
    from doorkey.desired_key(p_user_id) as d;
$$;
revoke all on function doorkey.is_retirement_over(uuid, timestamptz) from public, anon, authenticated, service_role;

-- What calls through each key have cost the provider and the ledger has charged, exact: what stands on the key's own row, and
-- what its account has counted while it is the one in use.
create or replace view doorkey.key_costs with (security_invoker = true) as
  select k.key_hash, k.user_id,
         k.charged_cost_micros + coalesce(case when w.key_hash = k.key_hash then a.key_cost_micros end, 0) as cost_micros
    from public.openrouter_user_keys as k
    left join doorkey.provisioning as w on w.user_id = k.user_id
    left join public.credit_accounts as a on a.user_id = k.user_id;
revoke all on table doorkey.key_costs from public, anon, authenticated, service_role;

create or replace function doorkey.cost_of_key(p_key_hash text) returns numeric
language plpgsql stable security definer set search_path = ''
as $$ begin return (select c.cost_micros from doorkey.key_costs as c where c.key_hash = p_key_hash); end $$;
revoke all on function doorkey.cost_of_key(text) from public, anon, authenticated, service_role;

create or replace function doorkey.is_key_in_use(p_user_id uuid, p_key_hash text) returns boolean
language plpgsql stable security definer set search_path = ''
as $$ begin return exists (select from doorkey.provisioning as w where w.user_id = p_user_id and w.key_hash = p_key_hash); end $$;
revoke all on function doorkey.is_key_in_use(uuid, text) from public, anon, authenticated, service_role;

-- The key in use is about to be so no more: what its account has counted becomes the key's own, and counting begins anew.
-- The account is locked by the caller, and so nobody charges meanwhile.
create or replace function doorkey.take_key_cost(p_user_id uuid, p_key_hash text) returns void
language plpgsql security definer set search_path = ''
as $$
begin
  update public.openrouter_user_keys as k set charged_cost_micros = doorkey.cost_of_key(p_key_hash)
   where k.key_hash = p_key_hash;
  update public.credit_accounts as a set key_cost_micros = 0 where a.user_id = p_user_id and a.key_cost_micros > 0;
end
$$;
revoke all on function doorkey.take_key_cost(uuid, text) from public, anon, authenticated, service_role;

-- What a key of the user may spend in its life: what the ledger has charged to it, plus its share of what is spendable
-- now, divided by the plan's markup, rounded down. Null limit: no cap. Spendable is what is available or held, less what
-- is owed, but no more than the plan's cap leaves in this period, and to the fraction: so settling a call on the key in use leaves its limit exactly as it was.
-- A key that retires has what its own open holds keep, until its time is over. The key in use, or to be made (null hash),
-- has all else; but never what another one may have spent already, or may still spend, before the ledger knows.
-- OpenRouter's figures for this key are never an input.
create or replace function doorkey.key_limit(
  p_user_id uuid, p_key_hash text, out limit_micros bigint, out is_uncapped boolean
)
language plpgsql stable security definer set search_path = ''
as $$
declare
  v_markup numeric;
  v_share numeric;
  v_elsewhere numeric;
  v_cost numeric;
  v_key public.openrouter_user_keys;
begin
  -- strict: without an account there is no limit to speak of, and "no limit" must never come of that.
  select least(a.available_micros + a.held_micros - a.debt_micros, p.monthly_cap_micros - a.period_spent_micros)
         - a.remainder_micros, p.markup, p.is_uncapped
    into strict v_share, v_markup, is_uncapped
    from public.credit_accounts as a join public.plans as p on p.id = a.plan_id
   where a.user_id = p_user_id;
  if is_uncapped then
    return;
  end if;
  select * into v_key from public.openrouter_user_keys as k where k.key_hash = p_key_hash;
  v_cost := coalesce(doorkey.cost_of_key(p_key_hash), 0);
  if v_key.retires_at is not null then
    v_share := case when doorkey.is_retirement_over(p_user_id, v_key.retires_at) then 0
                    else doorkey.held_through(v_key.key_hash) end;
  else
    -- What it may spend up to its limit (without a cap: anything; deleted: nothing); or what it said it has spent, and
    -- what began before may still come to be billed.
    select coalesce(sum(greatest(
             case when o.status = 'deleted' then 0
                  else (coalesce(o.limit_micros::numeric, 'infinity') - c.cost_micros) * v_markup end,
             greatest(o.reported_usage_micros - c.cost_micros, 0) * v_markup
             + doorkey.held_through(o.key_hash))), 0)
      into v_elsewhere
      from public.openrouter_user_keys as o join doorkey.key_costs as c on c.key_hash = o.key_hash
     where o.user_id = p_user_id and o.key_hash is distinct from p_key_hash;
    if v_elsewhere = 'infinity' then
      limit_micros := floor(v_cost);
      return;
    end if;
    v_share := v_share - v_elsewhere;
  end if;
  -- div, on one fraction: a quotient rounded to some places first may come out a micro-dollar too high.
  limit_micros := div(greatest(v_cost * v_markup + v_share, 0), v_markup);
end
$$;
revoke all on function doorkey.key_limit(uuid, text) from public, anon, authenticated, service_role;

do $$
begin
  if to_regtype('doorkey.key_action') is null then
    create type doorkey.key_action as enum ('create', 'update', 'delete');
  end if;
  if to_regtype('doorkey.provisioning_claim') is null then
    create type doorkey.provisioning_claim as (
      user_id uuid, attempt integer, failures integer, action doorkey.key_action, key_hash text,
      limit_micros bigint, is_uncapped boolean, is_enabled boolean
    );
  end if;
end
$$;

-- The next thing to do at OpenRouter for this user, one at a time, and with which key. Null: nothing can be done.
-- is_needed false: all is as it should be, as far as we know; doing it again would only make sure.
-- One key takes another's place in this order: the new one is made, with nothing to spend that the old one has; the old
-- one is lowered to what it began; what that set free goes to the new one; when its time is over, the old one is switched
-- off, with or without a cap, has its last word on what it spent, and is deleted.
create or replace function doorkey.next_key_action(
  p_user_id uuid, out action doorkey.key_action, out key_hash text, out is_needed boolean
)
language plpgsql stable security definer set search_path = ''
as $$
declare
  v_row doorkey.provisioning;
  v_wish record;
  v_key public.openrouter_user_keys;
  v_old public.openrouter_user_keys;
  v_is_over boolean;
  v_limit record;
begin
  is_needed := true;
  select * into v_row from doorkey.provisioning as p where p.user_id = p_user_id;
  select * into v_wish from doorkey.desired_key(p_user_id);
  select * into v_old from public.openrouter_user_keys as k
   where k.user_id = p_user_id and k.status <> 'deleted' and k.retires_at is not null;
  if v_old.key_hash is not null then
    key_hash := v_old.key_hash;
    select * into v_limit from doorkey.key_limit(p_user_id, v_old.key_hash);
    v_is_over := doorkey.is_retirement_over(p_user_id, v_old.retires_at);
    -- Only ever lowered. Switched off exactly when its time is over: so whatever is deleted has said since then what it spent.
    if v_wish.is_present
       and ((not v_limit.is_uncapped and (v_old.limit_micros is null or v_old.limit_micros > v_limit.limit_micros))
            or v_old.is_doubtful or coalesce(v_old.confirm_at <= now(), false)
            or (v_old.status = 'active') = v_is_over) then
      action := 'update';
      return;
    end if;
    if v_is_over then
      action := 'delete';
      return;
    end if;
    key_hash := null;
  end if;
  if not v_wish.is_enabled and v_row.key_hash is null then
    is_needed := false; -- nobody to make a key for: gone, or banned
    return;
  end if;
  if not v_wish.is_present then
    action := 'delete';
    key_hash := v_row.key_hash;
    return;
  end if;
  if v_row.key_hash is null or (v_wish.is_enabled and v_row.rotation_grace_seconds is not null) then
    action := 'create';
    return;
  end if;
  action := 'update';
  key_hash := v_row.key_hash;
  select * into v_key from public.openrouter_user_keys as k where k.key_hash = v_row.key_hash;
  select * into v_limit from doorkey.key_limit(p_user_id, v_row.key_hash);
  is_needed := v_key.limit_micros is distinct from v_limit.limit_micros
               or v_wish.is_enabled <> (v_key.status = 'active')
               or v_key.is_doubtful or coalesce(v_key.confirm_at <= now(), false);
end
$$;
revoke all on function doorkey.next_key_action(uuid) from public, anon, authenticated, service_role;

-- Whether OpenRouter is to be asked at all now. While it refuses everybody, one caller a minute may try.
create or replace function doorkey.may_ask_openrouter() returns boolean
language plpgsql security definer set search_path = ''
as $$
begin
  if not exists (select from doorkey.settings as s where s.held_reason is not null) then
    return true;
  end if;
  -- Of those who come at once, one gets past; the others find it moved on.
  update doorkey.settings as s set held_until = now() + interval '1 minute'
   where s.held_reason is not null and s.held_until <= now();
  return found or not exists (select from doorkey.settings as s where s.held_reason is not null);
end
$$;
revoke all on function doorkey.may_ask_openrouter() from public, anon, authenticated, service_role;

-- When the next key may be asked for, if the hour is full; null: now. The last hundred of an hour are given out one by
-- one: those who ask at once can't see each other.
create or replace function doorkey.braked_until() returns timestamptz
language plpgsql security definer set search_path = ''
as $$
declare
  v_max constant integer := (select s.max_keys_per_hour from doorkey.settings as s);
  v_margin integer;
  v_asked integer;
begin
  foreach v_margin in array array[100, 0] loop
    select count(*) into v_asked from (
      select from doorkey.key_requests as r where r.requested_at > now() - interval '1 hour' limit v_max) as recent;
    if v_max is null or v_asked < v_max - v_margin then
      return null;
    end if;
    perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('doorkey.braked_until'));
  end loop;
  return (select r.requested_at + interval '1 hour' from doorkey.key_requests as r
           where r.requested_at > now() - interval '1 hour'
           order by r.requested_at desc offset v_max - 1 limit 1);
end
$$;
revoke all on function doorkey.braked_until() from public, anon, authenticated, service_role;

-- How many keys an hour a backfill may have at most: a tenth of what the brake allows is kept for signups. Null: no brake.
create or replace function doorkey.backfill_ceiling() returns integer
language sql stable security definer set search_path = ''
as $$
  select s.max_keys_per_hour - ceil(s.max_keys_per_hour / 10.0)::integer from doorkey.settings as s;
$$;
revoke all on function doorkey.backfill_ceiling() from public, anon, authenticated, service_role;

-- How many of them are left now. Null: no brake.
create or replace function doorkey.backfill_room() returns integer
language sql stable security definer set search_path = ''
as $$
  select c.ceiling - (
           select count(*) from (
             select from doorkey.key_requests as r
              where r.requested_at > now() - interval '1 hour' limit c.ceiling) as recent)::integer
    from (select doorkey.backfill_ceiling() as ceiling) as c;
$$;
revoke all on function doorkey.backfill_room() from public, anon, authenticated, service_role;

-- Takes the lease and grants the welcome credits. Returns what the work needs, or no row: nothing to claim.
-- p_chance: which of the three this is, eager, lazy or sweep; null: not said.
create or replace function doorkey.claim_provisioning(
  p_user_id uuid, p_lease_seconds integer, p_request_id text, p_chance text default null
)
returns setof doorkey.provisioning_claim
language plpgsql security definer set search_path = ''
as $$
declare
  v_row doorkey.provisioning;
  v_wish record;
  v_next record;
  v_limit record;
  v_old public.openrouter_user_keys;
  v_braked_until timestamptz;
  v_lease constant interval := make_interval(secs => p_lease_seconds);
begin
  if p_lease_seconds is null or p_lease_seconds not between 1 and 3600 then
    raise sqlstate 'PT422' using message = 'lease_out_of_range', hint = 'A lease lasts 1 to 3600 seconds.';
  end if;
  if not exists (select from doorkey.provisioning as p where p.user_id = p_user_id and p.state <> 'waiting') then
    perform doorkey.enrol(p_user_id);
  end if;
  select * into v_row from doorkey.provisioning as p
   where p.user_id = p_user_id
     and ((p.state = 'due' and p.due_at <= now())
       or (p.state = 'working' and p.lease_expires_at <= now())
       or (p.state = 'ready' and p.revisit_at <= now()))
     for update skip locked;
  if not found then
    return;
  end if;
  select * into v_wish from doorkey.desired_key(p_user_id);
  select * into v_next from doorkey.next_key_action(p_user_id);
  if v_next.action is null then
    -- Nobody to make a key for: gone, or banned until the ban ends or is lifted.
    update doorkey.provisioning as p
       set state = case when v_wish.is_present then 'due' else 'gone' end::doorkey.provisioning_state,
           due_at = coalesce(v_wish.changes_at, p.due_at), lease_expires_at = null, updated_at = now()
     where p.user_id = p_user_id;
    perform doorkey.post_out_leaving(p_user_id);
    return;
  end if;
  if v_row.state = 'working' and v_row.failures + 1 >= 16 then
    -- Whoever takes this up dies of it.
    update doorkey.provisioning as p
       set state = 'dead', lease_expires_at = null, failures = p.failures + 1, last_error = 'lease_expired',
           updated_at = now()
     where p.user_id = p_user_id;
    perform doorkey.show_on_profile(p_user_id, 'failed', null, null);
    return;
  end if;
  -- Who replaces a key is not braked: that has a bound of its own.
  if v_next.action = 'create' and v_row.key_hash is null then
    v_braked_until := doorkey.braked_until();
    if v_braked_until is not null then
      update doorkey.provisioning as p
         set state = 'due', due_at = v_braked_until, lease_expires_at = null, updated_at = now()
       where p.user_id = p_user_id;
      return;
    end if;
  end if;
  if not doorkey.may_ask_openrouter() then
    return;
  end if;
  if v_wish.is_present then
    perform doorkey.welcome(p_user_id, 'provisioning', p_request_id);
  end if;
  if v_row.state = 'working' then
    -- Whoever is taken over now may be alive, for a lease more at most.
    update public.openrouter_user_keys as k set confirm_at = now() + 2 * v_lease
     where k.user_id = p_user_id and k.status <> 'deleted';
  end if;
  update doorkey.provisioning as p
     set state = 'working',
         attempt = p.attempt + 1,
         -- A worker that died said nothing, and may have made a key that nobody holds.
         failures = p.failures + case when v_row.state = 'working' then 1 else 0 end,
         claimed = p.wanted,
         lease_expires_at = now() + v_lease,
         provisioned_by = case when p.ready_at is null then coalesce(p_chance, p.provisioned_by)
                               else p.provisioned_by end,
         updated_at = now()
   where p.user_id = p_user_id
  returning * into v_row;
  if v_next.action = 'create' and v_row.key_hash is null then
    insert into doorkey.key_requests (user_id, attempt) values (p_user_id, v_row.attempt)
    on conflict (user_id, attempt) do update set requested_at = excluded.requested_at;
  end if;
  select * into v_limit from doorkey.key_limit(p_user_id, v_next.key_hash);
  select * into v_old from public.openrouter_user_keys as k
   where k.key_hash = v_next.key_hash and k.retires_at is not null;
  if found then
    -- What retires is only ever lowered.
    v_limit.limit_micros := least(v_limit.limit_micros, v_old.limit_micros);
    v_limit.is_uncapped := v_limit.limit_micros is null;
    v_wish.is_enabled := not doorkey.is_retirement_over(p_user_id, v_old.retires_at);
  end if;
  return query
    select v_row.user_id, v_row.attempt, v_row.failures, v_next.action, v_next.key_hash,
           v_limit.limit_micros, v_limit.is_uncapped, v_wish.is_enabled;
end
$$;
revoke all on function doorkey.claim_provisioning(uuid, integer, text, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.claim_provisioning(uuid, integer, text, text) to service_role;

create or replace function public.claim_provisioning(
  user_id uuid, lease_seconds integer, request_id text, chance text default null
)
returns setof doorkey.provisioning_claim
language sql set search_path = ''
as $$ select * from doorkey.claim_provisioning($1, $2, $3, $4); $$;
revoke all on function public.claim_provisioning(uuid, integer, text, text)
  from public, anon, authenticated, service_role;
grant execute on function public.claim_provisioning(uuid, integer, text, text) to service_role;

-- The row, locked, if this attempt still holds it. An expired lease that nobody took over is still held: nobody
-- else did anything.
create or replace function doorkey.hold_lease(p_user_id uuid, p_attempt integer) returns doorkey.provisioning
language plpgsql security definer set search_path = ''
as $$
declare
  v_row doorkey.provisioning;
begin
  select * into v_row from doorkey.provisioning as p where p.user_id = p_user_id for update;
  if not found or v_row.state <> 'working' or v_row.attempt is distinct from p_attempt then
    raise sqlstate 'PT409' using message = 'lease_lost', hint = 'Another attempt took over. Undo what this one made.';
  end if;
  return v_row;
end
$$;
revoke all on function doorkey.hold_lease(uuid, integer) from public, anon, authenticated, service_role;

-- OpenRouter took something: whatever it held against us is over. (No write where nothing is held.)
create or replace function doorkey.lift_hold() returns void
language sql security definer set search_path = ''
as $$
  update doorkey.settings set held_reason = null, held_until = null, outage_failures = 0
   where held_reason is not null or outage_failures > 0;
$$;
revoke all on function doorkey.lift_hold() from public, anon, authenticated, service_role;

-- Ends an attempt well: ready; gone; or due again, because the wish changed meanwhile or more is to be done. Says which.
create or replace function doorkey.settle_attempt(p_user_id uuid) returns doorkey.provisioning_state
language sql security definer set search_path = ''
as $$
  update doorkey.provisioning as p
     set state = case when p.wanted <> p.claimed or n.is_needed then 'due'
                      when n.action is not null then 'ready'
                      when w.is_present then 'due'
                      else 'gone' end::doorkey.provisioning_state,
         lease_expires_at = null,
         failures = 0,
         last_error = null,
         due_at = now(),
         revisit_at = least(w.changes_at, (
           select min(least(k.retires_at, k.confirm_at)) from public.openrouter_user_keys as k
            where k.user_id = p_user_id and k.status <> 'deleted')),
         ready_at = coalesce(p.ready_at, case when p.key_hash is not null then now() end),
         updated_at = now()
    from doorkey.desired_key(p_user_id) as w, doorkey.next_key_action(p_user_id) as n
   where p.user_id = p_user_id
  returning p.state;
$$;
revoke all on function doorkey.settle_attempt(uuid) from public, anon, authenticated, service_role;

-- Registers the key that this attempt made: key, sealed secret, state and profile, all or nothing. Asked again
-- with the same key it answers again. Refusals: lease_lost, user_gone; only then is the key to be deleted.
create or replace function doorkey.finish_provisioning(
  p_user_id uuid, p_attempt integer, p_key_hash text, p_key_name text, p_key_label text,
  p_limit_micros bigint, p_sealed_secret text, p_request_id text
) returns text
language plpgsql security definer set search_path = ''
as $$
declare
  v_row doorkey.provisioning;
  v_state doorkey.provisioning_state;
  v_is_present boolean;
begin
  -- Locked so that a deletion waits until this key is known, or this attempt sees that the user is gone; and before
  -- the row, because that is the order in which Auth and our triggers come by.
  perform from auth.users as u where u.id = p_user_id and u.deleted_at is null for key share;
  v_is_present := found;
  -- Asked again, because the first answer was lost. The first call may still be running: hence the lock, or this one
  -- would wait for it below, find the attempt over and cost the user the key that was just registered.
  perform from doorkey.provisioning as p where p.user_id = p_user_id for update;
  select p.state into v_state from doorkey.provisioning as p
    join public.openrouter_user_keys as k on k.key_hash = p.key_hash
   where p.user_id = p_user_id and k.key_hash = p_key_hash and k.attempt = p_attempt and k.status <> 'deleted';
  if found then
    return v_state;
  end if;
  v_row := doorkey.hold_lease(p_user_id, p_attempt);
  if v_row.key_hash is not null and v_row.rotation_grace_seconds is null then
    raise exception 'provisioning of % already has a key', p_user_id;
  end if;
  if not v_is_present then
    raise sqlstate 'PT410' using message = 'user_gone', hint = 'Undo what this attempt made.';
  end if;
  if v_row.key_hash is not null then
    -- A hold is bound to the key in use: either it is there by now, or it finds the new key.
    perform doorkey.lock_account(p_user_id);
    perform doorkey.take_key_cost(p_user_id, v_row.key_hash);
  end if;
  update public.openrouter_user_keys as k
     set retires_at = now() + make_interval(secs => v_row.rotation_grace_seconds), updated_at = now(),
         -- Off since before it was replaced: what it said then is not its last word.
         is_doubtful = k.is_doubtful or k.status = 'disabled'
   where k.key_hash = v_row.key_hash;
  insert into public.openrouter_user_keys (key_hash, user_id, key_name, key_label, limit_micros, attempt)
  values (p_key_hash, p_user_id, p_key_name, p_key_label, p_limit_micros, p_attempt);
  insert into doorkey.sealed_secrets (key_hash, sealed_secret) values (p_key_hash, p_sealed_secret);
  update doorkey.provisioning as p set key_hash = p_key_hash, rotation_grace_seconds = null where p.user_id = p_user_id;
  v_state := doorkey.settle_attempt(p_user_id);
  perform doorkey.post_out_leaving(p_user_id);
  perform doorkey.lift_hold();
  perform doorkey.show_on_profile(p_user_id, 'active', p_key_name, p_limit_micros);
  perform doorkey.write_audit('provisioning', 'key.created', p_user_id, p_request_id,
    jsonb_build_object('key_hash', p_key_hash, 'attempt', p_attempt, 'limit_micros', p_limit_micros,
                       'replaces', v_row.key_hash));
  return v_state;
end
$$;
revoke all on function doorkey.finish_provisioning(uuid, integer, text, text, text, bigint, text, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.finish_provisioning(uuid, integer, text, text, text, bigint, text, text)
  to service_role;

create or replace function public.finish_provisioning(
  user_id uuid, attempt integer, key_hash text, key_name text, key_label text,
  limit_micros bigint, sealed_secret text, request_id text
) returns text
language sql set search_path = ''
as $$ select doorkey.finish_provisioning($1, $2, $3, $4, $5, $6, $7, $8); $$;
revoke all on function public.finish_provisioning(uuid, integer, text, text, text, bigint, text, text)
  from public, anon, authenticated, service_role;
grant execute on function public.finish_provisioning(uuid, integer, text, text, text, bigint, text, text)
  to service_role;

-- Records that OpenRouter took the new limit, and whether the key may be used; and what it said the key had spent.
-- Repeatable likewise.
create or replace function doorkey.finish_key_update(
  p_user_id uuid, p_attempt integer, p_key_hash text, p_limit_micros bigint, p_is_enabled boolean,
  p_usage_micros numeric, p_request_id text
) returns text
language plpgsql security definer set search_path = ''
as $$
declare
  v_row doorkey.provisioning;
  v_key public.openrouter_user_keys;
  v_state doorkey.provisioning_state;
begin
  -- Asked again; locked for the same reason.
  select * into v_row from doorkey.provisioning as p where p.user_id = p_user_id for update;
  select * into v_key from public.openrouter_user_keys as k
   where k.key_hash = p_key_hash and k.user_id = p_user_id and k.status <> 'deleted';
  if v_row.attempt = p_attempt and v_row.state in ('ready', 'due') and v_key.key_hash is not null then
    return v_row.state;
  end if;
  perform doorkey.hold_lease(p_user_id, p_attempt);
  if v_key.key_hash is null then
    raise exception 'provisioning of % has another key', p_user_id;
  end if;
  -- What is leaving may leave now. Before the keys, in the order of locks; nothing begins to leave while the row is locked.
  perform from public.credit_accounts as a where a.user_id = p_user_id and a.leaving_micros > 0 for no key update;
  perform doorkey.note_usage(p_key_hash, p_usage_micros);
  update public.openrouter_user_keys as k
     set limit_micros = p_limit_micros,
         status = case when p_is_enabled then 'active' else 'disabled' end,
         reported_usage_micros = ceil(p_usage_micros),
         updated_at = now()
   where k.key_hash = p_key_hash;
  -- The key in use comes last: with it, all are confirmed.
  update public.openrouter_user_keys as k
     set confirm_at = case when k.confirm_at > now() then k.confirm_at end, is_doubtful = false
   where k.user_id = p_user_id and (k.is_doubtful or k.confirm_at <= now()) and p_key_hash in (k.key_hash, v_row.key_hash);
  v_state := doorkey.settle_attempt(p_user_id);
  perform doorkey.post_out_leaving(p_user_id);
  perform doorkey.lift_hold();
  if v_key.key_hash = v_row.key_hash then
    perform doorkey.show_on_profile(
      p_user_id, case when p_is_enabled then 'active' else 'disabled' end, v_key.key_name, p_limit_micros);
  end if;
  perform doorkey.write_audit('provisioning', 'key.updated', p_user_id, p_request_id,
    jsonb_build_object('key_hash', p_key_hash, 'attempt', p_attempt, 'limit_micros', p_limit_micros,
                       'is_enabled', p_is_enabled));
  return v_state;
end
$$;
revoke all on function doorkey.finish_key_update(uuid, integer, text, bigint, boolean, numeric, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.finish_key_update(uuid, integer, text, bigint, boolean, numeric, text) to service_role;

create or replace function public.finish_key_update(
  user_id uuid, attempt integer, key_hash text, limit_micros bigint, is_enabled boolean, usage_micros numeric,
  request_id text
) returns text
language sql set search_path = ''
as $$ select doorkey.finish_key_update($1, $2, $3, $4, $5, $6, $7); $$;
revoke all on function public.finish_key_update(uuid, integer, text, bigint, boolean, numeric, text)
  from public, anon, authenticated, service_role;
grant execute on function public.finish_key_update(uuid, integer, text, bigint, boolean, numeric, text) to service_role;

-- Something was done at OpenRouter by an attempt that was over: whoever is right, the keys are to be set right again.
create or replace function doorkey.recheck_key(p_user_id uuid, p_request_id text) returns text
language plpgsql security definer set search_path = ''
as $$
begin
  -- Before the keys, in the order of locks: whoever finishes takes them so.
  perform from doorkey.provisioning as p where p.user_id = p_user_id for update;
  if not found then
    return null;
  end if;
  -- Whichever key it was.
  update public.openrouter_user_keys as k set is_doubtful = true where k.user_id = p_user_id and k.status <> 'deleted';
  perform doorkey.want(p_user_id);
  perform doorkey.write_audit('provisioning', 'key.rechecked', p_user_id, p_request_id, null);
  return (select p.state::text from doorkey.provisioning as p where p.user_id = p_user_id);
end
$$;
revoke all on function doorkey.recheck_key(uuid, text) from public, anon, authenticated, service_role;
grant execute on function doorkey.recheck_key(uuid, text) to service_role;

create or replace function public.recheck_key(user_id uuid, request_id text) returns text
language sql set search_path = ''
as $$ select doorkey.recheck_key($1, $2); $$;
revoke all on function public.recheck_key(uuid, text) from public, anon, authenticated, service_role;
grant execute on function public.recheck_key(uuid, text) to service_role;

-- Records that a key is no more at OpenRouter: deleted because its time is over or the user is gone, or found missing.
-- Whoever is still here and has none is due again, for a new one. Repeatable likewise.
create or replace function doorkey.finish_key_deletion(
  p_user_id uuid, p_attempt integer, p_key_hash text, p_request_id text
) returns text
language plpgsql security definer set search_path = ''
as $$
declare
  v_row doorkey.provisioning;
  v_key public.openrouter_user_keys;
  v_state doorkey.provisioning_state;
begin
  select * into v_row from doorkey.provisioning as p where p.user_id = p_user_id for update;
  select * into v_key from public.openrouter_user_keys as k where k.key_hash = p_key_hash and k.user_id = p_user_id;
  if v_row.attempt = p_attempt and v_row.state <> 'working' and v_key.status = 'deleted' then
    return v_row.state;
  end if;
  perform doorkey.hold_lease(p_user_id, p_attempt);
  if v_key.key_hash is null or v_key.status = 'deleted' then
    raise exception 'provisioning of % has another key', p_user_id;
  end if;
  -- As there; and nobody charges a key while it ceases to be the one in use.
  perform from public.credit_accounts as a
    where a.user_id = p_user_id and (a.leaving_micros > 0 or v_row.key_hash = p_key_hash) for no key update;
  if v_row.key_hash = p_key_hash then
    perform doorkey.take_key_cost(p_user_id, p_key_hash);
  end if;
  update doorkey.provisioning as p set key_hash = null, rotation_grace_seconds = null
   where p.user_id = p_user_id and p.key_hash = p_key_hash;
  -- Nobody will ever need it again.
  delete from doorkey.sealed_secrets as s where s.key_hash = p_key_hash;
  -- No list has it any more: what is still open about its usage is looked after from here on, and OpenRouter is asked for
  -- its last word when this day is over, and what is shown late there has come.
  insert into doorkey.key_usage as u (key_hash, is_open, last_word_due_at)
  values (p_key_hash, true, ((now() at time zone 'utc')::date + interval '30 hours') at time zone 'utc')
  on conflict (key_hash) do update set is_open = true, last_word_due_at = excluded.last_word_due_at;
  update public.openrouter_user_keys as k set status = 'deleted', deleted_at = now(), updated_at = now()
   where k.key_hash = p_key_hash;
  v_state := doorkey.settle_attempt(p_user_id);
  perform doorkey.post_out_leaving(p_user_id);
  perform doorkey.lift_hold();
  if v_key.key_hash = v_row.key_hash then
    perform doorkey.show_on_profile(
      p_user_id, case when v_state = 'gone' then 'revoked' else 'pending' end, null, null);
  end if;
  perform doorkey.write_audit('provisioning', 'key.deleted', p_user_id, p_request_id,
    jsonb_build_object('key_hash', p_key_hash, 'attempt', p_attempt));
  return v_state;
end
$$;
revoke all on function doorkey.finish_key_deletion(uuid, integer, text, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.finish_key_deletion(uuid, integer, text, text) to service_role;

create or replace function public.finish_key_deletion(
  user_id uuid, attempt integer, key_hash text, request_id text
) returns text
language sql set search_path = ''
as $$ select doorkey.finish_key_deletion($1, $2, $3, $4); $$;
revoke all on function public.finish_key_deletion(uuid, integer, text, text)
  from public, anon, authenticated, service_role;
grant execute on function public.finish_key_deletion(uuid, integer, text, text) to service_role;

-- Ends an attempt that OpenRouter would have refused to anybody: no attempt is burnt, and nobody is claimed for a minute.
create or replace function doorkey.hold_provisioning(
  p_user_id uuid, p_attempt integer, p_error text, p_request_id text
) returns text
language plpgsql security definer set search_path = ''
as $$
begin
  perform doorkey.hold_lease(p_user_id, p_attempt);
  update doorkey.provisioning as p
     set state = 'due', lease_expires_at = null, last_error = p_error, due_at = now(), updated_at = now()
   where p.user_id = p_user_id;
  if not exists (select from doorkey.settings as s where s.held_reason = p_error) then
    perform doorkey.write_audit('provisioning', 'provisioning.held', p_user_id, p_request_id,
      jsonb_build_object('error', p_error));
  end if;
  update doorkey.settings set held_reason = p_error, held_until = now() + interval '1 minute';
  return 'due';
end
$$;
revoke all on function doorkey.hold_provisioning(uuid, integer, text, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.hold_provisioning(uuid, integer, text, text) to service_role;

create or replace function public.hold_provisioning(user_id uuid, attempt integer, error text, request_id text)
returns text
language sql set search_path = ''
as $$ select doorkey.hold_provisioning($1, $2, $3, $4); $$;
revoke all on function public.hold_provisioning(uuid, integer, text, text)
  from public, anon, authenticated, service_role;
grant execute on function public.hold_provisioning(uuid, integer, text, text) to service_role;

-- Ends an attempt that failed: due again after the delay that the caller worked out, or dead. Says which.
-- p_is_outage: OpenRouter may be away. That several in a row found it so, without one success between, is not about
-- any of them: then the queue is held, and no attempts are burnt until OpenRouter is back.
create or replace function doorkey.defer_provisioning(
  p_user_id uuid, p_attempt integer, p_error text, p_delay_seconds integer, p_gives_up boolean, p_is_outage boolean,
  p_request_id text
) returns text
language plpgsql security definer set search_path = ''
as $$
declare
  v_max_outage_failures constant integer := 10;
  v_outage_failures integer;
  v_state doorkey.provisioning_state;
begin
  if p_delay_seconds is null or p_delay_seconds not between 0 and 86400 then
    raise sqlstate 'PT422' using message = 'delay_out_of_range', hint = 'A delay lasts 0 to 86400 seconds.';
  end if;
  perform doorkey.hold_lease(p_user_id, p_attempt);
  if p_is_outage then
    update doorkey.settings as s set outage_failures = s.outage_failures + 1
    returning s.outage_failures into v_outage_failures;
    if v_outage_failures >= v_max_outage_failures then
      return doorkey.hold_provisioning(p_user_id, p_attempt, p_error, p_request_id);
    end if;
  end if;
  update doorkey.provisioning as p
     -- A wish that came meanwhile has not been tried at all.
     set state = case when p_gives_up and p.wanted = p.claimed then 'dead' else 'due' end::doorkey.provisioning_state,
         lease_expires_at = null,
         failures = case
           when p.wanted <> p.claimed then 0
           -- Asked to slow down: nothing was tried.
           when p_error = 'openrouter_limited' then p.failures
           else p.failures + 1 end,
         last_error = p_error,
         due_at = now() + make_interval(secs => p_delay_seconds),
         updated_at = now()
   where p.user_id = p_user_id
  returning p.state into v_state;
  if v_state = 'dead' then
    perform doorkey.show_on_profile(p_user_id, 'failed', null, null);
  end if;
  perform doorkey.write_audit('provisioning', 'attempt.failed', p_user_id, p_request_id,
    jsonb_build_object('attempt', p_attempt, 'error', p_error, 'state', v_state));
  return v_state;
end
$$;
revoke all on function doorkey.defer_provisioning(uuid, integer, text, integer, boolean, boolean, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.defer_provisioning(uuid, integer, text, integer, boolean, boolean, text) to service_role;

create or replace function public.defer_provisioning(
  user_id uuid, attempt integer, error text, delay_seconds integer, gives_up boolean, is_outage boolean,
  request_id text
) returns text
language sql set search_path = ''
as $$ select doorkey.defer_provisioning($1, $2, $3, $4, $5, $6, $7); $$;
revoke all on function public.defer_provisioning(uuid, integer, text, integer, boolean, boolean, text)
  from public, anon, authenticated, service_role;
grant execute on function public.defer_provisioning(uuid, integer, text, integer, boolean, boolean, text) to service_role;

-- Gives rows that were given up, or wait for their next try, another chance now: one user's, those with one error, or
-- all. Says how many; a bounded number a call.
create or replace function doorkey.redrive_provisioning(
  p_user_id uuid, p_error text, p_rows integer, p_request_id text
) returns integer
language plpgsql security definer set search_path = ''
as $$
declare
  v_count integer;
begin
  if p_rows is null or p_rows not between 1 and 1000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Redrive 1 to 1000 rows at a time.';
  end if;
  with chosen as (
    select p.user_id from doorkey.provisioning as p
     where (p.state = 'dead' or (p.state = 'due' and p.due_at > now() and p.last_error is not null))
       and (p_user_id is null or p.user_id = p_user_id)
       and (p_error is null or p.last_error = p_error)
     order by p.updated_at limit p_rows
     for update skip locked
  )
  update doorkey.provisioning as p
     set state = 'due', due_at = now(), failures = 0, last_error = null, updated_at = now()
    from chosen where p.user_id = chosen.user_id;
  get diagnostics v_count = row_count;
  perform doorkey.write_audit('operator', 'provisioning.redriven', p_user_id, p_request_id,
    jsonb_build_object('error', p_error, 'rows', v_count));
  return v_count;
end
$$;
revoke all on function doorkey.redrive_provisioning(uuid, text, integer, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.redrive_provisioning(uuid, text, integer, text) to service_role;

create or replace function public.redrive_provisioning(
  user_id uuid, error text, redriven_rows integer, request_id text
) returns integer
language sql set search_path = ''
as $$ select doorkey.redrive_provisioning($1, $2, $3, $4); $$;
revoke all on function public.redrive_provisioning(uuid, text, integer, text)
  from public, anon, authenticated, service_role;
grant execute on function public.redrive_provisioning(uuid, text, integer, text) to service_role;

-- Credits for a user who has an account already, and the key's limit follows. (A door for operators comes with
-- the admin API.) The wish is changed first: provisioning row before account, as everywhere.
create or replace function doorkey.grant_credits(
  p_user_id uuid, p_type doorkey.transaction_type, p_amount_micros bigint, p_idempotency_key text, p_reason text,
  p_actor text, p_expires_at timestamptz, p_request_id text
) returns bigint
language plpgsql security definer set search_path = ''
as $$
begin
  perform doorkey.want(p_user_id);
  return doorkey.post_grant(p_user_id, p_type, p_amount_micros, p_idempotency_key, p_reason, p_actor,
                            p_expires_at, 100::smallint, p_request_id);
end
$$;
revoke all on function doorkey.grant_credits(uuid, doorkey.transaction_type, bigint, text, text, text, timestamptz, text)
  from public, anon, authenticated, service_role;
