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
