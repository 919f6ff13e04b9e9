-- A person's own doors to what the functions do for them: the way that is left when the service key is rejected.
--
-- They open with the person's own token, which the person has as well. So whatever changes anything also wants a proof
-- that a function of ours asks: an HMAC over the door, the user and every argument, with the secret that signs the hints.
-- Nobody burns their own attempts, registers a key of their making or names the cost of their call.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- A proof holds once. It is used in the transaction of its effect: a call that came to nothing has used none.
create table if not exists doorkey.used_proofs (
  proof_id text primary key check (length(proof_id) between 1 and 100),
  expires_at timestamptz not null
);
-- "Which can be forgotten?", for the sweep, and for the doors themselves while no sweep gets in.
create index if not exists used_proofs_expired on doorkey.used_proofs (expires_at);
alter table doorkey.used_proofs enable row level security;
revoke all on table doorkey.used_proofs from public, anon, authenticated, service_role;

-- HMAC-SHA-256 over netstrings: whatever stands in one part can't be taken for the next; null is `-`. What else this
-- secret signs begins with `msg_`. pgcrypto is looked up where it is, as for doorkey.sign_webhook.
do $do$
begin
  execute format($sql$
    create or replace function doorkey.sign_proof(p_secret text, p_parts text[])
    returns text language sql stable set search_path = ''
    as $$
      select 'v1,' || encode(%I.hmac(
                 convert_to(
                   string_agg(coalesce(octet_length(p.part) || ':' || p.part, '-') || ',', '' order by p.n), 'UTF8'),
                 decode(substr(p_secret, 7), 'base64'), 'sha256'), 'base64')
        from unnest(p_parts) with ordinality as p (part, n);
    $$
  $sql$, (select n.nspname from pg_catalog.pg_extension as e
            join pg_catalog.pg_namespace as n on n.oid = e.extnamespace where e.extname = 'pgcrypto'));
end
$do$;
revoke all on function doorkey.sign_proof(text, text[]) from public, anon, authenticated, service_role;

-- Says whose token it is, once it is shown that a function of ours asks, and asks this. p_arguments: those of the door,
-- in the order in which it declares them. p_proof: a signature for each secret that the functions know, as they rotate.
create or replace function doorkey.use_proof(
  p_door text, p_arguments text[], p_proof_id text, p_proof_expires_at bigint, p_proof text
) returns uuid
language plpgsql security definer set search_path = ''
as $$
declare
  c_max_signatures constant integer := 8;
  c_max_seconds constant integer := 300;
  -- More than one, so that what piled up gets less with each call.
  c_forgotten constant integer := 3;
  v_user_id constant uuid := auth.uid();
  v_expected constant text := doorkey.sign_proof(
    (select s.webhook_secret from doorkey.settings as s),
    array['doorkey.proof', p_door, v_user_id::text] || p_arguments || array[p_proof_id, p_proof_expires_at::text]);
begin
  -- No user would mean anybody's, to those behind the doors.
  if v_user_id is null or not exists (
    -- By their digests: how long it takes to compare those says nothing of the signatures.
    select from unnest((string_to_array(p_proof, ' '))[:c_max_signatures]) as s (signature)
     where doorkey.digest_secret(s.signature) = doorkey.digest_secret(v_expected)
  ) then
    raise sqlstate 'PT403' using message = 'proof_invalid',
      hint = 'Only the functions of this installation can show it, with the secret that they share with the database.';
  end if;
  if p_proof_expires_at - extract(epoch from now()) not between 0 and c_max_seconds then
    raise sqlstate 'PT403' using message = 'proof_expired',
      hint = format('A proof holds for %s seconds at most. Do the clocks agree?', c_max_seconds);
  end if;
  insert into doorkey.used_proofs (proof_id, expires_at) values (p_proof_id, to_timestamp(p_proof_expires_at))
  on conflict (proof_id) do nothing;
  if not found then
    raise sqlstate 'PT403' using message = 'proof_used', hint = 'A proof holds for one call.';
  end if;
  -- With the service key rejected no sweep runs. Nobody waits for anybody here: what is locked is another's to forget.
  delete from doorkey.used_proofs as u using (
    select o.proof_id from doorkey.used_proofs as o where o.expires_at < now() - interval '1 minute'
     order by o.expires_at limit c_forgotten for update skip locked) as old
   where u.proof_id = old.proof_id;
  return v_user_id;
end
$$;
revoke all on function doorkey.use_proof(text, text[], text, bigint, text)
  from public, anon, authenticated, service_role;

-- Takes the lease on the row of one's own. How much they are welcomed with is decided here, as ever.
create or replace function doorkey.claim_my_provisioning(
  p_lease_seconds integer, p_request_id text, p_chance text, p_proof_id text, p_proof_expires_at bigint,
  p_proof text
) returns setof doorkey.provisioning_claim
language sql security definer set search_path = ''
as $$
  select * from doorkey.claim_provisioning(
    doorkey.use_proof(
      'claim_my_provisioning',
      array[p_lease_seconds::text, p_request_id, p_chance],
      p_proof_id, p_proof_expires_at, p_proof),
    p_lease_seconds, p_request_id, p_chance);
$$;
revoke all on function doorkey.claim_my_provisioning(integer, text, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.claim_my_provisioning(integer, text, text, text, bigint, text) to authenticated;

create or replace function public.claim_my_provisioning(
  lease_seconds integer, request_id text, chance text, proof_id text, proof_expires_at bigint, proof text
) returns setof doorkey.provisioning_claim
language sql set search_path = ''
as $$ select * from doorkey.claim_my_provisioning($1, $2, $3, $4, $5, $6); $$;
revoke all on function public.claim_my_provisioning(integer, text, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function public.claim_my_provisioning(integer, text, text, text, bigint, text) to authenticated;

create or replace function doorkey.finish_my_provisioning(
  p_attempt integer, p_key_hash text, p_key_name text, p_key_label text, p_limit_micros bigint, p_sealed_secret text,
  p_request_id text, p_proof_id text, p_proof_expires_at bigint, p_proof text
) returns text
language sql security definer set search_path = ''
as $$
  select doorkey.finish_provisioning(
    doorkey.use_proof(
      'finish_my_provisioning',
      array[p_attempt::text, p_key_hash, p_key_name, p_key_label, p_limit_micros::text, p_sealed_secret, p_request_id],
      p_proof_id, p_proof_expires_at, p_proof),
    p_attempt, p_key_hash, p_key_name, p_key_label, p_limit_micros, p_sealed_secret, p_request_id);
$$;
revoke all on function doorkey.finish_my_provisioning(integer, text, text, text, bigint, text, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function
  doorkey.finish_my_provisioning(integer, text, text, text, bigint, text, text, text, bigint, text)
  to authenticated;

create or replace function public.finish_my_provisioning(
  attempt integer, key_hash text, key_name text, key_label text, limit_micros bigint, sealed_secret text,
  request_id text, proof_id text, proof_expires_at bigint, proof text
) returns text
language sql set search_path = ''
as $$ select doorkey.finish_my_provisioning($1, $2, $3, $4, $5, $6, $7, $8, $9, $10); $$;
revoke all on function public.finish_my_provisioning(integer, text, text, text, bigint, text, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function
  public.finish_my_provisioning(integer, text, text, text, bigint, text, text, text, bigint, text)
  to authenticated;

create or replace function doorkey.finish_my_key_update(
  p_attempt integer, p_key_hash text, p_limit_micros bigint, p_is_enabled boolean, p_usage_micros numeric,
  p_request_id text, p_proof_id text, p_proof_expires_at bigint, p_proof text
) returns text
language sql security definer set search_path = ''
as $$
  select doorkey.finish_key_update(
    doorkey.use_proof(
      'finish_my_key_update',
      array[p_attempt::text, p_key_hash, p_limit_micros::text, p_is_enabled::text, p_usage_micros::text, p_request_id],
      p_proof_id, p_proof_expires_at, p_proof),
    p_attempt, p_key_hash, p_limit_micros, p_is_enabled, p_usage_micros, p_request_id);
$$;
revoke all on function doorkey.finish_my_key_update(integer, text, bigint, boolean, numeric, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function
  doorkey.finish_my_key_update(integer, text, bigint, boolean, numeric, text, text, bigint, text)
  to authenticated;

create or replace function public.finish_my_key_update(
  attempt integer, key_hash text, limit_micros bigint, is_enabled boolean, usage_micros numeric, request_id text,
  proof_id text, proof_expires_at bigint, proof text
) returns text
language sql set search_path = ''
as $$ select doorkey.finish_my_key_update($1, $2, $3, $4, $5, $6, $7, $8, $9); $$;
revoke all on function public.finish_my_key_update(integer, text, bigint, boolean, numeric, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function
  public.finish_my_key_update(integer, text, bigint, boolean, numeric, text, text, bigint, text)
  to authenticated;

create or replace function doorkey.finish_my_key_deletion(
  p_attempt integer, p_key_hash text, p_request_id text, p_proof_id text, p_proof_expires_at bigint, p_proof text
) returns text
language sql security definer set search_path = ''
as $$
  select doorkey.finish_key_deletion(
    doorkey.use_proof(
      'finish_my_key_deletion',
      array[p_attempt::text, p_key_hash, p_request_id],
      p_proof_id, p_proof_expires_at, p_proof),
    p_attempt, p_key_hash, p_request_id);
$$;
revoke all on function doorkey.finish_my_key_deletion(integer, text, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.finish_my_key_deletion(integer, text, text, text, bigint, text) to authenticated;

create or replace function public.finish_my_key_deletion(
  attempt integer, key_hash text, request_id text, proof_id text, proof_expires_at bigint, proof text
) returns text
language sql set search_path = ''
as $$ select doorkey.finish_my_key_deletion($1, $2, $3, $4, $5, $6); $$;
revoke all on function public.finish_my_key_deletion(integer, text, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function public.finish_my_key_deletion(integer, text, text, text, bigint, text) to authenticated;

create or replace function doorkey.defer_my_provisioning(
  p_attempt integer, p_error text, p_delay_seconds integer, p_gives_up boolean, p_is_outage boolean,
  p_request_id text, p_proof_id text, p_proof_expires_at bigint, p_proof text
) returns text
language sql security definer set search_path = ''
as $$
  select doorkey.defer_provisioning(
    doorkey.use_proof(
      'defer_my_provisioning',
      array[p_attempt::text, p_error, p_delay_seconds::text, p_gives_up::text, p_is_outage::text, p_request_id],
      p_proof_id, p_proof_expires_at, p_proof),
    p_attempt, p_error, p_delay_seconds, p_gives_up, p_is_outage, p_request_id);
$$;
revoke all on function doorkey.defer_my_provisioning(integer, text, integer, boolean, boolean, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function
  doorkey.defer_my_provisioning(integer, text, integer, boolean, boolean, text, text, bigint, text)
  to authenticated;

create or replace function public.defer_my_provisioning(
  attempt integer, error text, delay_seconds integer, gives_up boolean, is_outage boolean, request_id text,
  proof_id text, proof_expires_at bigint, proof text
) returns text
language sql set search_path = ''
as $$ select doorkey.defer_my_provisioning($1, $2, $3, $4, $5, $6, $7, $8, $9); $$;
revoke all on function public.defer_my_provisioning(integer, text, integer, boolean, boolean, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function
  public.defer_my_provisioning(integer, text, integer, boolean, boolean, text, text, bigint, text)
  to authenticated;

create or replace function doorkey.hold_my_provisioning(
  p_attempt integer, p_error text, p_request_id text, p_proof_id text, p_proof_expires_at bigint, p_proof text
) returns text
language sql security definer set search_path = ''
as $$
  select doorkey.hold_provisioning(
    doorkey.use_proof(
      'hold_my_provisioning',
      array[p_attempt::text, p_error, p_request_id],
      p_proof_id, p_proof_expires_at, p_proof),
    p_attempt, p_error, p_request_id);
$$;
revoke all on function doorkey.hold_my_provisioning(integer, text, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.hold_my_provisioning(integer, text, text, text, bigint, text) to authenticated;

create or replace function public.hold_my_provisioning(
  attempt integer, error text, request_id text, proof_id text, proof_expires_at bigint, proof text
) returns text
language sql set search_path = ''
as $$ select doorkey.hold_my_provisioning($1, $2, $3, $4, $5, $6); $$;
revoke all on function public.hold_my_provisioning(integer, text, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function public.hold_my_provisioning(integer, text, text, text, bigint, text) to authenticated;

create or replace function doorkey.recheck_my_key(
  p_request_id text, p_proof_id text, p_proof_expires_at bigint, p_proof text
) returns text
language sql security definer set search_path = ''
as $$
  select doorkey.recheck_key(
    doorkey.use_proof(
      'recheck_my_key',
      array[p_request_id],
      p_proof_id, p_proof_expires_at, p_proof),
    p_request_id);
$$;
revoke all on function doorkey.recheck_my_key(text, text, bigint, text) from public, anon, authenticated, service_role;
grant execute on function doorkey.recheck_my_key(text, text, bigint, text) to authenticated;

create or replace function public.recheck_my_key(
  request_id text, proof_id text, proof_expires_at bigint, proof text
) returns text
language sql set search_path = ''
as $$ select doorkey.recheck_my_key($1, $2, $3, $4); $$;
revoke all on function public.recheck_my_key(text, text, bigint, text) from public, anon, authenticated, service_role;
grant execute on function public.recheck_my_key(text, text, bigint, text) to authenticated;

create or replace function doorkey.reveal_my_key(
  p_request_id text, p_proof_id text, p_proof_expires_at bigint, p_proof text
) returns table (revealed_key_hash text, sealed_secret text)
language sql security definer set search_path = ''
as $$
  select * from doorkey.reveal_key(
    doorkey.use_proof(
      'reveal_my_key',
      array[p_request_id],
      p_proof_id, p_proof_expires_at, p_proof),
    p_request_id);
$$;
revoke all on function doorkey.reveal_my_key(text, text, bigint, text) from public, anon, authenticated, service_role;
grant execute on function doorkey.reveal_my_key(text, text, bigint, text) to authenticated;

create or replace function public.reveal_my_key(
  request_id text, proof_id text, proof_expires_at bigint, proof text
) returns table (revealed_key_hash text, sealed_secret text)
language sql set search_path = ''
as $$ select * from doorkey.reveal_my_key($1, $2, $3, $4); $$;
revoke all on function public.reveal_my_key(text, text, bigint, text) from public, anon, authenticated, service_role;
grant execute on function public.reveal_my_key(text, text, bigint, text) to authenticated;

create or replace function doorkey.request_my_key_rotation(
  p_grace_seconds integer, p_request_id text, p_proof_id text, p_proof_expires_at bigint, p_proof text
) returns text
language sql security definer set search_path = ''
as $$
  select doorkey.request_key_rotation(
    doorkey.use_proof(
      'request_my_key_rotation',
      array[p_grace_seconds::text, p_request_id],
      p_proof_id, p_proof_expires_at, p_proof),
    p_grace_seconds, p_request_id);
$$;
revoke all on function doorkey.request_my_key_rotation(integer, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.request_my_key_rotation(integer, text, text, bigint, text) to authenticated;

create or replace function public.request_my_key_rotation(
  grace_seconds integer, request_id text, proof_id text, proof_expires_at bigint, proof text
) returns text
language sql set search_path = ''
as $$ select doorkey.request_my_key_rotation($1, $2, $3, $4, $5); $$;
revoke all on function public.request_my_key_rotation(integer, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function public.request_my_key_rotation(integer, text, text, bigint, text) to authenticated;

create or replace function doorkey.reserve_my_credits(
  p_amount_micros bigint, p_ttl_seconds integer, p_idempotency_key text, p_key_hash text, p_request_id text,
  p_proof_id text, p_proof_expires_at bigint, p_proof text
) returns table (hold_id uuid, bound_key_hash text, expires_at timestamptz, available_after_micros bigint)
language sql security definer set search_path = ''
as $$
  select * from doorkey.reserve_credits(
    doorkey.use_proof(
      'reserve_my_credits',
      array[p_amount_micros::text, p_ttl_seconds::text, p_idempotency_key, p_key_hash, p_request_id],
      p_proof_id, p_proof_expires_at, p_proof),
    p_amount_micros, p_ttl_seconds, p_idempotency_key, p_key_hash, p_request_id);
$$;
revoke all on function doorkey.reserve_my_credits(bigint, integer, text, text, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.reserve_my_credits(bigint, integer, text, text, text, text, bigint, text)
  to authenticated;

create or replace function public.reserve_my_credits(
  amount_micros bigint, ttl_seconds integer, idempotency_key text, key_hash text, request_id text, proof_id text,
  proof_expires_at bigint, proof text
) returns table (hold_id uuid, bound_key_hash text, expires_at timestamptz, available_after_micros bigint)
language sql set search_path = ''
as $$ select * from doorkey.reserve_my_credits($1, $2, $3, $4, $5, $6, $7, $8); $$;
revoke all on function public.reserve_my_credits(bigint, integer, text, text, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function public.reserve_my_credits(bigint, integer, text, text, text, text, bigint, text)
  to authenticated;

-- Only a hold of one's own; and the cost is what the function says that it received.
create or replace function doorkey.settle_my_hold(
  p_hold_id uuid, p_cost_micros numeric, p_tokens bigint, p_provider text, p_model text, p_generation_id text,
  p_request_id text, p_proof_id text, p_proof_expires_at bigint, p_proof text
) returns table (charged_micros bigint, owed_micros bigint)
language sql security definer set search_path = ''
as $$
  select * from doorkey.settle_hold(
    doorkey.use_proof(
      'settle_my_hold',
      array[p_hold_id::text, p_cost_micros::text, p_tokens::text, p_provider, p_model, p_generation_id, p_request_id],
      p_proof_id, p_proof_expires_at, p_proof),
    p_hold_id, p_cost_micros, p_tokens, p_provider, p_model, p_generation_id, p_request_id);
$$;
revoke all on function doorkey.settle_my_hold(uuid, numeric, bigint, text, text, text, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.settle_my_hold(uuid, numeric, bigint, text, text, text, text, text, bigint, text)
  to authenticated;

create or replace function public.settle_my_hold(
  hold_id uuid, cost_micros numeric, tokens bigint, provider text, model text, generation_id text, request_id text,
  proof_id text, proof_expires_at bigint, proof text
) returns table (charged_micros bigint, owed_micros bigint)
language sql set search_path = ''
as $$ select * from doorkey.settle_my_hold($1, $2, $3, $4, $5, $6, $7, $8, $9, $10); $$;
revoke all on function public.settle_my_hold(uuid, numeric, bigint, text, text, text, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function public.settle_my_hold(uuid, numeric, bigint, text, text, text, text, text, bigint, text)
  to authenticated;

create or replace function doorkey.release_my_hold(
  p_hold_id uuid, p_request_id text, p_proof_id text, p_proof_expires_at bigint, p_proof text
) returns text
language sql security definer set search_path = ''
as $$
  select doorkey.release_hold(
    doorkey.use_proof(
      'release_my_hold',
      array[p_hold_id::text, p_request_id],
      p_proof_id, p_proof_expires_at, p_proof),
    p_hold_id, p_request_id);
$$;
revoke all on function doorkey.release_my_hold(uuid, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.release_my_hold(uuid, text, text, bigint, text) to authenticated;

create or replace function public.release_my_hold(
  hold_id uuid, request_id text, proof_id text, proof_expires_at bigint, proof text
) returns text
language sql set search_path = ''
as $$ select doorkey.release_my_hold($1, $2, $3, $4, $5); $$;
revoke all on function public.release_my_hold(uuid, text, text, bigint, text)
  from public, anon, authenticated, service_role;
grant execute on function public.release_my_hold(uuid, text, text, bigint, text) to authenticated;

-- The one that makes what everybody has asks for no proof: a person's own missing profile, made by themselves under row
-- level security. Nor do those that read: see ..._own_money.sql.

-- What a new profile of theirs holds: what Auth knows, as for everybody (doorkey.fill_profile). Empty: not enrolled, or gone.
create or replace function doorkey.my_new_profile() returns table (id uuid, email text, full_name text)
language sql stable security definer set search_path = ''
as $$
  select u.id, u.email::text, left(coalesce(u.raw_user_meta_data ->> 'full_name', u.raw_user_meta_data ->> 'name'), 500)
    from auth.users as u
   where u.id = auth.uid() and u.deleted_at is null
     and exists (select from doorkey.provisioning as p where p.user_id = u.id);
$$;
revoke all on function doorkey.my_new_profile() from public, anon, authenticated, service_role;
grant execute on function doorkey.my_new_profile() to authenticated;

-- Only on the table that is ours: a host's grants and policies are the host's. Columns that are not granted have their
-- defaults, and those that are hold what Auth knows: whoever inserts by hand makes the very row that the door makes.
do $$
begin
  if (select s.owns_profiles from doorkey.settings as s)
     and obj_description(to_regclass('public.profiles'), 'pg_class') = 'One row per user, kept by doorkey for people to read.' then
    drop policy if exists "Users may create their own missing profile" on public.profiles;
    create policy "Users may create their own missing profile" on public.profiles
      for insert to authenticated
      with check (
        (select auth.uid()) = id
        and exists (select from doorkey.my_new_profile() as m
                     where m.email is not distinct from profiles.email
                       and m.full_name is not distinct from profiles.full_name));
    grant insert (id, email, full_name) on table public.profiles to authenticated;
  end if;
end
$$;

-- Makes up for a trigger that missed the signup of whoever asks, and says what of their profile: there, missing (theirs to
-- make), or none. Users from before the installation are left alone here too.
create or replace function doorkey.enrol_me() returns text
language plpgsql security definer set search_path = '' set lock_timeout = '2s'
as $$
declare
  v_user_id constant uuid := auth.uid();
begin
  if doorkey.enrol(v_user_id) is null then
    return 'none';
  end if;
  if not exists (select from public.profiles as p where p.id = v_user_id) then
    if (select s.owns_profiles from doorkey.settings as s) then
      return 'missing';
    end if;
    perform doorkey.fill_profile(v_user_id);
  end if;
  return case when exists (select from public.profiles as p where p.id = v_user_id) then 'there' else 'none' end;
exception when others then
  -- The host's own table, and the host's own rules.
  return 'none';
end
$$;
revoke all on function doorkey.enrol_me() from public, anon, authenticated, service_role;
grant execute on function doorkey.enrol_me() to authenticated;

-- Says whether there is a profile now. Nothing in it can be chosen.
create or replace function public.create_my_profile() returns boolean
language plpgsql set search_path = '' set lock_timeout = '2s'
as $$
declare
  v_profile constant text := doorkey.enrol_me();
begin
  if v_profile <> 'missing' then
    return v_profile = 'there';
  end if;
  -- As the person: the policy lets in this row and no other. Another request of theirs may have been quicker.
  insert into public.profiles (id, email, full_name)
  select m.id, m.email, m.full_name from doorkey.my_new_profile() as m on conflict (id) do nothing;
  return exists (select from public.profiles as p where p.id = auth.uid());
end
$$;
revoke all on function public.create_my_profile() from public, anon, authenticated, service_role;
grant execute on function public.create_my_profile() to authenticated;
