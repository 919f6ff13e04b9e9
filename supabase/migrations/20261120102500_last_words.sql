-- What keys that are gone had spent after all, and whoever had them is charged.
--
-- OpenRouter lists a deleted key no more, and what its last calls cost may show hours after them. But for thirty days it
-- tells what was spent through a key on each day that is over, by the key's hash. So a key that was deleted is asked after
-- once more, on the next day: that is its last word, also of a user who is gone. Lock order as for the sync.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- Whose last word is due; who waits longest first.
create or replace function doorkey.list_last_words(p_rows integer) returns setof text
language plpgsql stable security definer set search_path = ''
as $$
begin
  if p_rows is null or p_rows not between 1 and 1000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Ask for 1 to 1000 keys at a time.';
  end if;
  return query
    select u.key_hash from doorkey.key_usage as u
     where u.last_word_due_at <= now() order by u.last_word_due_at limit p_rows;
end
$$;
revoke all on function doorkey.list_last_words(integer) from public, anon, authenticated, service_role;
grant execute on function doorkey.list_last_words(integer) to service_role;

create or replace function public.list_last_words(key_rows integer) returns setof text
language sql stable set search_path = ''
as $$ select * from doorkey.list_last_words($1); $$;
revoke all on function public.list_last_words(integer) from public, anon, authenticated, service_role;
grant execute on function public.list_last_words(integer) to service_role;

-- What a deleted key spent in all on the days from this one on that are over. What of it nobody knew falls on the day of
-- its deletion, and is charged like all that is unseen. Says the cost charged, negative where it was given back; null:
-- somebody else has the account, and the sync looks again. A second time it changes nothing.
create or replace function doorkey.record_last_word(
  p_key_hash text, p_since date, p_usage_micros numeric, p_request_id text
) returns numeric
language plpgsql security definer set search_path = ''
as $$
declare
  v_usage doorkey.key_usage;
  v_more numeric;
  c_most constant numeric := 1000000000000000;
begin
  -- NaN is more than any number.
  if p_since is null or p_usage_micros is null or p_usage_micros not between 0 and c_most or min_scale(p_usage_micros) > 30 then
    raise sqlstate 'PT422' using message = 'amount_out_of_range', hint = 'Say since when, and 0 to 10^15 micro-dollars.';
  end if;
  select * into v_usage from doorkey.key_usage as u where u.key_hash = p_key_hash and u.last_word_due_at <= now() for update;
  if not found then
    return 0;
  end if;
  select p_usage_micros - coalesce(sum(d.reported_micros), 0) into v_more
    from doorkey.key_usage_days as d where d.key_hash = p_key_hash and d.day >= p_since;
  if v_more > doorkey.usage_tolerance() then
    insert into doorkey.key_usage_days as d (key_hash, day, reported_micros)
    select k.key_hash, (k.deleted_at at time zone 'utc')::date, v_more
      from public.openrouter_user_keys as k where k.key_hash = p_key_hash
    on conflict (key_hash, day) do update set reported_micros = d.reported_micros + excluded.reported_micros;
  else
    v_more := 0;
  end if;
  update doorkey.key_usage as u
     set reported_micros = u.reported_micros + v_more, last_word_due_at = null, is_open = true,
         -- All that is over has been read.
         read_at = greatest(u.read_at, date_trunc('day', now() at time zone 'utc') at time zone 'utc')
   where u.key_hash = p_key_hash;
  return doorkey.judge_usage(p_key_hash, p_request_id);
end
$$;
revoke all on function doorkey.record_last_word(text, date, numeric, text) from public, anon, authenticated, service_role;
grant execute on function doorkey.record_last_word(text, date, numeric, text) to service_role;

create or replace function public.record_last_word(key_hash text, since date, usage_micros numeric, request_id text)
returns numeric
language sql set search_path = ''
as $$ select doorkey.record_last_word($1, $2, $3, $4); $$;
revoke all on function public.record_last_word(text, date, numeric, text) from public, anon, authenticated, service_role;
grant execute on function public.record_last_word(text, date, numeric, text) to service_role;
