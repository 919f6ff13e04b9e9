-- Profiles: a copy for people. No code of ours decides by it.
--
-- Many projects have a `public.profiles` already. Then we add our own three nullable columns and leave its grants,
-- policies, triggers and rows alone; where even that is impossible (a view, another owner), we note it and go on.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

do $$
declare
  v_column record;
begin
  if to_regclass('public.profiles') is null then
    create table public.profiles (
      id uuid primary key references auth.users (id) on delete cascade,
      email text,
      full_name text,
      openrouter_key_name text,
      openrouter_key_limit numeric(20, 6),
      -- What a person's own row begins with: not theirs to say.
      openrouter_provisioning_status text default 'pending',
      created_at timestamptz not null default now(),
      updated_at timestamptz not null default now()
    );
    comment on table public.profiles is 'One row per user, kept by doorkey for people to read.';
    alter table public.profiles enable row level security;
    revoke all on table public.profiles from public, anon, authenticated, service_role;
    grant select on table public.profiles to authenticated, service_role;
    comment on column public.profiles.openrouter_key_name is 'doorkey: name of the key at OpenRouter';
    comment on column public.profiles.openrouter_key_limit is 'doorkey: lifetime spend limit of the key, in dollars';
    comment on column public.profiles.openrouter_provisioning_status is
      'doorkey: pending, active, failed, disabled or revoked';
    create policy "Users may read their own profile" on public.profiles
      for select to authenticated using ((select auth.uid()) = id);
    update doorkey.settings set owns_profiles = true;
  else
    begin
      -- What we add says so: that is how it is known again when doorkey is uninstalled.
      for v_column in select * from (values
        ('openrouter_key_name', 'text', 'doorkey: name of the key at OpenRouter'),
        ('openrouter_key_limit', 'numeric(20, 6)', 'doorkey: lifetime spend limit of the key, in dollars'),
        ('openrouter_provisioning_status', 'text', 'doorkey: pending, active, failed, disabled or revoked')
      ) as c (name, type, comment) loop
        if not exists (select from pg_catalog.pg_attribute as a
                        where a.attrelid = 'public.profiles'::regclass and a.attname = v_column.name) then
          execute format('alter table public.profiles add column %I %s', v_column.name, v_column.type);
          execute format('comment on column public.profiles.%I is %L', v_column.name, v_column.comment);
        end if;
      end loop;
    exception when insufficient_privilege or wrong_object_type then
      perform doorkey.note_trouble('profiles.not_extended', null, sqlstate, 'public.profiles');
    end;
  end if;
end
$$;

-- Raises what would be raised at the end of the transaction if that were now. Constraints that the host has deferred
-- would otherwise take a whole signup with them. The check is undone, and so comes again in its own time.
create or replace function doorkey.check_deferred_constraints() returns void
language plpgsql set search_path = ''
as $$
begin
  -- Only where there is something to try: it costs the more, the more rows a transaction has.
  if not exists (select from pg_catalog.pg_trigger as t
                  where t.tgrelid = to_regclass('public.profiles') and t.tgdeferrable) then
    return;
  end if;
  -- A handler of its own, for those who need it.
  begin
    set constraints all immediate;
    raise exception using errcode = 'ZK001';
  exception when sqlstate 'ZK001' then
    null;
  end;
end
$$;
revoke all on function doorkey.check_deferred_constraints() from public, anon, authenticated, service_role;

-- Whether the `id` of a profiles table that was there before is the user's, and not a number of the table's own.
create or replace function doorkey.profile_id_is_user_id() returns boolean
language sql stable set search_path = ''
as $$
  select coalesce(
    -- A reference of `id` to auth.users settles it; else a reference of another column does.
    bool_or(a.attname = 'id') filter (where c.oid is not null),
    bool_or(a.attname = 'id' and not a.atthasdef and a.attidentity = ''))
    from pg_catalog.pg_attribute as a
    left join pg_catalog.pg_constraint as c
      on c.conrelid = a.attrelid and c.contype = 'f' and c.confrelid = 'auth.users'::regclass and a.attnum = any (c.conkey)
   where a.attrelid = to_regclass('public.profiles') and a.attnum > 0 and not a.attisdropped;
$$;
revoke all on function doorkey.profile_id_is_user_id() from public, anon, authenticated, service_role;

-- Makes the missing row. Raises whatever the table of the host raises: callers decide what that means.
create or replace function doorkey.fill_profile(p_user_id uuid) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  v_settings doorkey.settings;
begin
  select * into v_settings from doorkey.settings;
  if v_settings.owns_profiles then
    insert into public.profiles (id, email, full_name, openrouter_provisioning_status)
    select u.id, u.email,
           -- Users write their own metadata: any JSON, any length.
           left(coalesce(u.raw_user_meta_data ->> 'full_name', u.raw_user_meta_data ->> 'name'), 500),
           'pending'
      from auth.users as u where u.id = p_user_id
    on conflict (id) do nothing;
  else
    update public.profiles
       set openrouter_provisioning_status = coalesce(openrouter_provisioning_status, 'pending')
     where id = p_user_id;
    -- Only when it is missing: a required column of the host raises even where the row is there.
    if not found and v_settings.fills_host_profiles then
      if not doorkey.profile_id_is_user_id() then
        raise exception 'the id of public.profiles is not the user''s' using column = 'id';
      end if;
      insert into public.profiles (id, openrouter_provisioning_status)
      values (p_user_id, 'pending') on conflict do nothing;
    end if;
  end if;
  perform doorkey.check_deferred_constraints();
end
$$;
revoke all on function doorkey.fill_profile(uuid) from public, anon, authenticated, service_role;

-- Copies the outcome to the profile. Never raises: a host's trigger, column type or lock is no reason to lose a key.
create or replace function doorkey.show_on_profile(
  p_user_id uuid, p_status text, p_key_name text, p_limit_micros bigint
) returns void
language plpgsql security definer set search_path = '' set lock_timeout = '2s'
as $$
declare
  v_object text;
begin
  update public.profiles
     set openrouter_provisioning_status = p_status,
         openrouter_key_name = coalesce(p_key_name, openrouter_key_name),
         openrouter_key_limit = case when p_key_name is null then openrouter_key_limit
                                     else p_limit_micros / 1000000.0 end
   where id = p_user_id;
  perform doorkey.check_deferred_constraints();
exception when others or assert_failure or query_canceled then
  get stacked diagnostics v_object = column_name;
  perform doorkey.note_trouble('profile.not_updated', p_user_id, sqlstate, v_object);
end
$$;
revoke all on function doorkey.show_on_profile(uuid, text, text, bigint)
  from public, anon, authenticated, service_role;
