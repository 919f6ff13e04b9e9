-- What happens to users after their signup: banned, unbanned, deleted, another address.
--
-- The triggers only say "look again": how the key should be is read from auth.users when somebody looks. They can't
-- fail what the host does, for the same reasons as at a signup.

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

create or replace function doorkey.on_user_changed() returns trigger
language plpgsql security definer set search_path = '' set lock_timeout = '1s'
as $$
declare
  v_user_id constant uuid := case when tg_op = 'DELETE' then old.id else new.id end;
  v_is_gone constant boolean := tg_op = 'DELETE' or new.deleted_at is not null;
  v_state text;
begin
  begin
    v_state := doorkey.look_again(v_user_id, v_is_gone);
  exception when others then
    perform doorkey.note_trouble('user.not_noticed', v_user_id, sqlstate, null);
  end;
  begin
    if v_state = 'due' then
      perform doorkey.ring(v_user_id, tg_op);
    end if;
  exception when others then
    perform doorkey.note_trouble('hint.not_sent', v_user_id, sqlstate, null);
  end;
  return null;
exception when others then
  raise warning 'doorkey: a change of user % went unnoticed (%)', v_user_id, sqlstate;
  return null;
end
$$;
revoke all on function doorkey.on_user_changed() from public, anon, authenticated, service_role;

create or replace function doorkey.on_user_readdressed() returns trigger
language plpgsql security definer set search_path = '' set lock_timeout = '1s'
as $$
begin
  -- Only on our own table: a host's `email` column is the host's.
  if (select s.owns_profiles from doorkey.settings as s) then
    update public.profiles as p set email = new.email, updated_at = now() where p.id = new.id;
  end if;
  return null;
exception when others then
  perform doorkey.note_trouble('profile.not_updated', new.id, sqlstate, 'email');
  return null;
end
$$;
revoke all on function doorkey.on_user_readdressed() from public, anon, authenticated, service_role;

create or replace trigger zz_doorkey_user_changed after update on auth.users
  for each row
  when (old.banned_until is distinct from new.banned_until or old.deleted_at is distinct from new.deleted_at)
  execute function doorkey.on_user_changed();
create or replace trigger zz_doorkey_user_deleted after delete on auth.users
  for each row execute function doorkey.on_user_changed();
create or replace trigger zz_doorkey_user_readdressed after update on auth.users
  for each row when (old.email is distinct from new.email)
  execute function doorkey.on_user_readdressed();
