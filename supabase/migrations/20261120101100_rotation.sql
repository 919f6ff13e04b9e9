-- A user asks for a new key in the place of the one they have.
--
-- Asking only states the wish; provisioning does the rest, in the order that next_key_action gives.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- A leaked key can be replaced at once, and again; whoever does it in a loop has more keys made than anybody needs.
create or replace function doorkey.request_key_rotation(p_user_id uuid, p_grace_seconds integer, p_request_id text)
returns text
language plpgsql security definer set search_path = ''
as $$
declare
  v_row doorkey.provisioning;
  v_max_an_hour constant integer := 5;
  v_grace_seconds integer;
  v_oldest timestamptz;
begin
  if p_grace_seconds not between 0 and 604800 then
    raise sqlstate 'PT422' using message = 'grace_out_of_range', hint = 'A grace period lasts 0 to 604800 seconds.';
  end if;
  select * into v_row from doorkey.provisioning as p where p.user_id = p_user_id for update;
  if v_row.key_hash is null then
    raise sqlstate 'PT404' using message = 'no_key', hint = 'There is no key yet that another one could replace.';
  end if;
  if not (doorkey.desired_key(p_user_id)).is_enabled then
    raise sqlstate 'PT403' using message = 'key_disabled', hint = 'The user is banned or gone.';
  end if;
  v_grace_seconds := coalesce(p_grace_seconds, (select s.rotation_grace_seconds from doorkey.settings as s));
  if v_row.rotation_grace_seconds is null then
    select min(k.created_at) into v_oldest from (
      select k.created_at from public.openrouter_user_keys as k
       where k.user_id = p_user_id and k.created_at > now() - interval '1 hour'
       order by k.created_at desc limit v_max_an_hour) as k
    having count(*) = v_max_an_hour;
    if v_oldest is not null then
      raise sqlstate 'PT429' using message = 'rotated_too_often',
        hint = ceil(extract(epoch from v_oldest + interval '1 hour' - now()))::text;
    end if;
  end if;
  -- Asked twice before it was done: still one new key, and the shorter time.
  update doorkey.provisioning as p
     set rotation_grace_seconds = least(p.rotation_grace_seconds, v_grace_seconds)
   where p.user_id = p_user_id;
  perform doorkey.want(p_user_id);
  perform doorkey.write_audit('api', 'key.rotation_requested', p_user_id, p_request_id,
    jsonb_build_object('key_hash', v_row.key_hash, 'grace_seconds', v_grace_seconds));
  return (select p.state::text from doorkey.provisioning as p where p.user_id = p_user_id);
end
$$;
revoke all on function doorkey.request_key_rotation(uuid, integer, text) from public, anon, authenticated, service_role;
grant execute on function doorkey.request_key_rotation(uuid, integer, text) to service_role;

create or replace function public.request_key_rotation(user_id uuid, grace_seconds integer, request_id text)
returns text
language sql set search_path = ''
as $$ select doorkey.request_key_rotation($1, $2, $3); $$;
revoke all on function public.request_key_rotation(uuid, integer, text) from public, anon, authenticated, service_role;
grant execute on function public.request_key_rotation(uuid, integer, text) to service_role;
