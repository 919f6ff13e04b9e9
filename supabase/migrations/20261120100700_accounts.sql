-- What a person may see of their own, in one answer.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- No row in credit_accounts yet and no desired state: null, an account that doorkey doesn't serve.
create or replace function doorkey.account_of(p_user_id uuid) returns jsonb
language sql stable security definer set search_path = ''
as $$
  select jsonb_build_object(
    'user_id', u.id,
    'email', u.email,
    'full_name', left(coalesce(u.raw_user_meta_data ->> 'full_name', u.raw_user_meta_data ->> 'name'), 500),
    'created_at', u.created_at,
    'provisioning', jsonb_build_object(
      'state', w.state, 'last_error', w.last_error, 'ready_at', w.ready_at,
      -- Whether somebody may begin now; whoever began before may have died of it.
      'is_due', coalesce(case w.state when 'due' then w.due_at when 'working' then w.lease_expires_at end <= now(), false),
      'is_rotating', w.rotation_grace_seconds is not null),
    'credits', (
      select jsonb_build_object(
        'plan_id', a.plan_id, 'plan_name', p.name, 'is_uncapped', p.is_uncapped,
        'available_micros', a.available_micros, 'held_micros', a.held_micros,
        'debt_micros', a.debt_micros,
        'granted_micros', (
          select coalesce(sum(l.amount_micros), 0) from doorkey.credit_lots as l
           where l.user_id = a.user_id and (l.expires_at is null or l.expires_at > now())),
        -- In the order in which they are spent. Together they are what is available and held.
        'lots', (
          select coalesce(jsonb_agg(to_jsonb(l) - 'n' order by l.n), '[]'::jsonb)
            from (select row_number() over (order by l.priority, l.expires_at nulls last, l.id) as n, t.type,
                         l.amount_micros, l.remaining_micros, l.expires_at, l.created_at as granted_at
                    from doorkey.credit_lots as l
                    join public.credit_transactions as t on t.id = l.transaction_id
                   where l.user_id = a.user_id and not l.is_empty
                   order by l.priority, l.expires_at nulls last, l.id limit 100) as l),
        'period_started_at', a.period_started_at, 'period_ends_at', a.period_ends_at,
        'referral_code', a.referral_code, 'created_at', a.created_at, 'updated_at', a.updated_at,
        'micros_per_credit', (select s.micros_per_credit from doorkey.settings as s))
        from public.credit_accounts as a join public.plans as p on p.id = a.plan_id
       where a.user_id = u.id),
    'key', (
      select jsonb_build_object(
        'hash', k.key_hash, 'name', k.key_name, 'label', k.key_label, 'limit_micros', k.limit_micros,
        'status', k.status, 'created_at', k.created_at)
        from public.openrouter_user_keys as k where k.key_hash = w.key_hash),
    'previous_key', (
      select jsonb_build_object('hash', k.key_hash, 'label', k.key_label, 'retires_at', k.retires_at)
        from public.openrouter_user_keys as k
       where k.user_id = u.id and k.status <> 'deleted' and k.retires_at is not null)
  )
  from auth.users as u
  join doorkey.provisioning as w on w.user_id = u.id
  where u.id = p_user_id;
$$;
revoke all on function doorkey.account_of(uuid) from public, anon, authenticated, service_role;
grant execute on function doorkey.account_of(uuid) to service_role;

-- Anybody's, for operators; and one's own, where the publishable key is rejected.
create or replace function public.get_account(user_id uuid) returns jsonb
language sql stable set search_path = ''
as $$ select doorkey.account_of($1); $$;
revoke all on function public.get_account(uuid) from public, anon, authenticated, service_role;
grant execute on function public.get_account(uuid) to service_role;

create or replace function doorkey.my_account() returns jsonb
language sql stable security definer set search_path = ''
as $$ select doorkey.account_of((select auth.uid())); $$;
revoke all on function doorkey.my_account() from public, anon, authenticated, service_role;
grant execute on function doorkey.my_account() to authenticated;

create or replace function public.get_my_account() returns jsonb
language sql stable set search_path = ''
as $$ select doorkey.my_account(); $$;
revoke all on function public.get_my_account() from public, anon, authenticated, service_role;
grant execute on function public.get_my_account() to authenticated;

-- The sealed secret of the user's live key, as often as the setting allows. No row: no key. Null secret: it was
-- shown before.
create or replace function doorkey.reveal_key(p_user_id uuid, p_request_id text)
returns table (revealed_key_hash text, sealed_secret text)
language plpgsql security definer set search_path = ''
as $$
declare
  v_key_hash text;
  v_is_first boolean;
begin
  select w.key_hash into v_key_hash from doorkey.provisioning as w
   where w.user_id = p_user_id and w.key_hash is not null;
  if not found then
    return;
  end if;
  update doorkey.sealed_secrets as s set revealed_at = now()
   where s.key_hash = v_key_hash and s.revealed_at is null;
  v_is_first := found;
  if v_is_first then
    perform doorkey.write_audit('api', 'key.revealed', p_user_id, p_request_id,
      jsonb_build_object('key_hash', v_key_hash));
  end if;
  return query
    select s.key_hash,
           case when v_is_first or (select t.key_reveal from doorkey.settings as t) = 'always'
                then s.sealed_secret end
      from doorkey.sealed_secrets as s where s.key_hash = v_key_hash;
end
$$;
revoke all on function doorkey.reveal_key(uuid, text) from public, anon, authenticated, service_role;
grant execute on function doorkey.reveal_key(uuid, text) to service_role;

create or replace function public.reveal_key(user_id uuid, request_id text)
returns table (revealed_key_hash text, sealed_secret text)
language sql set search_path = ''
as $$ select * from doorkey.reveal_key($1, $2); $$;
revoke all on function public.reveal_key(uuid, text) from public, anon, authenticated, service_role;
grant execute on function public.reveal_key(uuid, text) to service_role;
