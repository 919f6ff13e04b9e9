-- Lite made the auth schema as whoever it was; on hosted it belongs to supabase_auth_admin, and `postgres` may use
-- the tables, trigger included, without owning them. Run as supabase_admin after Lite's first start, repeatable.

alter schema auth owner to supabase_auth_admin;
do $$
declare
  v_object record;
begin
  for v_object in select relname from pg_class where relnamespace = 'auth'::regnamespace and relkind in ('r', 'p') loop
    execute format('alter table auth.%I owner to supabase_auth_admin', v_object.relname);
  end loop;
  for v_object in select oid::regprocedure as name from pg_proc where pronamespace = 'auth'::regnamespace loop
    execute format('alter function %s owner to supabase_auth_admin', v_object.name);
    execute format('grant execute on function %s to public', v_object.name);
  end loop;
end
$$;
grant usage on schema auth to postgres, anon, authenticated, service_role;
grant all on all tables in schema auth to postgres;

-- The CLI keeps its history as `postgres`.
alter schema supabase_migrations owner to postgres;
do $$
declare
  v_object record;
begin
  for v_object in select relname from pg_class where relnamespace = 'supabase_migrations'::regnamespace and relkind = 'r' loop
    execute format('alter table supabase_migrations.%I owner to postgres', v_object.relname);
  end loop;
end
$$;
