-- Installed again over a ledger that an uninstallation kept: whoever still has a live key is served again, with that key.
--
-- Without this a second key would be made for them. Its secret is no more, so they see it again only by replacing it; those
-- who have no key are users from before, whom `doorkey backfill` serves. Everywhere else this finds nobody.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

insert into doorkey.provisioning as p (user_id, state, attempt, key_hash, ready_at, revisit_at)
select k.user_id,
       -- The sweep looks whether it is as it should be, and deletes it if the user is gone.
       case when bool_or(k.retires_at is null) then 'ready' else 'due' end::doorkey.provisioning_state,
       max(k.attempt),
       min(k.key_hash) filter (where k.retires_at is null),
       min(k.created_at) filter (where k.retires_at is null),
       min(k.retires_at)
  from public.openrouter_user_keys as k
 where k.status <> 'deleted'
   and not exists (select from doorkey.provisioning as known where known.user_id = k.user_id)
 group by k.user_id
on conflict (user_id) do nothing;

do $$
begin
  -- Our own profiles were made anew. On a host's, the next change of the key is written there.
  if (select s.owns_profiles from doorkey.settings as s) then
    insert into public.profiles as p
      (id, email, full_name, openrouter_key_name, openrouter_key_limit, openrouter_provisioning_status)
    select u.id, u.email, left(coalesce(u.raw_user_meta_data ->> 'full_name', u.raw_user_meta_data ->> 'name'), 500),
           k.key_name, k.limit_micros / 1000000.0, k.status
      from doorkey.provisioning as w
      join public.openrouter_user_keys as k on k.key_hash = w.key_hash
      join auth.users as u on u.id = w.user_id and u.deleted_at is null
     where not exists (select from public.profiles as known where known.id = u.id)
    on conflict (id) do nothing;
  end if;
end
$$;
