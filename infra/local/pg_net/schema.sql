-- The database side of the pg_net stand-in: schema net as pg_net 0.20.4 makes it (supabase.md 1.3, 1.4).
-- Apply it whole, in one transaction, as a superuser (supabase_admin), before the host's migrations. It can be repeated.
--
-- The surprising thing: hosted lets every role read and write these tables, queued headers and their secrets included.
-- That is pg_net's own choice, kept here so that what leaks there leaks here too.
--
-- `create extension pg_net` cannot work on a server without its library, so a migration has to guard it:
--     if exists (select from pg_available_extensions where name = 'pg_net') then create extension if not exists pg_net ...
do $$
begin
    if exists (select from pg_extension where extname = 'pg_net') then
        raise exception 'the real pg_net is installed in this database: its stand-in has no place here';
    end if;
    if not (select rolsuper from pg_roles where rolname = current_user) then
        raise exception 'the pg_net stand-in must be owned by a superuser, and % is none', current_user;
    end if;
end
$$;

create schema if not exists net;
grant usage on schema net to public;

do $$
begin
    if to_regtype('net.http_method') is null then
        create domain net.http_method as text
            constraint http_method_check check (lower(value) in ('get', 'post', 'delete'));
    end if;
end
$$;

-- Unlogged, sequence included: after a crash Postgres empties both tables and the ids start at 1 again.
create unlogged table if not exists net.http_request_queue (
    id bigserial,
    method net.http_method not null,
    url text not null,
    headers jsonb,
    body bytea,
    timeout_milliseconds int not null
);

create unlogged table if not exists net._http_response (
    id bigint,
    status_code int,
    content_type text,
    headers jsonb,
    content text,
    timed_out bool,
    error_msg text,
    created timestamptz not null default now()
);
create index if not exists _http_response_created_idx on net._http_response (created);

grant all on net.http_request_queue, net._http_response to public;
grant all on sequence net.http_request_queue_id_seq to public;

-- Ours, not pg_net's. One logged row that outlives a crash of the worker: whether one is running, and since which start of
-- the server. A worker that finds it running under this very server knows that the one before it died (worker.py).
create table if not exists net._stand_in_worker (
    only_row bool primary key default true check (only_row),
    running bool not null,
    server_started_at timestamptz not null
);
revoke all on net._stand_in_worker from public;
insert into net._stand_in_worker (running, server_started_at)
    values (false, pg_postmaster_start_time())
    on conflict do nothing;

create or replace function net._percent_encoded(value text) returns text language sql immutable
as $$
    select coalesce(string_agg(
        case
            when letter ~ '^[A-Za-z0-9._~-]$' then letter
            else upper(regexp_replace(encode(convert_to(letter, 'UTF8'), 'hex'), '(..)', '%\1', 'g'))
        end, '' order by place), '')
    from regexp_split_to_table(value, '') with ordinality as letters (letter, place)
$$;

-- The URL with the parameters in its query, before the fragment. A URL that pg_net refuses raises XX000 in the caller's
-- transaction, as it does there: without scheme or host, with white space, with a port beyond 65535.
create or replace function net._url_with_params(url text, params jsonb) returns text language plpgsql immutable
as $$
declare
    parts text[] := regexp_match(url, '^(https?):/{1,3}([^/?#]+)([^?#]*)(?:\?([^#]*))?(?:#(.*))?$', 'i');
    port text := substring(parts[2] from ':([0-9]*)$');
    extra text;
    query text;
begin
    if url is null then
        return null;  -- the queue's not-null constraint answers
    end if;
    if parts is null or url ~ '[[:space:][:cntrl:]]' or port::numeric > 65535 then
        raise exception using errcode = 'XX000', message = format('invalid URL "%s"', url);
    end if;
    select string_agg(net._percent_encoded(key) || '=' || net._percent_encoded(value), '&')
        into extra
        from jsonb_each_text(params)
        where value is not null;
    query := case
        when parts[4] like '%&' and extra is not null then parts[4] || extra
        else concat_ws('&', nullif(parts[4], ''), extra)
    end;
    return lower(parts[1]) || '://' || parts[2]
        || case when parts[3] = '' then '/' else parts[3] end
        || case when query = '' then '' else '?' || query end
        || coalesce('#' || nullif(parts[5], ''), '');
end
$$;

-- NOTIFY is transactional and folds repeats: the worker hears one bell per transaction, at its commit.
create or replace function net.wake() returns void language sql
as $$
    select pg_catalog.pg_notify('pg_net_wake', '')
$$;

create or replace function net.worker_restart() returns bool language plpgsql
as $$
begin
    perform pg_catalog.pg_notify('pg_net_restart', '');
    return true;
end
$$;

-- Asks for the lock that a live worker holds (worker.py, UP_LOCK): nothing to go stale, and any role may see it.
create or replace function net.check_worker_is_up() returns void language plpgsql
as $$
begin
    if not exists (
        select from pg_catalog.pg_locks
        where locktype = 'advisory' and granted
            and database = (select oid from pg_catalog.pg_database where datname = current_database())
            and (classid::bigint, objid::bigint, objsubid) = (1885822830, 1, 2)
    ) then
        raise exception 'the pg_net stand-in''s worker is not running'
            using hint = 'Start it again: python -m infra.local.pg_net';
    end if;
end
$$;

create or replace function net._enqueue(
    method text, url text, params jsonb, headers jsonb, body jsonb, timeout_milliseconds int
) returns bigint language plpgsql
as $$
declare
    request_id bigint;
begin
    insert into net.http_request_queue (method, url, headers, body, timeout_milliseconds)
        values (
            _enqueue.method,
            net._url_with_params(_enqueue.url, params),
            _enqueue.headers,
            convert_to(_enqueue.body::text, 'UTF8'),
            _enqueue.timeout_milliseconds
        )
        returning id into request_id;
    perform net.wake();
    return request_id;
end
$$;

create or replace function net.http_get(
    url text,
    params jsonb default '{}'::jsonb,
    headers jsonb default '{}'::jsonb,
    timeout_milliseconds int default 5000
) returns bigint language plpgsql
as $$
begin
    return net._enqueue('GET', url, params, headers, null, timeout_milliseconds);
end
$$;

create or replace function net.http_post(
    url text,
    body jsonb default '{}'::jsonb,
    params jsonb default '{}'::jsonb,
    headers jsonb default '{"Content-Type": "application/json"}'::jsonb,
    timeout_milliseconds int default 5000
) returns bigint language plpgsql
as $$
declare
    content_type text := (
        select value from jsonb_each_text(headers) where lower(key) = 'content-type' limit 1
    );
begin
    if content_type is null then
        headers := headers || '{"Content-Type": "application/json"}'::jsonb;
    elsif content_type <> 'application/json' then
        raise exception 'Content-Type header must be "application/json"';
    end if;
    return net._enqueue('POST', url, params, headers, body, timeout_milliseconds);
end
$$;

create or replace function net.http_delete(
    url text,
    params jsonb default '{}'::jsonb,
    headers jsonb default '{}'::jsonb,
    timeout_milliseconds int default 5000,
    body jsonb default null
) returns bigint language plpgsql
as $$
begin
    return net._enqueue('DELETE', url, params, headers, body, timeout_milliseconds);
end
$$;
