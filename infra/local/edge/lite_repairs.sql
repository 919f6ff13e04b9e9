-- Makes what Lite writes into auth.* look as Auth writes it. Only for the local stack; repeatable.
-- Apply as a superuser after Lite has made its tables.
--
-- Two faults of Lite 0.10 that would let triggers pass here which break on hosted:
-- 1. It stores JSON as a string inside jsonb, so `new.raw_user_meta_data ->> 'name'` is null.
-- 2. It inserts the finished user. Auth inserts a row without role and confirmation, and adds both by
--    UPDATEs of the same transaction. The names sort first and last: triggers fire by name.

create or replace function auth.lite_unwrap_user() returns trigger
language plpgsql set search_path = '' as $$
begin
  if jsonb_typeof(new.raw_user_meta_data) = 'string' then
    new.raw_user_meta_data := (new.raw_user_meta_data #>> '{}')::jsonb;
  end if;
  if jsonb_typeof(new.raw_app_meta_data) = 'string' then
    new.raw_app_meta_data := (new.raw_app_meta_data #>> '{}')::jsonb;
  end if;
  return new;
end
$$;

create or replace function auth.lite_unwrap_identity() returns trigger
language plpgsql set search_path = '' as $$
begin
  if jsonb_typeof(new.identity_data) = 'string' then
    new.identity_data := (new.identity_data #>> '{}')::jsonb;
  end if;
  return new;
end
$$;

-- Lite inserts one user per statement, so one setting is enough to hand the values over.
create or replace function auth.lite_hold_back() returns trigger
language plpgsql set search_path = '' as $$
begin
  perform set_config('lite.role', coalesce(new.role, ''), true);
  perform set_config('lite.email_confirmed_at', coalesce(new.email_confirmed_at::text, ''), true);
  new.role := '';
  new.email_confirmed_at := null;
  return new;
end
$$;

create or replace function auth.lite_hand_over() returns trigger
language plpgsql set search_path = '' as $$
declare
  v_confirmed_at text := current_setting('lite.email_confirmed_at', true);
begin
  update auth.users set role = current_setting('lite.role', true) where id = new.id;
  if v_confirmed_at <> '' then
    update auth.users set email_confirmed_at = v_confirmed_at::timestamptz where id = new.id;
  end if;
  return null;
end
$$;

create or replace trigger "000_lite_unwrap" before insert or update on auth.users
  for each row execute function auth.lite_unwrap_user();
create or replace trigger "000_lite_unwrap" before insert or update on auth.identities
  for each row execute function auth.lite_unwrap_identity();
-- postgres.js is the driver inside Lite; everybody else inserts as they mean it.
create or replace trigger "000_lite_hold_back" before insert on auth.users
  for each row when (current_setting('application_name') = 'postgres.js')
  execute function auth.lite_hold_back();
create or replace trigger "~lite_hand_over" after insert on auth.users
  for each row when (current_setting('application_name') = 'postgres.js')
  execute function auth.lite_hand_over();

revoke execute on function auth.lite_unwrap_user(), auth.lite_unwrap_identity(),
  auth.lite_hold_back(), auth.lite_hand_over() from public;
