-- Who did what to whom, and what went wrong where nothing was allowed to fail.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

create table if not exists doorkey.audit_log (
  id bigint generated always as identity primary key,
  happened_at timestamptz not null default now(),
  -- 'trigger', 'webhook', 'sweep', an operator: never an e-mail address.
  actor text not null,
  -- noun.past_tense
  action text not null check (action ~ '^[a-z_]+\.[a-z_]+$'),
  -- Bare on purpose: the log outlives the user.
  user_id uuid,
  request_id text,
  detail jsonb not null default '{}'
);
-- "What happened to this user?"
create index if not exists audit_log_user on doorkey.audit_log (user_id, id);
-- "Whom did the triggers miss?", for the sweep.
create index if not exists audit_log_missed
  on doorkey.audit_log (happened_at) where action in ('user.not_enrolled', 'user.not_noticed');
alter table doorkey.audit_log enable row level security;
revoke all on table doorkey.audit_log from public, anon, authenticated, service_role;
revoke all on sequence doorkey.audit_log_id_seq from public, anon, authenticated, service_role;

create or replace function doorkey.write_audit(
  p_actor text, p_action text, p_user_id uuid, p_request_id text, p_detail jsonb
) returns void
language sql security definer set search_path = ''
as $$
  insert into doorkey.audit_log (actor, action, user_id, request_id, detail)
  values (p_actor, p_action, p_user_id, p_request_id, coalesce(p_detail, '{}'));
$$;
revoke all on function doorkey.write_audit(text, text, uuid, text, jsonb)
  from public, anon, authenticated, service_role;

-- For places that must not fail, above all inside somebody else's signup: records and swallows.
-- It keeps the SQLSTATE and names of things, never the message: messages quote values.
create or replace function doorkey.note_trouble(
  p_action text, p_user_id uuid, p_sqlstate text, p_object text
) returns void
language plpgsql security definer set search_path = ''
as $$
begin
  insert into doorkey.audit_log (actor, action, user_id, detail)
  values ('trigger', p_action, p_user_id,
          jsonb_strip_nulls(jsonb_build_object('sqlstate', p_sqlstate, 'object', nullif(p_object, ''))));
exception when others or assert_failure or query_canceled then
  raise warning 'doorkey: % for user % (%), and the audit log took no note of it (%)',
    p_action, p_user_id, p_sqlstate, sqlstate;
end
$$;
revoke all on function doorkey.note_trouble(text, uuid, text, text)
  from public, anon, authenticated, service_role;

-- For the rest of a transaction: on whose behalf rows are edited that note it.
create or replace function doorkey.act_as(p_actor text, p_request_id text) returns void
language sql security definer set search_path = ''
as $$
  select set_config('doorkey.actor', p_actor, true), set_config('doorkey.request_id', coalesce(p_request_id, ''), true);
$$;
revoke all on function doorkey.act_as(text, text) from public, anon, authenticated, service_role;

-- Whoever edits a row that operators keep, in whichever way, leaves a note of who, what, before and after. The trigger
-- says what such a row is called; one that says when it was changed last goes on saying so.
create or replace function doorkey.note_edit() returns trigger
language plpgsql security definer set search_path = ''
as $$
declare
  v_before constant jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) - 'updated_at' end;
  v_after constant jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) - 'updated_at' end;
begin
  if v_before is distinct from v_after then
    perform doorkey.write_audit(
      coalesce(nullif(current_setting('doorkey.actor', true), ''), session_user::text),
      tg_argv[0] || '.' || case tg_op when 'INSERT' then 'added' when 'UPDATE' then 'edited' else 'removed' end,
      null, nullif(current_setting('doorkey.request_id', true), ''), jsonb_build_object('before', v_before, 'after', v_after));
    if tg_op = 'UPDATE' then
      new := jsonb_populate_record(new, jsonb_build_object('updated_at', now()));
    end if;
  end if;
  return case when tg_op = 'DELETE' then old else new end;
end
$$;
revoke all on function doorkey.note_edit() from public, anon, authenticated, service_role;

-- Emptying such a table fires nothing of its rows: so they are deleted first, and each is noted.
create or replace function doorkey.note_truncation() returns trigger
language plpgsql security definer set search_path = ''
as $$
begin
  execute format('delete from %I.%I', tg_table_schema, tg_table_name);
  return null;
end
$$;
revoke all on function doorkey.note_truncation() from public, anon, authenticated, service_role;

-- The same of settings, of which only those are noted that changed: of secrets a fingerprint, and of what doorkey itself
-- writes there, some of it every minute, nothing.
create or replace function doorkey.note_settings() returns trigger
language plpgsql security definer set search_path = ''
as $$
declare
  v_before constant jsonb := case when tg_op = 'INSERT' then '{}' else to_jsonb(old) end;
  v_after constant jsonb := case when tg_op = 'DELETE' then '{}' else to_jsonb(new) end;
  v_detail jsonb;
  c_own constant text[] := array[
    'only_row', 'owns_profiles', 'held_reason', 'held_until', 'outage_failures', 'sweep_cursor', 'heal_cursor',
    'last_sweep_at', 'promise_cursor'];
  c_secret constant text[] := array['webhook_secret', 'person_salt'];
begin
  select jsonb_build_object('before', jsonb_object_agg(c.name, c.was), 'after', jsonb_object_agg(c.name, c.is)) into v_detail
    from (
      select n.name,
             case when n.name = any (c_secret) then to_jsonb(left(doorkey.digest_secret(v_before ->> n.name), 16))
                  else v_before -> n.name end as was,
             case when n.name = any (c_secret) then to_jsonb(left(doorkey.digest_secret(v_after ->> n.name), 16))
                  else v_after -> n.name end as is
        from jsonb_object_keys(v_before || v_after) as n (name)
       where n.name <> all (c_own) and v_before -> n.name is distinct from v_after -> n.name
    ) as c
  having count(*) > 0;
  if found then
    perform doorkey.write_audit(session_user::text, 'settings.edited', null, null, v_detail);
  end if;
  return null;
end
$$;
revoke all on function doorkey.note_settings() from public, anon, authenticated, service_role;
