-- How a new user is welcomed where a plan alone does not say it: offers, experiments, referrals, credits in parts, and a
-- review of who looks as if they had been here before. Everything is off until a setting says otherwise.
--
-- What decides comes from the user's own metadata, in which anything may stand: what we don't know counts as not said, and
-- nothing of it is an error. What is not given at once is a promise, a row that says what it waits for; a held welcome is
-- one too. So a key is made for everybody, if need be with nothing to spend.

set local lock_timeout = '5s';
set local statement_timeout = '60s';

alter table doorkey.settings
  -- Whether metadata (`campaign`, else `referral_source`) chooses the welcome.
  add column if not exists welcome_offers boolean not null default false,
  -- Whose arms share out those who come without an offer. Null: no experiment.
  add column if not exists welcome_experiment text,
  -- What both sides get when somebody comes with a `referral_code`, and how often one may bring somebody. Null: nothing.
  add column if not exists referral_bonus_micros bigint check (referral_bonus_micros between 1 and 1000000000000),
  add column if not exists referral_bonus_days integer default 30 check (referral_bonus_days > 0),
  add column if not exists max_referrals integer not null default 10 check (max_referrals > 0),
  -- How much of a welcome comes at once, and what the rest waits for. Null: all of it.
  add column if not exists welcome_at_once_percent smallint check (welcome_at_once_percent between 1 and 99),
  add column if not exists welcome_rest_on text not null default 'first_call'
    check (welcome_rest_on in ('confirmed', 'first_call')),
  -- Whose welcome is held until an operator has looked.
  add column if not exists reviews_mail boolean not null default false,
  add column if not exists reviews_same_person boolean not null default false,
  add column if not exists max_signups_per_range integer check (max_signups_per_range > 0),
  -- What addresses are hashed with. (One row to be rewritten.)
  -- squawk-ignore adding-field-with-default
  add column if not exists person_salt text not null default gen_random_uuid()::text || gen_random_uuid()::text,
  add column if not exists promise_cursor bigint not null default 0;

-- What operators offer: by the word that an app puts into its signups.
create table if not exists doorkey.welcome_offers (
  code text primary key check (code ~ '^[a-z0-9][a-z0-9_.-]{0,62}$'),
  amount_micros bigint not null check (amount_micros between 0 and 1000000000000),
  -- How long they last. Null: for ever.
  days integer check (days > 0),
  starts_at timestamptz not null default now(),
  ends_at timestamptz check (ends_at > starts_at),
  -- Only for so many; counted only where there is a bound, because the count makes them wait for each other.
  max_grants integer check (max_grants > 0),
  granted integer not null default 0 check (granted >= 0 and granted <= max_grants)
);
alter table doorkey.welcome_offers enable row level security;
revoke all on table doorkey.welcome_offers from public, anon, authenticated, service_role;

create table if not exists doorkey.welcome_arms (
  experiment text not null check (length(experiment) between 1 and 63),
  arm text not null check (length(arm) between 1 and 63),
  weight integer not null default 1 check (weight between 0 and 1000000),
  amount_micros bigint not null check (amount_micros between 0 and 1000000000000),
  days integer check (days > 0),
  primary key (experiment, arm)
);
alter table doorkey.welcome_arms enable row level security;
revoke all on table doorkey.welcome_arms from public, anon, authenticated, service_role;

-- Mail that anybody gets without being anybody. A beginning: operators add to it.
create table if not exists doorkey.disposable_domains (
  domain text primary key check (domain = lower(domain) and domain ~ '^[^@[:space:]]+\.[^@[:space:]]+$')
);
alter table doorkey.disposable_domains enable row level security;
revoke all on table doorkey.disposable_domains from public, anon, authenticated, service_role;
insert into doorkey.disposable_domains (domain)
select unnest(array[
  '10minutemail.com', 'discard.email', 'dispostable.com', 'emailondeck.com', 'fakeinbox.com', 'getnada.com',
  'guerrillamail.com', 'maildrop.cc', 'mailinator.com', 'mailnesia.com', 'mintemail.com', 'moakt.com', 'mytemp.email',
  'sharklasers.com', 'spamgourmet.com', 'temp-mail.org', 'tempmail.com', 'tempr.email', 'throwawaymail.com',
  'trashmail.com', 'yopmail.com'])
on conflict (domain) do nothing;

-- Edits are noted as of plans. A claim that counts what it takes of an offer is none.
create or replace trigger note_offer before update on doorkey.welcome_offers
  for each row
  when (new.granted <> old.granted + 1 or to_jsonb(new) - 'granted' <> to_jsonb(old) - 'granted')
  execute function doorkey.note_edit('offer');
create or replace trigger note_offer_row after insert or delete on doorkey.welcome_offers
  for each row execute function doorkey.note_edit('offer');
create or replace trigger note_arm after insert or update or delete on doorkey.welcome_arms
  for each row execute function doorkey.note_edit('arm');
create or replace trigger note_domain after insert or update or delete on doorkey.disposable_domains
  for each row execute function doorkey.note_edit('disposable_domain');
create or replace trigger note_offers_emptied before truncate on doorkey.welcome_offers
  for each statement execute function doorkey.note_truncation();
create or replace trigger note_arms_emptied before truncate on doorkey.welcome_arms
  for each statement execute function doorkey.note_truncation();
create or replace trigger note_domains_emptied before truncate on doorkey.disposable_domains
  for each statement execute function doorkey.note_truncation();

-- How each user was welcomed since any of this was on. Outlives the user, as money does.
create table if not exists doorkey.welcomes (
  user_id uuid primary key,
  amount_micros bigint not null check (amount_micros >= 0),
  offer_code text,
  experiment text,
  arm text,
  referrer_id uuid check (referrer_id <> user_id),
  review text not null check (review in ('none', 'held', 'released', 'refused', 'clawed_back')),
  review_reasons text[] not null default '{}',
  created_at timestamptz not null default now(),
  reviewed_at timestamptz,
  check ((experiment is null) = (arm is null)),
  check ((review in ('none', 'held')) = (reviewed_at is null)),
  check (review <> 'held' or cardinality(review_reasons) > 0)
);
create index if not exists welcomes_held on doorkey.welcomes (created_at, user_id) where review = 'held';
create index if not exists welcomes_referrer on doorkey.welcomes (referrer_id) where referrer_id is not null;
alter table doorkey.welcomes enable row level security;
revoke all on table doorkey.welcomes from public, anon, authenticated, service_role;

-- Credits that are to come, to whom, because of whose welcome, and once what has happened. Gone when they are given.
create table if not exists doorkey.promised_credits (
  id bigint generated always as identity primary key,
  -- Bare: who writes a promise to somebody touches nothing of theirs.
  user_id uuid not null,
  about_user_id uuid not null references doorkey.welcomes (user_id),
  waits_for text not null check (waits_for in ('review', 'confirmed', 'first_call', 'key')),
  amount_micros bigint not null check (amount_micros > 0),
  days integer check (days > 0),
  idempotency_key text not null unique,
  reason text not null,
  lapses_at timestamptz not null,
  created_at timestamptz not null default now()
);
create index if not exists promised_credits_user on doorkey.promised_credits (user_id);
create index if not exists promised_credits_about on doorkey.promised_credits (about_user_id);
alter table doorkey.promised_credits enable row level security;
revoke all on table doorkey.promised_credits from public, anon, authenticated, service_role;
revoke all on sequence doorkey.promised_credits_id_seq from public, anon, authenticated, service_role;

-- Who was welcomed, by a salted hash of their address: kept when they are gone, and never the address. Whoever has this
-- database can still try addresses one by one.
create table if not exists doorkey.known_people (
  person_hash text primary key,
  user_id uuid not null,
  created_at timestamptz not null default now()
);
alter table doorkey.known_people enable row level security;
revoke all on table doorkey.known_people from public, anon, authenticated, service_role;

-- Where people came from, by a salted hash of the range of their addresses; for a day.
create table if not exists doorkey.signup_ranges (
  user_id uuid primary key,
  range_hash text not null,
  created_at timestamptz not null default now()
);
create index if not exists signup_ranges_range on doorkey.signup_ranges (range_hash, created_at);
create index if not exists signup_ranges_created on doorkey.signup_ranges (created_at);
alter table doorkey.signup_ranges enable row level security;
revoke all on table doorkey.signup_ranges from public, anon, authenticated, service_role;

-- What the user's metadata says, if it is a text that could be a code of ours. Null: nothing.
create or replace function doorkey.said_at_signup(p_metadata jsonb, p_name text) returns text
language sql immutable security definer set search_path = ''
as $$
  select case when jsonb_typeof(p_metadata -> p_name) = 'string' and length(p_metadata ->> p_name) <= 100
              then nullif(lower(btrim(p_metadata ->> p_name)), '') end;
$$;
revoke all on function doorkey.said_at_signup(jsonb, text) from public, anon, authenticated, service_role;

-- The address as the mailbox knows it: no tag after a plus, and no dots where they mean nothing.
create or replace function doorkey.normalise_mail(p_email text) returns text
language sql immutable security definer set search_path = ''
as $$
  select case when m.parts[2] in ('gmail.com', 'googlemail.com')
              then replace(split_part(m.parts[1], '+', 1), '.', '') || '@gmail.com'
              else split_part(m.parts[1], '+', 1) || '@' || m.parts[2] end
    from regexp_match(lower(btrim(p_email)), '^(.+)@([^@]+)$') as m (parts);
$$;
revoke all on function doorkey.normalise_mail(text) from public, anon, authenticated, service_role;

-- By what a person is known again: their mailbox, their phone. In one order, because they are locked in it.
create or replace function doorkey.hash_person(p_email text, p_phone text) returns text[]
language sql stable security definer set search_path = ''
as $$
  select coalesce(array_agg(h.hash order by h.hash), '{}')
    from (
      select encode(sha256(convert_to(s.person_salt || ':' || o.address, 'UTF8')), 'hex') as hash
        from doorkey.settings as s
       cross join (values ('mail:' || doorkey.normalise_mail(p_email)), ('phone:' || nullif(p_phone, ''))) as o (address)
       where o.address is not null
    ) as h;
$$;
revoke all on function doorkey.hash_person(text, text) from public, anon, authenticated, service_role;

-- What there is to say against a mail address.
create or replace function doorkey.doubt_mail(p_email text) returns text[]
language sql stable security definer set search_path = ''
as $$
  select coalesce(array_agg(d.reason), '{}')
    from regexp_match(lower(btrim(p_email)), '^(.+)@([^@]+)$') as m (parts)
   cross join lateral (
     -- Three dots: the first two are how people write their names.
     select 'aliased_mail' as reason
      where strpos(m.parts[1], '+') > 0
         or (m.parts[2] in ('gmail.com', 'googlemail.com')
             and length(m.parts[1]) - length(replace(m.parts[1], '.', '')) >= 3)
     union all
     select 'disposable_mail'
      where exists (select from doorkey.disposable_domains as o
                     where o.domain = m.parts[2] or right(m.parts[2], length(o.domain) + 1) = '.' || o.domain)
   ) as d;
$$;
revoke all on function doorkey.doubt_mail(text) from public, anon, authenticated, service_role;

-- The range that the user's first session came from: 256 addresses, or an IPv6 site. Null: there is no session yet, Auth
-- here keeps no addresses, or it is one of a network of somebody's own, such as a proxy's.
create or replace function doorkey.signup_range(p_user_id uuid) returns text
language plpgsql security definer set search_path = ''
as $$
declare
  v_address inet;
begin
  select s.ip::text::inet into v_address
    from auth.sessions as s where s.user_id = p_user_id order by s.created_at limit 1;
  if v_address is null or v_address <<= any (array[
       '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '169.254.0.0/16', '172.16.0.0/12', '192.168.0.0/16',
       '::1/128', 'fc00::/7', 'fe80::/10']::inet[]) then
    return null;
  end if;
  return network(set_masklen(v_address, case family(v_address) when 4 then 24 else 48 end))::text;
exception
  when undefined_table or undefined_column then
    return null;
  when others then
    -- The check is on and finds nothing: somebody should hear of it.
    perform doorkey.note_trouble('signup_range.not_read', p_user_id, sqlstate, 'auth.sessions');
    return null;
end
$$;
revoke all on function doorkey.signup_range(uuid) from public, anon, authenticated, service_role;

-- Why this welcome should be looked at first. Remembers the user, so that the next one can be compared.
create or replace function doorkey.review_reasons(p_user_id uuid) returns text[]
language plpgsql security definer set search_path = ''
as $$
declare
  v_settings doorkey.settings;
  v_email text;
  v_phone text;
  v_is_anonymous boolean;
  v_reasons text[] := '{}';
  v_people text[];
  v_hash text;
begin
  select * into v_settings from doorkey.settings;
  select u.email, u.phone, u.is_anonymous into v_email, v_phone, v_is_anonymous
    from auth.users as u where u.id = p_user_id;
  -- There is no address to look at yet.
  if v_is_anonymous and (v_settings.reviews_mail or v_settings.reviews_same_person) then
    v_reasons := v_reasons || 'anonymous'::text;
  end if;
  if v_settings.reviews_mail then
    v_reasons := v_reasons || doorkey.doubt_mail(v_email);
  end if;
  if v_settings.reviews_same_person then
    v_people := doorkey.hash_person(v_email, v_phone);
    -- Two of one person at once: the second waits here for the first.
    insert into doorkey.known_people (person_hash, user_id)
    select h.person_hash, p_user_id from unnest(v_people) with ordinality as h (person_hash, n) order by h.n
    on conflict (person_hash) do nothing;
    if exists (
      select from doorkey.known_people as k where k.person_hash = any (v_people) and k.user_id <> p_user_id
    ) then
      v_reasons := v_reasons || 'same_person'::text;
    end if;
  end if;
  if v_settings.max_signups_per_range is not null then
    v_hash := encode(sha256(convert_to(v_settings.person_salt || ':range:' || doorkey.signup_range(p_user_id), 'UTF8')), 'hex');
    -- One after the other, or the cap is passed. (Of nobody's range: no lock.)
    perform pg_catalog.pg_advisory_xact_lock(
      pg_catalog.hashtext('doorkey.signup_range'), pg_catalog.hashtext(v_hash)) where v_hash is not null;
    if (select count(*) from doorkey.signup_ranges as r
         where r.range_hash = v_hash and r.created_at > now() - interval '1 day' and r.user_id <> p_user_id)
       >= v_settings.max_signups_per_range then
      v_reasons := v_reasons || 'address_range'::text;
    end if;
    insert into doorkey.signup_ranges (user_id, range_hash)
    select p_user_id, v_hash where v_hash is not null
    on conflict (user_id) do nothing;
  end if;
  return v_reasons;
end
$$;
revoke all on function doorkey.review_reasons(uuid) from public, anon, authenticated, service_role;

-- Whether somebody may earn by bringing others: not while their own welcome is held, and not once it was refused.
create or replace function doorkey.may_refer(p_user_id uuid) returns boolean
language sql stable security definer set search_path = ''
as $$
  select not exists (
    select from doorkey.welcomes as w where w.user_id = p_user_id and w.review not in ('none', 'released'));
$$;
revoke all on function doorkey.may_refer(uuid) from public, anon, authenticated, service_role;

-- The same, whatever comes: whoever can't be looked at here is looked at by a person.
create or replace function doorkey.doubts_about(p_user_id uuid) returns text[]
language plpgsql security definer set search_path = ''
as $$
begin
  return doorkey.review_reasons(p_user_id);
exception when data_exception or integrity_constraint_violation or syntax_error_or_access_rule_violation then
  perform doorkey.note_trouble('welcome.not_checked', p_user_id, sqlstate, null);
  return array['not_checked'];
end
$$;
revoke all on function doorkey.doubts_about(uuid) from public, anon, authenticated, service_role;

-- Whether somebody may still be thanked for bringing one more. Who is held does not count, nor does a welcome that was taken
-- back before it was paid for. One after the other, or the cap is passed; not by the referrer's account: nobody holds two
-- people's rows.
create or replace function doorkey.has_referral_left(p_referrer_id uuid) returns boolean
language plpgsql security definer set search_path = ''
as $$
begin
  perform pg_catalog.pg_advisory_xact_lock(
    pg_catalog.hashtext('doorkey.has_referral_left'), pg_catalog.hashtext(p_referrer_id::text));
  return (
    select count(*) from doorkey.welcomes as w
     where w.referrer_id = p_referrer_id
       and (w.review in ('none', 'released')
            or exists (select from public.credit_transactions as t
                        where t.type = 'bonus' and t.idempotency_key = 'referrer:' || w.user_id))
  ) < (select s.max_referrals from doorkey.settings as s);
end
$$;
revoke all on function doorkey.has_referral_left(uuid) from public, anon, authenticated, service_role;

-- Who brought this user, if they may still be thanked for somebody. Never the user, by whatever alias. Of who is held that is
-- asked when they are welcomed after all.
create or replace function doorkey.find_referrer(p_user_id uuid, p_metadata jsonb, p_is_held boolean) returns uuid
language plpgsql security definer set search_path = ''
as $$
declare
  v_referrer_id uuid;
begin
  select a.user_id into v_referrer_id
    from public.credit_accounts as a
   where a.referral_code = doorkey.said_at_signup(p_metadata, 'referral_code') and a.user_id <> p_user_id
     and (doorkey.desired_key(a.user_id)).is_enabled and doorkey.may_refer(a.user_id)
     and not exists (
       select from auth.users as u join auth.users as o on doorkey.normalise_mail(o.email) = doorkey.normalise_mail(u.email)
        where u.id = p_user_id and o.id = a.user_id);
  if not found or (not p_is_held and not doorkey.has_referral_left(v_referrer_id)) then
    return null;
  end if;
  return v_referrer_id;
end
$$;
revoke all on function doorkey.find_referrer(uuid, jsonb, boolean) from public, anon, authenticated, service_role;

-- How much this user is welcomed with, and by what: an offer that they named, else an arm of the experiment, else the plan.
create or replace function doorkey.choose_offer(
  p_user_id uuid, p_metadata jsonb, p_plan public.plans,
  out amount_micros bigint, out days integer, out offer_code text, out experiment text, out arm text
)
language plpgsql security definer set search_path = ''
as $$
declare
  v_settings doorkey.settings;
  v_offer doorkey.welcome_offers;
begin
  select * into v_settings from doorkey.settings;
  amount_micros := p_plan.welcome_credits_micros;
  days := p_plan.welcome_credits_days;
  if v_settings.welcome_offers then
    for v_offer in
      select o.* from unnest(array['campaign', 'referral_source']) with ordinality as k (name, n)
        join doorkey.welcome_offers as o on o.code = doorkey.said_at_signup(p_metadata, k.name)
       where now() >= o.starts_at and (o.ends_at is null or now() < o.ends_at)
       order by k.n
    loop
      if v_offer.max_grants is not null then
        update doorkey.welcome_offers as o set granted = o.granted + 1
         where o.code = v_offer.code and o.granted < o.max_grants;
        continue when not found;
      end if;
      amount_micros := v_offer.amount_micros;
      days := v_offer.days;
      offer_code := v_offer.code;
      return;
    end loop;
  end if;
  if v_settings.welcome_experiment is not null then
    select a.amount_micros, a.days, a.experiment, a.arm into amount_micros, days, experiment, arm
      from (
        select w.*, sum(w.weight) over (order by w.arm) as up_to, sum(w.weight) over () as total
          from doorkey.welcome_arms as w where w.experiment = v_settings.welcome_experiment
      ) as a
     where a.up_to > doorkey.hash_of_user(v_settings.welcome_experiment, p_user_id) % nullif(a.total, 0)
     order by a.up_to limit 1;
    if not found then
      amount_micros := p_plan.welcome_credits_micros;
      days := p_plan.welcome_credits_days;
    end if;
  end if;
end
$$;
revoke all on function doorkey.choose_offer(uuid, jsonb, public.plans) from public, anon, authenticated, service_role;

-- A number below 2^32, the same each time: who is in which arm depends on nothing else.
create or replace function doorkey.hash_of_user(p_experiment text, p_user_id uuid) returns bigint
language sql immutable security definer set search_path = ''
as $$ select ('x' || left(md5(p_experiment || ':' || p_user_id), 8))::bit(32)::bigint; $$;
revoke all on function doorkey.hash_of_user(text, uuid) from public, anon, authenticated, service_role;

-- Gives credits now, or promises them. The account is locked by nobody else's hand: it is the user's whose key is claimed.
create or replace function doorkey.give_or_promise(
  p_user_id uuid, p_about_user_id uuid, p_waits_for text, p_amount_micros bigint, p_days integer,
  p_idempotency_key text, p_reason text, p_actor text, p_request_id text
) returns void
language plpgsql security definer set search_path = ''
as $$
begin
  if p_amount_micros <= 0 then
    return;
  end if;
  if p_waits_for is null then
    perform doorkey.post_grant(p_user_id, 'bonus', p_amount_micros, p_idempotency_key, p_reason, p_actor,
                               now() + make_interval(days => p_days), 50::smallint, p_request_id);
    return;
  end if;
  insert into doorkey.promised_credits
    (user_id, about_user_id, waits_for, amount_micros, days, idempotency_key, reason, lapses_at)
  values (p_user_id, p_about_user_id, p_waits_for, p_amount_micros, p_days, p_idempotency_key, p_reason,
          now() + make_interval(days => case when p_waits_for in ('confirmed', 'first_call') then coalesce(p_days, 365)
                                             else 365 end));
end
$$;
revoke all on function doorkey.give_or_promise(uuid, uuid, text, bigint, integer, text, text, text, text)
  from public, anon, authenticated, service_role;

-- Welcomes the user by what is on. Called once in their life, by whoever claims; their row and account are locked.
-- Locks that others share are taken in one order: person, range, referrer, offer.
create or replace function doorkey.offer_welcome(
  p_user_id uuid, p_plan public.plans, p_actor text, p_request_id text
) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  v_settings doorkey.settings;
  v_metadata jsonb;
  v_is_confirmed boolean;
  v_reasons text[];
  v_referrer_id uuid;
  v_offer record;
  v_hold text;
  v_rest bigint := 0;
  v_reason text := 'Welcome credits';
begin
  select * into v_settings from doorkey.settings;
  select u.raw_user_meta_data, u.email_confirmed_at is not null or u.phone_confirmed_at is not null
    into v_metadata, v_is_confirmed
    from auth.users as u where u.id = p_user_id;
  v_reasons := doorkey.doubts_about(p_user_id);
  v_hold := case when cardinality(v_reasons) > 0 then 'review' end;
  if v_settings.referral_bonus_micros is not null then
    v_referrer_id := doorkey.find_referrer(p_user_id, v_metadata, v_hold is not null);
  end if;
  select * into v_offer from doorkey.choose_offer(p_user_id, v_metadata, p_plan);
  if v_settings.welcome_at_once_percent is not null
     and not (v_settings.welcome_rest_on = 'confirmed' and v_is_confirmed) then
    v_rest := v_offer.amount_micros - ceil(v_offer.amount_micros * v_settings.welcome_at_once_percent / 100.0);
  end if;
  -- Kept where nothing can be rewritten, besides the row below.
  v_reason := v_reason || coalesce(': ' || v_offer.offer_code, ': ' || v_offer.experiment || ' / ' || v_offer.arm, '');
  insert into doorkey.welcomes (user_id, amount_micros, offer_code, experiment, arm, referrer_id, review, review_reasons)
  values (p_user_id, v_offer.amount_micros, v_offer.offer_code, v_offer.experiment, v_offer.arm, v_referrer_id,
          case when v_hold is null then 'none' else 'held' end, v_reasons);
  perform doorkey.give_or_promise(
    p_user_id, p_user_id, v_hold, v_offer.amount_micros - v_rest, v_offer.days, 'welcome:' || p_user_id, v_reason,
    p_actor, p_request_id);
  perform doorkey.give_or_promise(
    p_user_id, p_user_id, v_settings.welcome_rest_on, v_rest, v_offer.days, 'welcome-rest:' || p_user_id,
    v_reason || ' (the rest)', p_actor, p_request_id);
  if v_referrer_id is not null then
    perform doorkey.give_or_promise(
      p_user_id, p_user_id, v_hold, v_settings.referral_bonus_micros, v_settings.referral_bonus_days,
      'referred:' || p_user_id, 'Somebody brought you', p_actor, p_request_id);
    -- Theirs comes by the sweep, once there is a key: nobody holds two people's rows.
    perform doorkey.give_or_promise(
      v_referrer_id, p_user_id, 'key', v_settings.referral_bonus_micros, v_settings.referral_bonus_days,
      'referrer:' || p_user_id, 'You brought somebody', p_actor, p_request_id);
  end if;
  -- The days of what waits for a review and for something more begin with the release.
  update doorkey.promised_credits as p set lapses_at = now() + interval '365 days'
   where v_hold is not null and p.about_user_id = p_user_id;
end
$$;
revoke all on function doorkey.offer_welcome(uuid, public.plans, text, text)
  from public, anon, authenticated, service_role;

-- Gives what was promised to the user pending a review, and begins the time of the rest; says how much was given. Their
-- row and account are locked by the caller, who also writes down how the review ended. If their referrer was thanked as often
-- as may be meanwhile, nothing comes of the referral.
create or replace function doorkey.give_held(p_user_id uuid, p_actor text, p_request_id text) returns bigint
language plpgsql security definer set search_path = ''
as $$
declare
  v_referrer_id uuid;
  v_due doorkey.promised_credits;
  v_given bigint := 0;
begin
  select w.referrer_id into v_referrer_id from doorkey.welcomes as w where w.user_id = p_user_id;
  if v_referrer_id is not null and not doorkey.has_referral_left(v_referrer_id) then
    delete from doorkey.promised_credits as p
     where p.idempotency_key in ('referred:' || p_user_id, 'referrer:' || p_user_id);
    update doorkey.welcomes as w set referrer_id = null where w.user_id = p_user_id;
  end if;
  for v_due in
    delete from doorkey.promised_credits as p where p.about_user_id = p_user_id and p.waits_for = 'review' returning p.*
  loop
    perform doorkey.give_or_promise(v_due.user_id, v_due.about_user_id, null, v_due.amount_micros, v_due.days,
                                    v_due.idempotency_key, v_due.reason, p_actor, p_request_id);
    v_given := v_given + v_due.amount_micros;
  end loop;
  update doorkey.promised_credits as p set lapses_at = now() + make_interval(days => coalesce(p.days, 365))
   where p.about_user_id = p_user_id and p.user_id = p_user_id;
  return v_given;
end
$$;
revoke all on function doorkey.give_held(uuid, text, text) from public, anon, authenticated, service_role;

-- Looks at somebody who was welcomed while anonymous, once they have an address: gives what was held, or says why not. What
-- was found at first still counts. Called by whoever claims; the user's row is locked.
create or replace function doorkey.review_converted(p_user_id uuid, p_actor text, p_request_id text) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  v_found text[];
  v_before text[];
  v_reasons text[];
  v_account public.credit_accounts;
  v_given bigint;
begin
  if (select u.is_anonymous from auth.users as u where u.id = p_user_id) then
    return;
  end if;
  v_account := doorkey.lock_account(p_user_id);
  v_found := doorkey.doubts_about(p_user_id);
  select w.review_reasons into strict v_before from doorkey.welcomes as w where w.user_id = p_user_id;
  select coalesce(array_agg(distinct r.reason) filter (where r.reason <> 'anonymous'), '{}') into v_reasons
    from doorkey.welcomes as w cross join unnest(w.review_reasons || v_found) as r (reason)
   where w.user_id = p_user_id;
  if cardinality(v_reasons) > 0 then
    if v_reasons <> v_before then
      update doorkey.welcomes as w set review_reasons = v_reasons where w.user_id = p_user_id;
      perform doorkey.write_audit(p_actor, 'welcome.held', p_user_id, p_request_id,
                                  jsonb_build_object('before', v_before, 'after', v_reasons));
    end if;
    return;
  end if;
  v_given := doorkey.give_held(p_user_id, p_actor, p_request_id);
  update doorkey.welcomes as w set review = 'none', review_reasons = '{}' where w.user_id = p_user_id;
  perform doorkey.write_audit(p_actor, 'welcome.released', p_user_id, p_request_id, jsonb_build_object(
    'before', 'held', 'after', 'none', 'given_micros', v_given,
    'available_before_micros', v_account.available_micros, 'debt_before_micros', v_account.debt_micros,
    'available_after_micros', a.available_micros, 'debt_after_micros', a.debt_micros))
    from public.credit_accounts as a where a.user_id = p_user_id;
end
$$;
revoke all on function doorkey.review_converted(uuid, text, text) from public, anon, authenticated, service_role;

-- Gives what was promised and has come true; how many. Looks at so many promises, on from where the last call ended. It
-- has many users' rows at once, and so waits for none of them.
create or replace function doorkey.grant_promised_credits(p_rows integer, p_request_id text) returns integer
language plpgsql security definer set search_path = ''
as $$
declare
  v_cursor bigint;
  v_page bigint[];
  v_due doorkey.promised_credits;
  v_count integer := 0;
begin
  if p_rows is null or p_rows not between 1 and 10000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Look at 1 to 10000 promises at a time.';
  end if;
  select s.promise_cursor into v_cursor from doorkey.settings as s;
  select array_agg(page.id order by page.id) into v_page
    from (select p.id from doorkey.promised_credits as p where p.id > v_cursor order by p.id limit p_rows) as page;
  if v_page is not null or v_cursor > 0 then
    update doorkey.settings
       set promise_cursor = case when cardinality(v_page) = p_rows then v_page[p_rows] else 0 end;
  end if;
  for v_due in
    select p.* from doorkey.promised_credits as p
      join doorkey.welcomes as w on w.user_id = p.about_user_id
     where p.id = any (v_page) and w.review in ('none', 'released') and (doorkey.desired_key(p.user_id)).is_present
       and (p.user_id = p.about_user_id or doorkey.may_refer(p.user_id))
       and case p.waits_for
             when 'confirmed' then exists (
               select from auth.users as u
                where u.id = p.user_id and (u.email_confirmed_at is not null or u.phone_confirmed_at is not null))
             when 'first_call' then exists (
               select from public.credit_transactions as t where t.user_id = p.user_id and t.type = 'usage')
             when 'key' then exists (
               select from doorkey.provisioning as k where k.user_id = p.about_user_id and k.ready_at is not null)
             else false
           end
  loop
    perform from doorkey.provisioning as p where p.user_id = v_due.user_id for update skip locked;
    continue when not found;
    perform from public.credit_accounts as a where a.user_id = v_due.user_id for no key update skip locked;
    continue when not found;
    -- Somebody may have given or taken it back meanwhile.
    delete from doorkey.promised_credits as p where p.id = v_due.id;
    continue when not found;
    perform doorkey.want(v_due.user_id);
    perform doorkey.give_or_promise(v_due.user_id, v_due.about_user_id, null, v_due.amount_micros, v_due.days,
                                    v_due.idempotency_key, v_due.reason, 'sweep', p_request_id);
    v_count := v_count + 1;
  end loop;
  delete from doorkey.promised_credits as p where p.id = any (v_page) and p.lapses_at <= now();
  delete from doorkey.signup_ranges as r using (
    select o.user_id from doorkey.signup_ranges as o where o.created_at < now() - interval '1 day'
     order by o.created_at limit 10000) as old
   where r.user_id = old.user_id;
  return v_count;
end
$$;
revoke all on function doorkey.grant_promised_credits(integer, text) from public, anon, authenticated, service_role;
grant execute on function doorkey.grant_promised_credits(integer, text) to service_role;

create or replace function public.grant_promised_credits(promised_rows integer, request_id text) returns integer
language sql set search_path = ''
as $$ select doorkey.grant_promised_credits($1, $2); $$;
revoke all on function public.grant_promised_credits(integer, text) from public, anon, authenticated, service_role;
grant execute on function public.grant_promised_credits(integer, text) to service_role;

-- Whose welcome is held, who waits longest first, without those who are gone. p_after_user: with whom the last page ended,
-- whatever was decided about them since; null: from the first on.
create or replace function doorkey.list_reviews(p_after_user uuid, p_rows integer)
returns table (
  user_id uuid, created_at timestamptz, amount_micros bigint, reasons text[], offer_code text, experiment text, arm text,
  referrer_id uuid
)
language plpgsql stable security definer set search_path = ''
as $$
declare
  v_after_at timestamptz := '-infinity';
begin
  if p_rows is null or p_rows not between 1 and 1000 then
    raise sqlstate 'PT422' using message = 'page_out_of_range', hint = 'Ask for 1 to 1000 rows.';
  end if;
  if p_after_user is not null then
    select w.created_at into v_after_at from doorkey.welcomes as w where w.user_id = p_after_user;
    if not found then
      raise sqlstate 'PT404' using message = 'review_not_found', hint = 'No welcome of this user was ever looked at.';
    end if;
  end if;
  return query
    select w.user_id, w.created_at, w.amount_micros, w.review_reasons, w.offer_code, w.experiment, w.arm, w.referrer_id
      from doorkey.welcomes as w
     where w.review = 'held' and (w.created_at, w.user_id) > (v_after_at, coalesce(p_after_user, w.user_id))
       and exists (select from auth.users as u where u.id = w.user_id and u.deleted_at is null)
     order by w.created_at, w.user_id limit p_rows;
end
$$;
revoke all on function doorkey.list_reviews(uuid, integer) from public, anon, authenticated, service_role;
grant execute on function doorkey.list_reviews(uuid, integer) to service_role;

create or replace function public.list_reviews(after_user uuid, review_rows integer)
returns table (
  user_id uuid, created_at timestamptz, amount_micros bigint, reasons text[], offer_code text, experiment text, arm text,
  referrer_id uuid
)
language sql stable set search_path = ''
as $$ select * from doorkey.list_reviews($1, $2); $$;
revoke all on function public.list_reviews(uuid, integer) from public, anon, authenticated, service_role;
grant execute on function public.list_reviews(uuid, integer) to service_role;

-- Gives a held welcome. Says what was given, and nothing if it was given before.
create or replace function doorkey.release_welcome(p_user_id uuid, p_actor text, p_request_id text) returns bigint
language plpgsql security definer set search_path = ''
as $$
declare
  v_review text;
  v_before public.credit_accounts;
  v_after public.credit_accounts;
  v_given bigint;
begin
  v_review := doorkey.lock_welcome(p_user_id);
  if v_review = 'released' then
    return 0;
  elsif v_review <> 'held' then
    raise sqlstate 'PT409' using message = 'review_over', hint = format('This welcome is not held: %s.', v_review);
  end if;
  v_before := doorkey.lock_account(p_user_id);
  v_given := doorkey.give_held(p_user_id, p_actor, p_request_id);
  update doorkey.welcomes as w set review = 'released', reviewed_at = now() where w.user_id = p_user_id;
  v_after := doorkey.lock_account(p_user_id);
  perform doorkey.write_audit(p_actor, 'welcome.released', p_user_id, p_request_id, jsonb_build_object(
    'before', v_review, 'after', 'released', 'given_micros', v_given,
    'available_before_micros', v_before.available_micros, 'available_after_micros', v_after.available_micros,
    'debt_before_micros', v_before.debt_micros, 'debt_after_micros', v_after.debt_micros));
  return v_given;
end
$$;
revoke all on function doorkey.release_welcome(uuid, text, text) from public, anon, authenticated, service_role;
grant execute on function doorkey.release_welcome(uuid, text, text) to service_role;

create or replace function public.release_welcome(user_id uuid, actor text, request_id text) returns bigint
language sql set search_path = ''
as $$ select doorkey.release_welcome($1, $2, $3); $$;
revoke all on function public.release_welcome(uuid, text, text) from public, anon, authenticated, service_role;
grant execute on function public.release_welcome(uuid, text, text) to service_role;

-- How the welcome stands, its user's row and account locked in this order. The key's limit is looked at again.
create or replace function doorkey.lock_welcome(p_user_id uuid) returns text
language plpgsql security definer set search_path = ''
as $$
declare
  v_review text;
begin
  if not exists (select from doorkey.welcomes as w where w.user_id = p_user_id) then
    raise sqlstate 'PT404' using message = 'review_not_found', hint = 'No welcome of this user was ever looked at.';
  end if;
  perform doorkey.want(p_user_id);
  perform doorkey.lock_account(p_user_id);
  select w.review into strict v_review from doorkey.welcomes as w where w.user_id = p_user_id for update;
  return v_review;
end
$$;
revoke all on function doorkey.lock_welcome(uuid) from public, anon, authenticated, service_role;

-- Takes a welcome back: what is promised to them is not given any more, nor what others were promised for them; what was
-- given is reversed by an entry of its own, and what they have spent of it they owe. Says what was reversed.
create or replace function doorkey.claw_back_welcome(p_user_id uuid, p_reason text, p_actor text, p_request_id text)
returns bigint
language plpgsql security definer set search_path = ''
as $$
declare
  v_review text;
  v_ended text;
  v_before public.credit_accounts;
  v_after public.credit_accounts;
  v_given record;
  v_id bigint;
  v_taken bigint := 0;
begin
  if p_reason is null or btrim(p_reason) = '' or length(p_reason) > 500 then
    raise sqlstate 'PT422' using message = 'posting_invalid', hint = 'Say why in 1 to 500 characters.';
  end if;
  v_review := doorkey.lock_welcome(p_user_id);
  if v_review in ('refused', 'clawed_back') then
    return 0;
  end if;
  v_ended := case v_review when 'held' then 'refused' else 'clawed_back' end;
  v_before := doorkey.lock_account(p_user_id);
  delete from doorkey.promised_credits as p where p.about_user_id = p_user_id or p.user_id = p_user_id;
  -- As `reverse_transaction` does it, and known to it: a grant is taken back once, and without what has left its lot.
  for v_given in
    select t.id, l.id as lot_id, l.amount_micros - l.withdrawn_micros as amount_micros
      from public.credit_transactions as t join doorkey.credit_lots as l on l.transaction_id = t.id
     where t.type = 'bonus' and t.user_id = p_user_id
       and t.idempotency_key in ('welcome:' || p_user_id, 'welcome-rest:' || p_user_id, 'referred:' || p_user_id)
       and not exists (select from doorkey.credit_takings as g where g.reverses_transaction_id = t.id)
     order by t.id
  loop
    continue when v_given.amount_micros = 0;
    select t.transaction_id into v_id
      from doorkey.take_credits(p_user_id, 'adjustment', v_given.amount_micros, 'claw-back:' || v_given.id,
                                p_reason, p_actor, p_request_id, v_given.lot_id) as t;
    -- A statement of its own: it could not see the row that it writes to.
    update doorkey.credit_takings as g set reverses_transaction_id = v_given.id where g.transaction_id = v_id;
    v_taken := v_taken + v_given.amount_micros;
  end loop;
  update doorkey.welcomes as w set review = v_ended, reviewed_at = now() where w.user_id = p_user_id;
  v_after := doorkey.lock_account(p_user_id);
  perform doorkey.write_audit(p_actor, 'welcome.clawed_back', p_user_id, p_request_id, jsonb_build_object(
    'before', v_review, 'after', v_ended, 'taken_micros', v_taken, 'reason', p_reason,
    'available_before_micros', v_before.available_micros, 'available_after_micros', v_after.available_micros,
    'debt_before_micros', v_before.debt_micros, 'debt_after_micros', v_after.debt_micros));
  return v_taken;
end
$$;
revoke all on function doorkey.claw_back_welcome(uuid, text, text, text) from public, anon, authenticated, service_role;
grant execute on function doorkey.claw_back_welcome(uuid, text, text, text) to service_role;

create or replace function public.claw_back_welcome(user_id uuid, reason text, actor text, request_id text) returns bigint
language sql set search_path = ''
as $$ select doorkey.claw_back_welcome($1, $2, $3, $4); $$;
revoke all on function public.claw_back_welcome(uuid, text, text, text) from public, anon, authenticated, service_role;
grant execute on function public.claw_back_welcome(uuid, text, text, text) to service_role;

-- For those who were there before `reviews_same_person` was on: remembers everybody who has an account, once. By hand.
create or replace function doorkey.remember_people() returns bigint
language plpgsql security definer set search_path = ''
as $$
declare
  v_count bigint;
begin
  insert into doorkey.known_people (person_hash, user_id)
  select p.person_hash, p.id
    from public.credit_accounts as a
    join auth.users as u on u.id = a.user_id
   cross join lateral (select h.person_hash, u.id from unnest(doorkey.hash_person(u.email, u.phone)) as h (person_hash)) as p
   order by u.created_at
  on conflict (person_hash) do nothing;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
revoke all on function doorkey.remember_people() from public, anon, authenticated, service_role;
