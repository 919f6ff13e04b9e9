"""`doorkey doctor` as a person runs it, on an installation that is well and on others, each broken in its own way.

Each names the line that must be accused and what mends it, and all that may not be ok besides: anything more would be a
false accusation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from functions.health.examination import JUDGES
from tests.support.environment import OTHER_SEALING_KEY, OTHER_WEBHOOK_SECRET
from tests.support.patients import MIGRATION, Patient

EXIT_CODES = {"ok": 0, "warning": 1, "broken": 2}
WRONG_SECRET_KEY: dict[str, str | None] = {"SUPABASE_SECRET_KEY": "sb_secret_of-nobody-at-all-0000"}
OF_THE_REPORT = (
    "migrations", "grants", "triggers", "pg_net", "webhook_secret", "webhook_address", "sweep", "queue", "dead_rows",
    "held_queue", "hourly_brake", "sealing_keys", "openrouter_credits",
)  # fmt: skip
OF_SUPABASE = (
    "publishable_key", "secret_key", "access_tokens", "database", "clock", *OF_THE_REPORT,
)  # fmt: skip
NO_DATABASE_URL: dict[str, str | None] = {"DATABASE_URL": None}


def all_skipped(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "skipped")


async def test_an_installation_that_is_well_is_all_ok(patient: Patient) -> None:
    found = await patient.examine()
    assert found.not_ok() == {}
    assert (found.status, found.run.code) == ("ok", 0)
    assert all(check["mend"] is None for check in found.checks.values())
    assert set(found.checks) == {*JUDGES, "settings", "database_url", "migrations", "webhook_address"}
    assert "a" * 64 not in found.run.out


async def test_nothing_but_the_functions_environment_is_needed(patient: Patient) -> None:
    found = await patient.examine(NO_DATABASE_URL)
    assert found.not_ok() == {"database_url": "skipped"}
    assert (found.status, found.run.code) == ("ok", 0)


# What is wrong in the environment: by what is changed, the lines that aren't ok, and for the first what mends it.
WRONG_ENVIRONMENTS: dict[str, tuple[dict[str, str | None], dict[str, str], str]] = {
    "a secret key that was deleted": (
        WRONG_SECRET_KEY,
        {"secret_key": "broken", **all_skipped("database", "clock")},
        "Set SUPABASE_SECRET_KEY to a secret key",
    ),
    "the same, and no connection of one's own": (
        {**WRONG_SECRET_KEY, **NO_DATABASE_URL},
        {"secret_key": "broken", **all_skipped("database", "database_url", "clock", *OF_THE_REPORT)},
        "Set SUPABASE_SECRET_KEY to a secret key",
    ),
    "a publishable key of another project": (
        {"SUPABASE_PUBLISHABLE_KEY": "sb_publishable_of-nobody-at-all"},
        {"publishable_key": "broken"},
        "Set SUPABASE_PUBLISHABLE_KEY to the publishable key",
    ),
    "an address at which nobody answers": (
        {"SUPABASE_URL": "http://127.0.0.1:1", **NO_DATABASE_URL},
        {"supabase": "broken", **all_skipped("database_url", *OF_SUPABASE)},
        "SUPABASE_URL=https://<project>.supabase.co",
    ),
    "no sealing key, and a project's name that can't be": (
        {"DOORKEY_SEALING_KEYS": None, "DOORKEY_PROJECT": "My Shop"},
        {"settings": "broken", "sealing_keys": "skipped"},
        "doorkey connect",
    ),
    "a setting by nearly its name": (
        {"DOORKEY_LEASE_SECOND": "60"},
        {"settings": "warning"},
        "docs/settings.md",
    ),
    "no management key": (
        {"OPENROUTER_MANAGEMENT_KEY": ""},
        {"settings": "broken", **all_skipped("openrouter", "openrouter_credits")},
        "https://openrouter.ai/settings/management-keys",
    ),
    "a management key that was deleted": (
        {"OPENROUTER_MANAGEMENT_KEY": "sk-or-v1-of-nobody-at-all"},
        {"openrouter": "broken", "openrouter_credits": "skipped"},
        "Set OPENROUTER_MANAGEMENT_KEY to a management key",
    ),
    "OpenRouter away": (
        {"OPENROUTER_BASE_URL": "http://127.0.0.1:1"},
        {"openrouter": "broken", "openrouter_credits": "skipped"},
        "https://status.openrouter.ai",
    ),
    "another signing secret than the database's": (
        {"DOORKEY_WEBHOOK_SECRETS": OTHER_WEBHOOK_SECRET},
        {"webhook_secret": "broken", "webhook_address": "skipped"},
        "docs/operations.md#the-signing-secret",
    ),
    "no signing secret where the database has one": (
        {"DOORKEY_WEBHOOK_SECRETS": None},
        {"webhook_secret": "broken", "webhook_address": "skipped"},
        "docs/operations.md#the-signing-secret",
    ),
    "a database address that lets nobody in": (
        {"DATABASE_URL": "postgresql://postgres:not-the-password-of-it@127.0.0.1:1/postgres"},
        {"database_url": "broken"},
        "DATABASE_URL=postgresql://",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_ENVIRONMENTS)
async def test_what_is_wrong_in_the_environment_is_named_and_nothing_else(patient: Patient, name: str) -> None:
    changes, expected, mend = WRONG_ENVIRONMENTS[name]
    found = await patient.examine(changes)
    assert found.not_ok() == expected
    accused = next(iter(expected))
    assert mend in found.checks[accused]["mend"]
    assert (found.status, found.run.code) == (expected[accused], EXIT_CODES[expected[accused]])


async def test_every_setting_that_is_wrong_is_named_at_once(patient: Patient) -> None:
    changes = {"SUPABASE_URL": None, "DOORKEY_PROJECT": "My Shop", "DOORKEY_LEASE_SECONDS": "never"}
    settings = (await patient.examine(changes)).checks["settings"]
    assert all(name in settings["finding"] and name in settings["mend"] for name in changes)


async def test_keys_in_each_others_place_are_noticed_before_anybody_is_asked(patient: Patient) -> None:
    stack = patient.installation.stack
    found = await patient.examine(
        {
            "SUPABASE_SECRET_KEY": stack.secrets.publishable_key,
            "SUPABASE_PUBLISHABLE_KEY": stack.secrets.secret_key,
        }
    )
    assert found.not_ok() == {
        "settings": "broken", **all_skipped("secret_key", "publishable_key", "database", "clock"),
    }  # fmt: skip
    assert "SUPABASE_SECRET_KEY holds a publishable key" in found.checks["settings"]["finding"]
    assert "SUPABASE_PUBLISHABLE_KEY holds a secret key" in found.checks["settings"]["finding"]
    assert "SUPABASE_SECRET_KEY=sb_secret_" in found.checks["settings"]["mend"]
    assert found.run.code == 2


async def test_a_pair_of_legacy_keys_is_a_warning_and_switched_off_it_is_broken(patient: Patient) -> None:
    found = await patient.examine(patient.legacy_keys())
    assert found.not_ok() == {"secret_key": "warning"}
    assert "as a pair" in found.checks["secret_key"]["finding"]
    assert "sb_secret_ and sb_publishable_ keys" in found.checks["secret_key"]["mend"]
    assert found.run.code == 1
    one = {"SUPABASE_SECRET_KEY": patient.legacy_keys()["SUPABASE_SECRET_KEY"]}
    assert (await patient.examine(one)).not_ok() == {}

    await patient.switch_legacy(enabled=False)
    found = await patient.examine(patient.legacy_keys())
    expected = {"publishable_key": "broken", "secret_key": "broken", **all_skipped("database", "clock")}
    assert found.not_ok() == expected
    assert "switched off" in found.checks["secret_key"]["finding"]
    assert "nothing goes on" in found.checks["secret_key"]["finding"]


async def test_forwarding_with_a_legacy_key_forwards_nothing(patient: Patient) -> None:
    on = {"DOORKEY_FORWARDS_CALLER_ADDRESS": "true"}
    assert (await patient.examine(on)).not_ok() == {}
    legacy = {"SUPABASE_SECRET_KEY": patient.legacy_keys()["SUPABASE_SECRET_KEY"]}
    found = await patient.examine({**on, **legacy})
    assert found.not_ok() == {"caller_address": "broken"}
    assert "sb_secret_" in found.checks["caller_address"]["mend"]


Break = Callable[[Patient], Awaitable[None]]


def by_sql(*statements: str) -> Break:
    async def do(patient: Patient) -> None:
        for statement in statements:
            await patient.sql(statement)

    return do


CLAIM = "function public.claim_provisioning(uuid, integer, text, text)"
# What is wrong in the database: how it comes about, the one line that is accused and how, what mends it.
WRONG_DATABASES: dict[str, tuple[Break, str, str, str]] = {
    "nobody may claim": (
        by_sql(f"revoke execute on {CLAIM} from service_role"), "grants", "broken", "for f in supabase/migrations",
    ),
    "what is behind a door is shut": (
        by_sql("revoke execute on function doorkey.start_sweep(integer) from service_role"),
        "grants", "broken", "for f in supabase/migrations",
    ),
    "somebody's own door is shut": (
        by_sql("revoke execute on function doorkey.release_my_hold(uuid, text, text, bigint, text) from authenticated"),
        "grants", "broken", "for f in supabase/migrations",
    ),
    "everybody may claim": (
        by_sql(f"grant execute on {CLAIM} to anon"), "grants", "broken", "for f in supabase/migrations",
    ),
    "anybody who is signed in may use up proofs": (
        by_sql("grant execute on function doorkey.use_proof(text, text[], text, bigint, text) to authenticated"),
        "grants", "broken", "for f in supabase/migrations",
    ),
    "everybody may enrol": (
        by_sql("grant execute on function doorkey.enrol(uuid) to public"),
        "grants", "broken", "for f in supabase/migrations",
    ),
    "people may go through a server's door": (
        by_sql("grant execute on function public.post_credits(uuid, text, bigint, text, text, text,"
               " timestamp with time zone, text) to authenticated"),
        "grants", "broken", "for f in supabase/migrations",
    ),
    "a trigger is switched off": (
        by_sql("alter table auth.users disable trigger zz_doorkey_user_updated"),
        "triggers", "broken", "for f in supabase/migrations",
    ),
    "a trigger is gone": (
        by_sql("drop trigger zz_doorkey_user_created on auth.users"),
        "triggers", "broken", "for f in supabase/migrations",
    ),
    "a migration is not applied": (
        by_sql(f"delete from supabase_migrations.schema_migrations where version = '{MIGRATION}'"),
        "migrations", "broken", "npx supabase db push",
    ),
    "the sweep stands still": (
        by_sql("update doorkey.settings set last_sweep_at = now() - interval '1 hour'"),
        "sweep", "broken", "osls invoke --stage STAGE --function sweep",
    ),
    "no sweep ever": (
        by_sql("update doorkey.settings set last_sweep_at = null, installed_at = installed_at - interval '1 day'"),
        "sweep", "broken", "make deploy",
    ),
    "the queue is held": (
        by_sql("update doorkey.settings set held_reason = 'openrouter_account_empty', held_until = now()"),
        "held_queue", "broken", "https://openrouter.ai/settings/credits",
    ),
    "the hour is full": (
        by_sql(
            "update doorkey.settings set max_keys_per_hour = 1",
            "insert into doorkey.key_requests (user_id, attempt) values (gen_random_uuid(), 1)",
        ),
        "hourly_brake", "warning", "docs/operations.md#hourly-brake",
    ),
    "users were given up": (
        lambda patient: patient.give_up("openrouter_refused", 2),
        "dead_rows", "warning", "doorkey redrive --error openrouter_refused",
    ),
    "users may spend more than there is": (
        lambda patient: patient.insert_key(20_000_000_000),
        "openrouter_credits", "warning", "https://openrouter.ai/settings/credits",
    ),
    "a sealing key is lost": (
        lambda patient: patient.insert_key(5_000_000, sealing_key_id="k0"),
        "sealing_keys", "broken", "docs/operations.md#the-sealing-key",
    ),
    "the database rings nowhere": (
        by_sql("update doorkey.settings set webhook_url = 'http://127.0.0.1:1/webhooks/supabase'"),
        "webhook_address", "broken", "doorkey connect --url",
    ),
    "the database doesn't know where to ring": (
        by_sql("update doorkey.settings set webhook_url = null"), "webhook_address", "warning", "doorkey connect --url",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_DATABASES)
async def test_what_is_wrong_in_the_database_is_named_and_nothing_else(patient: Patient, name: str) -> None:
    make_it_so, accused, state, mend = WRONG_DATABASES[name]
    await make_it_so(patient)
    found = await patient.examine(NO_DATABASE_URL)
    assert found.not_ok() == {"database_url": "skipped", accused: state}
    assert mend in found.checks[accused]["mend"]
    assert (found.status, found.run.code) == (state, EXIT_CODES[state])


async def test_somebody_who_waits_is_late_and_where_the_queue_is_held_that_is_the_reason(patient: Patient) -> None:
    user_id = await patient.installation.database.insert_user(confirmed=False)
    await patient.sql(
        "update doorkey.provisioning set state = 'due', due_at = now() - interval '1 hour' where user_id = %s", user_id
    )
    found = await patient.examine()
    assert found.not_ok() == {"queue": "warning"}
    assert found.checks["queue"]["mend"] == "docs/operations.md#queue-late"
    await patient.sql("update doorkey.settings set held_reason = 'management_key_rejected', held_until = now()")
    assert (await patient.examine()).not_ok() == {"queue": "skipped", "held_queue": "broken"}


async def test_users_who_were_given_up_are_due_again_by_the_command_that_it_names(patient: Patient) -> None:
    await patient.give_up("openrouter_refused", 2)
    check = (await patient.examine()).checks["dead_rows"]
    assert "2 users were given up: 2 for openrouter_refused" in check["finding"]
    program, *words = check["mend"].partition("   ")[0].split()
    assert program == "doorkey"
    assert (await patient.installation.run(*words, environment=patient.environment)).code == 0
    assert (await patient.examine()).not_ok() == {}


async def test_repeating_the_migrations_mends_grants_and_triggers(patient: Patient) -> None:
    await patient.sql("grant execute on all functions in schema public, doorkey to anon")
    await patient.sql("grant execute on function doorkey.sign_proof(text, text[]) to public")
    await patient.sql("revoke usage on schema doorkey from authenticated")
    await patient.sql("alter table auth.users disable trigger zz_doorkey_user_created")
    await patient.sql("drop trigger zz_doorkey_user_deleted on auth.users")
    found = await patient.examine()
    assert found.not_ok() == {"grants": "broken", "triggers": "broken"}
    assert "zz_doorkey_user_created signups" in found.checks["triggers"]["finding"]
    assert "and" in found.checks["grants"]["finding"]
    # As the loop that it names does.
    await patient.installation.database.migrate()
    assert (await patient.examine()).not_ok() == {}


async def test_without_a_way_into_the_schema_the_secret_key_is_not_accused(patient: Patient) -> None:
    await patient.sql("revoke usage on schema doorkey from service_role")
    found = await patient.examine()
    assert found.not_ok() == {"database": "broken", "clock": "skipped", "grants": "broken"}
    assert "a grant" in found.checks["database"]["finding"]
    assert found.checks["secret_key"]["state"] == "ok"


async def test_an_older_database_is_told_from_a_wrong_key(patient: Patient) -> None:
    await patient.sql(
        "drop function public.get_doorkey_health(), doorkey.health(), public.prove_webhook_secret(text),"
        " doorkey.prove_webhook_secret(text)"
    )
    await patient.sql("delete from supabase_migrations.schema_migrations where version = %s", MIGRATION)
    found = await patient.examine()
    rest = [name for name in OF_THE_REPORT if name not in ("migrations", "sealing_keys")]
    expected = {"database": "broken", "migrations": "broken", **all_skipped("database_url", "clock", *rest)}
    assert found.not_ok() == expected
    assert "1 of" in found.checks["migrations"]["finding"]
    assert "_doctor" in found.checks["migrations"]["finding"]
    assert "npx supabase db push" in found.checks["database"]["mend"]


async def test_a_dead_worker_of_pg_net_is_noticed(patient: Patient) -> None:
    stack = patient.installation.stack
    await stack.supervisor.stop("pg_net")
    try:
        found = await patient.examine()
    finally:
        await stack.supervisor.start(stack.parts["pg_net"])
    assert found.not_ok() == {"pg_net": "broken"}
    assert "net.worker_restart()" in found.checks["pg_net"]["mend"]
    assert (await patient.examine()).not_ok() == {}


async def test_functions_that_were_not_deployed_with_this_environment_are_noticed(patient: Patient) -> None:
    right = patient.environment
    try:
        await patient.installation.deploy({"DOORKEY_WEBHOOK_SECRETS": OTHER_WEBHOOK_SECRET})
        found = await patient.examine()
        assert found.not_ok() == {"webhook_address": "broken"}
        assert "make deploy" in found.checks["webhook_address"]["mend"]
        await patient.installation.deploy({"DOORKEY_SEALING_KEYS": OTHER_SEALING_KEY})
        found = await patient.examine()
        assert found.not_ok() == {"webhook_address": "warning"}
        assert "sealing keys" in found.checks["webhook_address"]["finding"]
    finally:
        await patient.installation.deploy({name: right[name] for name in right if name != "DATABASE_URL"})


async def test_a_database_without_a_signing_secret_does_not_ring(patient: Patient) -> None:
    await patient.sql("update doorkey.settings set webhook_secret = null")
    found = await patient.examine()
    assert found.not_ok() == {"webhook_secret": "warning"}
    assert found.checks["webhook_secret"]["mend"] == "doorkey connect"
