-- What must hold at every commit and not only at the end: noted by triggers of the test's own, as it happens.
create schema crash;
create table crash.noted (invariant text not null, user_id uuid not null, detail text not null);

-- Whatever an attempt records, it must be the one that holds the row.
create function crash.watch_records() returns trigger language plpgsql security definer as $$
begin
  insert into crash.noted
  select 'only the current attempt records', new.user_id,
         format('%s by attempt %s, while %s was at it', new.action, new.detail ->> 'attempt', p.attempt)
    from doorkey.provisioning as p
   where p.user_id = new.user_id and p.attempt <> (new.detail ->> 'attempt')::integer;
  return null;
end
$$;
create trigger watch_records after insert on doorkey.audit_log for each row
  when (new.action in ('key.created', 'key.updated', 'key.deleted', 'attempt.failed'))
  execute function crash.watch_records();

create function crash.watch_rows() returns trigger language plpgsql security definer as $$
begin
  if new.state = 'ready' and new.wanted <> new.claimed then
    insert into crash.noted values ('ready only as wanted', new.user_id,
      format('wanted %s, claimed %s', new.wanted, new.claimed));
  end if;
  if old.state = 'working' and new.attempt > old.attempt and old.lease_expires_at > now() then
    insert into crash.noted values ('a lease keeps others out', new.user_id,
      format('attempt %s took over from %s', new.attempt, old.attempt));
  end if;
  if old.state = 'gone' and new.state <> 'gone' then
    insert into crash.noted values ('gone is gone', new.user_id, format('became %s', new.state));
  end if;
  return null;
end
$$;
create trigger watch_rows after update on doorkey.provisioning for each row execute function crash.watch_rows();
