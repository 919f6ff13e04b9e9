-- The moments that matter in auth.users, and the doorbell.
--
-- These triggers run inside other people's signups. They can never fail one: whatever goes wrong is recorded, and
-- the sweep makes up for it. They fire after a host's own (names are sorted: zz_), because the stock
-- handle_new_user inserts its profile without `on conflict`.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

create extension if not exists pgcrypto with schema extensions;

-- HMAC-SHA-256 over the exact bytes, by the Standard Webhooks scheme: id.timestamp.body. pgcrypto is looked up
-- where it is: older projects have it in public. Not in SQL, which would be planned anew in every signup.
do $do$
begin
  execute format($sql$
    create or replace function doorkey.sign_webhook(p_secret text, p_id text, p_timestamp text, p_body text)
    returns text language plpgsql immutable set search_path = ''
    as $$
    begin
      return 'v1,' || encode(%I.hmac(
        convert_to(p_id || '.' || p_timestamp || '.' || p_body, 'UTF8'),
        decode(substr(p_secret, 7), 'base64'), 'sha256'), 'base64');
    end
    $$
  $sql$, (select n.nspname from pg_catalog.pg_extension as e
            join pg_catalog.pg_namespace as n on n.oid = e.extnamespace where e.extname = 'pgcrypto'));
end
$do$;
revoke all on function doorkey.sign_webhook(text, text, text, text) from public, anon, authenticated, service_role;

-- Asks pg_net to tell the functions once this transaction has committed. A hint only: it may be lost, repeated
-- or late. pg_net holds its whole batch, and so the host's own webhooks, until the slowest answer: hence one second.
create or replace function doorkey.ring(p_user_id uuid, p_event text) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  v_id constant text := 'msg_' || gen_random_uuid();
  v_timestamp constant text := floor(extract(epoch from clock_timestamp()))::bigint;
  v_user constant jsonb := jsonb_build_object('id', p_user_id);
  v_settings doorkey.settings;
  v_body jsonb;
begin
  select * into v_settings from doorkey.settings;
  if v_settings.webhook_url is null or v_settings.webhook_secret is null then
    return; -- not connected yet: the rows wait for the sweep
  end if;
  -- The shape of a Supabase database webhook, without the row: that one holds password hashes and tokens.
  v_body := jsonb_build_object(
    'type', p_event, 'table', 'users', 'schema', 'auth',
    'record', case when p_event <> 'DELETE' then v_user end,
    'old_record', case when p_event = 'DELETE' then v_user end);
  perform net.http_post(
    url := v_settings.webhook_url,
    body := v_body,
    headers := jsonb_build_object(
      'Content-Type', 'application/json',
      'webhook-id', v_id,
      'webhook-timestamp', v_timestamp,
      'webhook-signature', doorkey.sign_webhook(v_settings.webhook_secret, v_id, v_timestamp, v_body::text)),
    timeout_milliseconds := 1000);
end
$$;
revoke all on function doorkey.ring(uuid, text) from public, anon, authenticated, service_role;

create or replace function doorkey.on_user_created() returns trigger
language plpgsql security definer set search_path = '' set lock_timeout = '750ms'
as $$
declare
  -- No types of ours: one that is missing would be found out before any handler is there.
  v_settings record;
  v_state text;
  v_object text;
  v_id text;
  v_timestamp text;
  v_body jsonb;
begin
  -- All at once, as it nearly always goes, and from the row at hand: each function called, each statement and each
  -- handler costs every signup more. Tests hold this to say what first_state, fill_profile and ring say.
  begin
    select s.installed_at, s.provision_on, s.provision_anonymous, s.owns_profiles, s.webhook_url, s.webhook_secret,
           -- For these there is check_deferred_constraints; most have none.
           exists (select from pg_catalog.pg_trigger as t
                    where t.tgrelid = to_regclass('public.profiles') and t.tgdeferrable) as has_deferrable
      into v_settings from doorkey.settings as s;
    if coalesce(new.created_at, now()) >= v_settings.installed_at then
      v_state := case
        when new.is_anonymous and not v_settings.provision_anonymous then 'waiting'
        when v_settings.provision_on = 'manual' then 'waiting'
        when v_settings.provision_on = 'confirmed'
             and new.email_confirmed_at is null and new.phone_confirmed_at is null then 'waiting'
        else 'due'
      end;
      -- Whoever has a row already, and never had a user, is for the parts below: asking first costs everybody.
      insert into doorkey.provisioning (user_id, state) values (new.id, v_state::doorkey.provisioning_state);
    end if;
    if v_settings.owns_profiles then
      -- Not `on conflict`, which marks each row a second time: looking first costs less, and who comes between is for the
      -- parts below.
      insert into public.profiles (id, email, full_name, openrouter_provisioning_status)
      select new.id, new.email,
             left(coalesce(new.raw_user_meta_data ->> 'full_name', new.raw_user_meta_data ->> 'name'), 500), 'pending'
       where not exists (select from public.profiles as p where p.id = new.id);
      if v_settings.has_deferrable then
        perform doorkey.check_deferred_constraints();
      end if;
    else
      perform doorkey.fill_profile(new.id);
    end if;
    if v_state = 'due' and v_settings.webhook_url is not null and v_settings.webhook_secret is not null then
      v_id := 'msg_' || gen_random_uuid();
      v_timestamp := floor(extract(epoch from clock_timestamp()))::bigint;
      v_body := jsonb_build_object('type', tg_op, 'table', 'users', 'schema', 'auth',
                                   'record', jsonb_build_object('id', new.id), 'old_record', null);
      perform net.http_post(
        url := v_settings.webhook_url,
        body := v_body,
        headers := jsonb_build_object(
          'Content-Type', 'application/json',
          'webhook-id', v_id,
          'webhook-timestamp', v_timestamp,
          'webhook-signature', doorkey.sign_webhook(v_settings.webhook_secret, v_id, v_timestamp, v_body::text)),
        timeout_milliseconds := 1000);
    end if;
    return null;
  exception when others or assert_failure or query_canceled then
    null; -- Nothing of it is there any more. Now each by itself: what can be done is, and what can't is noted.
  end;
  begin
    begin
      v_state := doorkey.enrol(new.id);
    exception when others or assert_failure or query_canceled then
      v_state := null;
      get stacked diagnostics v_object = table_name;
      perform doorkey.note_trouble('user.not_enrolled', new.id, sqlstate, v_object);
    end;
    begin
      perform doorkey.fill_profile(new.id);
    exception when others or assert_failure or query_canceled then
      get stacked diagnostics v_object = column_name;
      perform doorkey.note_trouble('profile.not_filled', new.id, sqlstate, v_object);
    end;
    begin
      if v_state = 'due' then
        perform doorkey.ring(new.id, tg_op);
      end if;
    exception when others or assert_failure or query_canceled then
      perform doorkey.note_trouble('hint.not_sent', new.id, sqlstate, null);
    end;
  exception when others or assert_failure or query_canceled then
    raise warning 'doorkey: nothing was done for user %, nor noted (%)', new.id, sqlstate;
  end;
  return null;
end
$$;
revoke all on function doorkey.on_user_created() from public, anon, authenticated, service_role;

create or replace trigger zz_doorkey_user_created after insert on auth.users
  for each row execute function doorkey.on_user_created();
