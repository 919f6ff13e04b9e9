-- What happens to users after their signup: confirmed, banned, unbanned, deleted, another address.
--
-- The triggers only say "look again": how the key should be is read from auth.users when somebody looks. They can't
-- fail what the host does, for the same reasons as at a signup. And they name no column in their definitions: Postgres
-- would refuse Auth to alter it.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- The user changed: whoever has a row is looked at again, at once. Says the state; null: not served.
create or replace function doorkey.look_again(p_user_id uuid, p_is_gone boolean) returns text
language sql security definer set search_path = ''
as $$
  update doorkey.provisioning as p
     set wanted = p.wanted + 1,
         state = case when p.state in ('ready', 'dead') or (p.state = 'waiting' and p_is_gone) then 'due'
                      else p.state end,
         due_at = case when p.state = 'working' then p.due_at else now() end,
         failures = 0,
         updated_at = now()
   where p.user_id = p_user_id
  returning p.state::text;
$$;
revoke all on function doorkey.look_again(uuid, boolean) from public, anon, authenticated, service_role;

create or replace function doorkey.on_user_updated() returns trigger
language plpgsql security definer set search_path = '' set lock_timeout = '500ms'
as $$
declare
  -- text, not the enum: a type that is missing would be found out before any handler is there.
  v_state text;
begin
  begin
    if old.banned_until is distinct from new.banned_until or old.deleted_at is distinct from new.deleted_at
       -- Their welcome may be held until there is an address to look at.
       or (old.is_anonymous and not new.is_anonymous) then
      v_state := doorkey.look_again(new.id, new.deleted_at is not null);
    end if;
  exception when others or assert_failure or query_canceled then
    perform doorkey.note_trouble('user.not_noticed', new.id, sqlstate, null);
  end;
  begin
    if (old.email_confirmed_at is null and new.email_confirmed_at is not null)
       or (old.phone_confirmed_at is null and new.phone_confirmed_at is not null)
       -- Auth confirms the address of an anonymous user first, and then says that they are one no more.
       or (old.is_anonymous and not new.is_anonymous) then
      v_state := doorkey.enrol(new.id);
    end if;
  exception when others or assert_failure or query_canceled then
    perform doorkey.note_trouble('user.not_enrolled', new.id, sqlstate, null);
  end;
  begin
    -- Only on our own table: a host's `email` column is the host's.
    if old.email is distinct from new.email then
      if (select s.owns_profiles from doorkey.settings as s) then
        update public.profiles as p set email = new.email, updated_at = now() where p.id = new.id;
      end if;
    end if;
  exception when others or assert_failure or query_canceled then
    perform doorkey.note_trouble('profile.not_updated', new.id, sqlstate, 'email');
  end;
  begin
    if v_state = 'due' then
      perform doorkey.ring(new.id, tg_op);
    end if;
  exception when others or assert_failure or query_canceled then
    perform doorkey.note_trouble('hint.not_sent', new.id, sqlstate, null);
  end;
  return null;
exception when others or assert_failure or query_canceled then
  raise warning 'doorkey: a change of user % went unnoticed (%)', new.id, sqlstate;
  return null;
end
$$;
revoke all on function doorkey.on_user_updated() from public, anon, authenticated, service_role;

create or replace function doorkey.on_user_deleted() returns trigger
language plpgsql security definer set search_path = '' set lock_timeout = '500ms'
as $$
declare
  v_state text;
begin
  begin
    v_state := doorkey.look_again(old.id, true);
  exception when others or assert_failure or query_canceled then
    perform doorkey.note_trouble('user.not_noticed', old.id, sqlstate, null);
  end;
  begin
    if v_state = 'due' then
      perform doorkey.ring(old.id, tg_op);
    end if;
  exception when others or assert_failure or query_canceled then
    perform doorkey.note_trouble('hint.not_sent', old.id, sqlstate, null);
  end;
  return null;
exception when others or assert_failure or query_canceled then
  raise warning 'doorkey: the deletion of user % went unnoticed (%)', old.id, sqlstate;
  return null;
end
$$;
revoke all on function doorkey.on_user_deleted() from public, anon, authenticated, service_role;

create or replace trigger zz_doorkey_user_updated after update on auth.users
  for each row execute function doorkey.on_user_updated();
create or replace trigger zz_doorkey_user_deleted after delete on auth.users
  for each row execute function doorkey.on_user_deleted();
