-- What the database and the functions must agree on: the secret that signs the hints, and the keys that seal.
--
-- The secret goes in and never comes out: whoever compares the two sides gets a fingerprint. A leaked service key is not
-- enough to change anything here: these doors also ask for the SHA-256 of the signing secret, which only the functions'
-- environment gives.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- SHA-256 in hex. Null: there is no secret.
create or replace function doorkey.digest_secret(p_secret text) returns text
language sql immutable set search_path = ''
as $$ select encode(sha256(convert_to(p_secret, 'UTF8')), 'hex'); $$;
revoke all on function doorkey.digest_secret(text) from public, anon, authenticated, service_role;

-- Here, because from here on there are fingerprints.
create or replace trigger note_settings after insert or update or delete on doorkey.settings
  for each row execute function doorkey.note_settings();
create or replace trigger note_settings_emptied before truncate on doorkey.settings
  for each statement execute function doorkey.note_truncation();

create or replace function doorkey.check_proof(p_proof text) returns void
language plpgsql stable security definer set search_path = ''
as $$
begin
  if not exists (select from doorkey.settings as s where doorkey.digest_secret(s.webhook_secret) = p_proof) then
    raise sqlstate 'PT409' using message = 'secret_not_known',
      hint = 'Send the SHA-256 of the secret that signs at present; another one does now.';
  end if;
end
$$;
revoke all on function doorkey.check_proof(text) from public, anon, authenticated, service_role;

-- Where the hints go, and a fingerprint of what signs them: enough to compare, not to prove anything.
create or replace function doorkey.connection()
returns table (webhook_url text, webhook_secret_fingerprint text)
language sql stable security definer set search_path = ''
as $$
  select s.webhook_url, left(doorkey.digest_secret(s.webhook_secret), 16) from doorkey.settings as s;
$$;
revoke all on function doorkey.connection() from public, anon, authenticated, service_role;
grant execute on function doorkey.connection() to service_role;

create or replace function public.get_doorkey_connection()
returns table (webhook_url text, webhook_secret_fingerprint text)
language sql stable set search_path = ''
as $$ select * from doorkey.connection(); $$;
revoke all on function public.get_doorkey_connection() from public, anon, authenticated, service_role;
grant execute on function public.get_doorkey_connection() to service_role;

-- Stores address and secret together. Repeatable with the same arguments; p_proof is null exactly when there is no
-- secret yet. Everything is checked before it is stored: a violated constraint would quote the whole row.
create or replace function doorkey.store_connection(
  p_webhook_url text, p_webhook_secret text, p_proof text, p_request_id text
) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  v_settings doorkey.settings;
  v_secret_bytes integer;
begin
  if p_webhook_url is null or p_webhook_url !~ '^https?://[^\s@]+$' then
    raise sqlstate 'PT422' using message = 'webhook_url_invalid', hint = 'An http or https address, without a user.';
  end if;
  begin
    v_secret_bytes := length(decode(substr(p_webhook_secret, 7), 'base64'));
  exception when invalid_parameter_value then
    v_secret_bytes := null;
  end;
  if p_webhook_secret !~ '^whsec_[A-Za-z0-9+/]{32,88}={0,2}$' or coalesce(v_secret_bytes, 0) not between 24 and 64 then
    raise sqlstate 'PT422' using message = 'webhook_secret_invalid', hint = 'whsec_ and base64 of 24 to 64 bytes.';
  end if;
  select * into v_settings from doorkey.settings for update;
  if v_settings.webhook_url = p_webhook_url and v_settings.webhook_secret = p_webhook_secret then
    return;
  end if;
  if v_settings.webhook_secret is not null or p_proof is not null then
    perform doorkey.check_proof(p_proof);
  end if;
  update doorkey.settings set webhook_url = p_webhook_url, webhook_secret = p_webhook_secret;
  perform doorkey.write_audit('operator', 'connection.stored', null, p_request_id,
    jsonb_build_object('fingerprint', left(doorkey.digest_secret(p_webhook_secret), 16)));
end
$$;
revoke all on function doorkey.store_connection(text, text, text, text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.store_connection(text, text, text, text) to service_role;

create or replace function public.store_doorkey_connection(
  webhook_url text, webhook_secret text, proof text, request_id text
) returns void
language sql set search_path = ''
as $$ select doorkey.store_connection($1, $2, $3, $4); $$;
revoke all on function public.store_doorkey_connection(text, text, text, text)
  from public, anon, authenticated, service_role;
grant execute on function public.store_doorkey_connection(text, text, text, text) to service_role;

-- How many secrets each sealing key has sealed; the key's id stands in the sealed secret.
create or replace function doorkey.count_sealed_secrets()
returns table (sealing_key_id text, sealed_rows bigint)
language sql stable security definer set search_path = ''
as $$
  select split_part(s.sealed_secret, '.', 2), count(*) from doorkey.sealed_secrets as s group by 1 order by 1;
$$;
revoke all on function doorkey.count_sealed_secrets() from public, anon, authenticated, service_role;
grant execute on function doorkey.count_sealed_secrets() to service_role;

create or replace function public.count_sealed_secrets()
returns table (sealing_key_id text, sealed_rows bigint)
language sql stable set search_path = ''
as $$ select * from doorkey.count_sealed_secrets(); $$;
revoke all on function public.count_sealed_secrets() from public, anon, authenticated, service_role;
grant execute on function public.count_sealed_secrets() to service_role;

-- A page of all of them, in the order of the hashes and after the given one. By sealing key there is no index: every signup
-- would pay for what happens once a year.
create or replace function doorkey.list_sealed_secrets(p_after text, p_rows integer)
returns table (key_hash text, user_id uuid, sealed_secret text)
language plpgsql stable security definer set search_path = ''
as $$
begin
  if p_rows is null or p_rows not between 1 and 1000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Ask for 1 to 1000 rows.';
  end if;
  return query
    select page.key_hash, k.user_id, page.sealed_secret
      from (select s.key_hash, s.sealed_secret from doorkey.sealed_secrets as s
             where s.key_hash > coalesce(p_after, '')
             order by s.key_hash limit p_rows) as page
      join public.openrouter_user_keys as k on k.key_hash = page.key_hash
     order by page.key_hash;
end
$$;
revoke all on function doorkey.list_sealed_secrets(text, integer) from public, anon, authenticated, service_role;
grant execute on function doorkey.list_sealed_secrets(text, integer) to service_role;

create or replace function public.list_sealed_secrets(after_key_hash text, listed_rows integer)
returns table (key_hash text, user_id uuid, sealed_secret text)
language sql stable set search_path = ''
as $$ select * from doorkey.list_sealed_secrets($1, $2); $$;
revoke all on function public.list_sealed_secrets(text, integer) from public, anon, authenticated, service_role;
grant execute on function public.list_sealed_secrets(text, integer) to service_role;

-- Puts a newly sealed secret in the place of exactly the one that was opened; how many. What became another, or went,
-- meanwhile is left alone.
create or replace function doorkey.reseal_secrets(
  p_key_hashes text[], p_old_sealed text[], p_new_sealed text[], p_proof text
) returns integer
language plpgsql security definer set search_path = ''
as $$
declare
  v_count integer;
begin
  if p_key_hashes is null or cardinality(p_key_hashes) > 1000
     or cardinality(p_key_hashes) is distinct from cardinality(p_old_sealed)
     or cardinality(p_key_hashes) is distinct from cardinality(p_new_sealed) then
    raise sqlstate 'PT422' using message = 'page_out_of_range',
      hint = 'Up to 1000 keys, each with its sealed secret as it was and as it shall be.';
  end if;
  if exists (select from unnest(p_new_sealed) as n (sealed)
              where n.sealed is null or n.sealed !~ '^v1\.[a-z0-9]+\.[A-Za-z0-9_-]+$') then
    raise sqlstate 'PT422' using message = 'not_sealed', hint = 'Only sealed secrets are stored.';
  end if;
  perform doorkey.check_proof(p_proof);
  -- In one order: two who do the same page at once must not wait for each other.
  perform from doorkey.sealed_secrets as s where s.key_hash = any (p_key_hashes) order by s.key_hash for update;
  update doorkey.sealed_secrets as s set sealed_secret = n.new_sealed
    from unnest(p_key_hashes, p_old_sealed, p_new_sealed) as n (key_hash, old_sealed, new_sealed)
   where s.key_hash = n.key_hash and s.sealed_secret = n.old_sealed;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
revoke all on function doorkey.reseal_secrets(text[], text[], text[], text)
  from public, anon, authenticated, service_role;
grant execute on function doorkey.reseal_secrets(text[], text[], text[], text) to service_role;

create or replace function public.reseal_secrets(
  key_hashes text[], old_sealed text[], new_sealed text[], proof text
) returns integer
language sql set search_path = ''
as $$ select doorkey.reseal_secrets($1, $2, $3, $4); $$;
revoke all on function public.reseal_secrets(text[], text[], text[], text)
  from public, anon, authenticated, service_role;
grant execute on function public.reseal_secrets(text[], text[], text[], text) to service_role;
