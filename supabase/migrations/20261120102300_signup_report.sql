-- How signups fare, day by day: who was provisioned by which of the three chances, who waits, and how long it took.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- Rows come in by time, so a few bytes for each hundred pages tell days apart. A b-tree would be written to several times
-- in every signup, because each new state of a row is a new version of it.
-- squawk-ignore require-concurrent-index-creation
create index if not exists provisioning_created
  on doorkey.provisioning using brin (created_at) with (pages_per_range = 32);

-- Each signup is counted in one column between `eager` and `gone`. What a backfill enrolled signed up at another time, and
-- is left out. The seconds count from when a key was wanted: how long somebody took to confirm their address is theirs.
create or replace function doorkey.signup_report(p_from_day date, p_to_day date)
returns table (
  day date, signups bigint, eager bigint, lazy bigint, by_sweep bigint, by_unknown bigint, waiting bigint,
  under_way bigint, dead bigint, gone bigint, median_seconds double precision, p95_seconds double precision
)
language plpgsql stable security definer set search_path = ''
as $$
begin
  if p_from_day is null or p_to_day is null or p_to_day - p_from_day not between 0 and 365 then
    raise sqlstate 'PT422' using message = 'days_out_of_range', hint = 'Report on 1 to 366 days, the first one first.';
  end if;
  return query
    with counted as (
      select (p.created_at at time zone 'UTC')::date as day,
             case when p.ready_at is not null then coalesce(p.provisioned_by, 'unknown')
                  when p.state in ('due', 'working', 'ready') then 'under_way'
                  else p.state::text end as kind,
             extract(epoch from p.ready_at - p.wanted_at)::double precision as seconds
        from doorkey.provisioning as p
       where p.created_at >= p_from_day::timestamp at time zone 'UTC'
         and p.created_at < (p_to_day + 1)::timestamp at time zone 'UTC'
         and p.backfill_at is null
         -- Kept by an uninstallation, with a key from before: no signup either.
         and (p.ready_at is null or p.ready_at >= p.created_at)
    ), summed as (
      select c.day, count(*) as signups,
             count(*) filter (where c.kind = 'eager') as eager,
             count(*) filter (where c.kind = 'lazy') as lazy,
             count(*) filter (where c.kind = 'sweep') as by_sweep,
             count(*) filter (where c.kind = 'unknown') as by_unknown,
             count(*) filter (where c.kind = 'waiting') as waiting,
             count(*) filter (where c.kind = 'under_way') as under_way,
             count(*) filter (where c.kind = 'dead') as dead,
             count(*) filter (where c.kind = 'gone') as gone,
             percentile_cont(array[0.5, 0.95]) within group (order by c.seconds)
               filter (where c.seconds is not null) as seconds
        from counted as c group by c.day
    )
    select d.day::date, coalesce(s.signups, 0), coalesce(s.eager, 0), coalesce(s.lazy, 0), coalesce(s.by_sweep, 0),
           coalesce(s.by_unknown, 0), coalesce(s.waiting, 0), coalesce(s.under_way, 0), coalesce(s.dead, 0),
           coalesce(s.gone, 0), s.seconds[1], s.seconds[2]
      from generate_series(p_from_day::timestamp, p_to_day::timestamp, interval '1 day') as d (day)
      left join summed as s on s.day = d.day::date
     order by d.day;
end
$$;
revoke all on function doorkey.signup_report(date, date) from public, anon, authenticated, service_role;
grant execute on function doorkey.signup_report(date, date) to service_role;

create or replace function public.report_signups(from_day date, to_day date)
returns table (
  day date, signups bigint, eager bigint, lazy bigint, by_sweep bigint, by_unknown bigint, waiting bigint,
  under_way bigint, dead bigint, gone bigint, median_seconds double precision, p95_seconds double precision
)
language sql stable set search_path = ''
as $$ select * from doorkey.signup_report($1, $2); $$;
revoke all on function public.report_signups(date, date) from public, anon, authenticated, service_role;
grant execute on function public.report_signups(date, date) to service_role;
