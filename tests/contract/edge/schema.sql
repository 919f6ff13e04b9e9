-- A small project for the edge to stand in front of: own rows, doors per role, and triggers that
-- write down what they saw of auth.users.
create table public.notes (
  id bigint generated always as identity primary key,
  owner uuid not null default auth.uid() references auth.users (id) on delete cascade,
  body text not null constraint short_body check (length(body) < 50)
);
alter table public.notes enable row level security;
create policy own_notes on public.notes to authenticated
  using (owner = (select auth.uid())) with check (owner = (select auth.uid()));
revoke all on public.notes from anon, authenticated, service_role;
grant select, insert on public.notes to authenticated;
grant select on public.notes to service_role;

create function public.who_am_i() returns jsonb language sql stable as $$
  select jsonb_build_object(
    'session', session_user, 'role', current_user, 'uid', auth.uid(), 'claims', auth.jwt(),
    'headers', nullif(current_setting('request.headers', true), '')::jsonb)
$$;
create function public.for_service_only() returns text language sql as $$ select 'served' $$;
revoke execute on function public.for_service_only() from public, anon, authenticated;
grant execute on function public.for_service_only() to service_role;
create function public.fail_plainly() returns void language plpgsql as
  $$ begin raise exception 'the impossible happened'; end $$;
create function public.refuse_politely() returns void language plpgsql as
  $$ begin raise sqlstate 'PT402' using message = 'insufficient_credits', hint = 'buy some'; end $$;
create function public.divide_by_zero() returns int language sql volatile as
  $$ select (1 / (random() * 0)::int) $$;
create function public.insert_long_note() returns void language sql security definer as
  $$ insert into public.notes (owner, body) select id, repeat('x', 60) from auth.users limit 1 $$;

create table public.seen (
  position bigint generated always as identity primary key,
  user_id uuid, operation text, session_role name, role text, confirmed boolean,
  metadata_type text, app_metadata jsonb
);
create function public.write_down() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if new.email like 'refused%' then
    raise exception 'no such user, please';
  end if;
  insert into public.seen
    (user_id, operation, session_role, role, confirmed, metadata_type, app_metadata)
  values (new.id, tg_op, session_user, new.role, new.email_confirmed_at is not null,
          jsonb_typeof(new.raw_user_meta_data), new.raw_app_meta_data);
  return null;
end
$$;
create trigger zz_write_down after insert or update on auth.users
  for each row execute function public.write_down();
revoke all on public.seen from anon, authenticated, service_role;
