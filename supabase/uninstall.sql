-- Takes doorkey out of a database again. `doorkey uninstall` runs it in one transaction, as role `postgres`.
--
-- `set local doorkey.keeps_ledger = 'on'` before it keeps the tables of money, closed, as an archive in schema `doorkey`;
-- the migrations find it there again. What a host has built on something of ours stops it with an error, because nothing
-- cascades, with one exception: the triggers on auth.users go with their functions. Only the owner of that table may drop
-- a trigger on it, but whoever owns a function may drop that.

do $$
declare
  -- The same as at the top of the first migration; a test compares. (Names by which nothing is there do no harm.)
  c_doors constant text[] := array[
    'list_last_words', 'record_last_word', 'report_signups', 'grant_promised_credits', 'list_reviews', 'list_welcome_offers', 'add_welcome_offer', 'end_welcome_offer', 'list_plans', 'set_plan',
    'list_welcome_arms', 'set_welcome_arm', 'list_disposable_domains', 'set_disposable_domain', 'release_welcome', 'claw_back_welcome',
    'claim_provisioning', 'finish_provisioning', 'finish_key_update', 'finish_key_deletion', 'defer_provisioning',
    'hold_provisioning', 'redrive_provisioning', 'start_sweep', 'list_due_provisioning', 'classify_keys', 'recheck_key',
    'get_my_account', 'reveal_key', 'get_doorkey_health', 'request_key_rotation', 'preview_backfill', 'backfill_users',
    'get_backfill_progress', 'get_doorkey_connection', 'store_doorkey_connection', 'count_sealed_secrets',
    'list_sealed_secrets', 'reseal_secrets', 'reserve_credits', 'settle_credits', 'release_credits', 'expire_holds',
    'post_credits', 'reverse_transaction', 'verify_ledger', 'verify_receipts',
    'renew_periods', 'expire_lots', 'change_plan',
    'claim_my_provisioning', 'finish_my_provisioning', 'finish_my_key_update', 'finish_my_key_deletion',
    'defer_my_provisioning', 'hold_my_provisioning', 'recheck_my_key', 'reveal_my_key', 'request_my_key_rotation',
    'reserve_my_credits', 'settle_my_hold', 'release_my_hold', 'list_my_transactions', 'list_transactions', 'get_account', 'get_usage', 'get_my_usage', 'create_my_profile',
    'prove_webhook_secret', 'begin_usage_sync', 'record_usage', 'report_drift'];
  c_public_tables constant text[] := array['plans', 'credit_accounts', 'credit_transactions', 'openrouter_user_keys'];
  c_kept_tables constant text[] := c_public_tables || array[
    'credit_lots', 'credit_holds', 'credit_takings', 'posting_answers', 'plan_changes', 'audit_log',
    'unheld_costs', 'key_usage', 'key_usage_days', 'welcomes'];
  c_profile_columns constant text[] := array[
    'openrouter_key_name', 'openrouter_key_limit', 'openrouter_provisioning_status'];
  c_own_profile constant text[] := c_profile_columns || array['id', 'email', 'full_name', 'created_at', 'updated_at'];
  v_keeps_ledger constant boolean := coalesce(current_setting('doorkey.keeps_ledger', true), '') = 'on';
  -- Uninstalled before, with the ledger kept: then nothing in `public` is ours.
  v_is_archive constant boolean := to_regclass('doorkey.settings') is null;
  v_owns_profiles boolean := false;
  v_names text;
begin
  if obj_description(to_regnamespace('doorkey')::oid, 'pg_namespace') is distinct from 'doorkey: everything internal' then
    raise exception 'doorkey is not installed here';
  end if;
  -- So that names come out with their schemas.
  perform set_config('search_path', '', true);
  if not v_is_archive then
    select s.owns_profiles into v_owns_profiles from doorkey.settings as s;
  end if;

  -- auth.users first, then provisioning: the order in which signups and the functions come by.
  for v_names in
    select p.oid::regprocedure::text from pg_catalog.pg_proc as p
     where p.pronamespace = 'doorkey'::regnamespace and p.prorettype = 'trigger'::regtype and starts_with(p.proname, 'on_user_')
     order by 1
  loop
    execute 'drop function ' || v_names || ' cascade';
  end loop;
  select string_agg(c.oid::regclass::text, ', ' order by c.relname <> 'provisioning', c.relname) into v_names
    from pg_catalog.pg_class as c
   where c.relkind = 'r'
     and (c.relnamespace = 'doorkey'::regnamespace
          or (not v_is_archive and c.relnamespace = 'public'::regnamespace and c.relname = any (c_public_tables)));
  execute 'lock table ' || v_names || ' in access exclusive mode';
  -- Which key is in use is said nowhere from here on: what accounts have counted for theirs becomes the keys' own.
  if v_keeps_ledger and not v_is_archive then
    update public.openrouter_user_keys as k set charged_cost_micros = c.cost_micros
      from doorkey.key_costs as c where c.key_hash = k.key_hash and c.cost_micros <> k.charged_cost_micros;
    update public.credit_accounts set key_cost_micros = 0 where key_cost_micros > 0;
  end if;
  for v_names in
    select p.oid::regprocedure::text from pg_catalog.pg_proc as p
     where p.pronamespace = 'doorkey'::regnamespace and p.prorettype = 'trigger'::regtype order by 1
  loop
    execute 'drop function ' || v_names || ' cascade';
  end loop;

  -- It asks a function of ours. If the table stays with the host, people write to it only as the host says.
  if v_owns_profiles and to_regclass('public.profiles') is not null then
    drop policy if exists "Users may create their own missing profile" on public.profiles;
    revoke insert (id, email, full_name) on table public.profiles from authenticated;
  end if;
  select string_agg(p.oid::regprocedure::text, ', ') into v_names
    from pg_catalog.pg_proc as p
   where p.pronamespace = 'doorkey'::regnamespace
      -- A host may have made an overload of its own since: every door of ours calls what is behind it.
      or (not v_is_archive and p.pronamespace = 'public'::regnamespace and p.proname = any (c_doors)
          and p.prosrc like '%doorkey.%');
  if v_names is not null then
    execute 'drop function ' || v_names;
  end if;

  drop view if exists doorkey.key_costs;
  -- The entries of the ledger are told from its transactions: they stay with them.
  if not v_keeps_ledger then
    drop view if exists doorkey.ledger_entries;
  end if;

  select string_agg(c.oid::regclass::text, ', ') into v_names
    from pg_catalog.pg_class as c
   where c.relkind = 'r'
     and (c.relnamespace = 'doorkey'::regnamespace
          or (not v_is_archive and c.relnamespace = 'public'::regnamespace and c.relname = any (c_public_tables)))
     and not (v_keeps_ledger and c.relname = any (c_kept_tables));
  if v_names is not null then
    execute 'drop table ' || v_names;
  end if;

  select string_agg(t.oid::regtype::text, ', ') into v_names
    from pg_catalog.pg_type as t
    left join pg_catalog.pg_class as c on c.oid = t.typrelid
   where t.typnamespace = 'doorkey'::regnamespace and (t.typtype = 'e' or c.relkind = 'c')
     and not (v_keeps_ledger and t.typname in ('system_account', 'transaction_type', 'hold_state'));
  if v_names is not null then
    execute 'drop type ' || v_names;
  end if;

  -- A table that we made and nobody took over goes. Where the host has added to it, or a function of theirs speaks of it
  -- (their own trigger at signup, for one), it is theirs by now.
  if v_owns_profiles then
    begin
      if exists (select from pg_catalog.pg_attribute as a where a.attrelid = 'public.profiles'::regclass
                    and a.attnum > 0 and not a.attisdropped and a.attname <> all (c_own_profile))
         or exists (select from pg_catalog.pg_trigger as t
                     where t.tgrelid = 'public.profiles'::regclass and not t.tgisinternal)
         or exists (select from pg_catalog.pg_policy as p where p.polrelid = 'public.profiles'::regclass
                       and p.polname <> 'Users may read their own profile')
         or exists (select from pg_catalog.pg_proc as p
                     where p.proowner = (select r.oid from pg_catalog.pg_roles as r where r.rolname = current_user)
                       and p.prosrc ~* '\mprofiles\M') then
        raise exception using errcode = 'ZK002';
      end if;
      drop table public.profiles;
    exception when sqlstate 'ZK002' or dependent_objects_still_exist then
      comment on table public.profiles is null;
    end;
  end if;
  -- The columns that we added say so; one by the same name that was there before doesn't.
  select string_agg(format('drop column %I', a.attname), ', ') into v_names
    from pg_catalog.pg_attribute as a
   where a.attrelid = to_regclass('public.profiles') and a.attnum > 0 and not a.attisdropped
     and a.attname = any (c_profile_columns)
     and (v_owns_profiles or starts_with(col_description(a.attrelid, a.attnum), 'doorkey: '));
  if v_names is not null then
    execute 'alter table public.profiles ' || v_names;
  end if;

  if not v_keeps_ledger then
    drop schema doorkey;
    return;
  end if;
  if not v_is_archive then
    for v_names in
      select format('drop policy %I on %s', p.polname, p.polrelid::regclass) from pg_catalog.pg_policy as p
        join pg_catalog.pg_class as c on c.oid = p.polrelid
       where c.relnamespace = 'public'::regnamespace and c.relname = any (c_public_tables)
    loop
      execute v_names;
    end loop;
    foreach v_names in array c_public_tables loop
      execute format('revoke all on table public.%I from public, anon, authenticated, service_role', v_names);
      execute format('alter table public.%I set schema doorkey', v_names);
    end loop;
  end if;
  revoke all on schema doorkey from public, anon, authenticated, service_role;
end
$$;
