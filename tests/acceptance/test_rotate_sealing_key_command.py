"""`doorkey rotate-sealing-key` as an operator runs it, on a stack of its own, while people sign up and look at keys."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from io import StringIO
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from functions.connection.store import LIST_SEALED_SECRETS
from functions.kit.sealing import Sealer, SealingKey
from infra.cli import rotate_sealing_key as rotate_command
from infra.connection.environments import EnvFile
from infra.connection.plans import CannotGoOn
from infra.connection.resealing import PAGE_ROWS
from tests.support.doors import key_hash
from tests.support.installations import SEALING_KEYS, WEBHOOK_SECRETS, Installation, Run, kept, split
from tests.support.people import Person
from tests.support.scenes import Between, once_after
from tests.support.secrets_used import leaks

MANY_ROWS = 5 * PAGE_ROWS
DONE = "Nothing is sealed with"


@pytest.fixture
async def env_file(installation: Installation, tmp_path: Path) -> Path:
    """The functions' environment, as they run with it; the database is connected."""
    path = tmp_path / "functions.env"
    run = await installation.run("connect", "--env-file", str(path), "--url", installation.url)
    assert run.code == 0, run.said
    await installation.deploy(await kept(path))
    return path


async def rotate(installation: Installation, env_file: Path, *more: str) -> Run:
    """Runs the command; it never shows a secret."""
    run = await installation.run("rotate-sealing-key", "--env-file", str(env_file), *more)
    assert leaks((run.out + run.err).encode()) == set()
    for key in split(await kept(env_file), SEALING_KEYS):
        assert key.partition(":")[2] not in run.out + run.err
    return run


async def to_the_last_step(installation: Installation, env_file: Path) -> tuple[str, str]:
    """Up to where everything will be sealed anew; the ids of the new key and of the old."""
    for _ in range(2):
        run = await rotate(installation, env_file)
        assert run.code == 0, run.said
        await installation.deploy(await kept(env_file))
    new, old = ids(await kept(env_file))
    return new, old


def ids(environment: Mapping[str, str]) -> list[str]:
    return [key.partition(":")[0] for key in split(environment, SEALING_KEYS)]


async def counts(installation: Installation) -> dict[str, int]:
    """How many rows each key has sealed."""
    rows = await installation.database.rows(
        "select split_part(sealed_secret, '.', 2) as id, count(*) from doorkey.sealed_secrets group by 1"
    )
    return {row["id"]: row["count"] for row in rows}


async def seal_many(installation: Installation, environment: Mapping[str, str], how_many: int) -> dict[str, str]:
    """Rows sealed with the environment's first key, by their hashes: the secrets in them."""
    sealer = Sealer(tuple(SealingKey.parse(key) for key in split(environment, SEALING_KEYS)))
    user_ids = [uuid.uuid4() for _ in range(how_many)]
    secrets = {key_hash(str(user_id)): f"secret of {user_id}" for user_id in user_ids}
    people = dict(zip(secrets, user_ids, strict=True))
    sealed = [sealer.seal(secret, user_id=people[name], key_hash=name) for name, secret in secrets.items()]
    await installation.database.run(
        """with made as (
             insert into public.openrouter_user_keys (key_hash, user_id, key_name, attempt)
             select m.key_hash, m.user_id, 'test', 1 from unnest(%s::text[], %s::uuid[]) as m (key_hash, user_id))
           select""",
        (list(people), user_ids),
    )
    await installation.database.run(
        "insert into doorkey.sealed_secrets (key_hash, sealed_secret) select * from unnest(%s::text[], %s::text[])",
        (list(people), sealed),
    )
    return secrets


async def opened(installation: Installation, environment: Mapping[str, str]) -> dict[str, str]:
    """Every stored secret, opened with this environment's keys."""
    sealer = Sealer(tuple(SealingKey.parse(key) for key in split(environment, SEALING_KEYS)))
    rows = await installation.database.rows(
        "select s.key_hash, s.sealed_secret, k.user_id from doorkey.sealed_secrets s"
        " join public.openrouter_user_keys k using (key_hash)"
    )
    return {
        row["key_hash"]: sealer.open(row["sealed_secret"], user_id=row["user_id"], key_hash=row["key_hash"])
        for row in rows
    }


async def test_users_see_the_same_key_through_the_whole_rotation(installation: Installation, env_file: Path) -> None:
    shown: dict[uuid.UUID, tuple[Person, str]] = {}

    async def somebody_comes_and_everybody_looks() -> None:
        person = await installation.somebody_ready()
        shown[person.user_id] = person, await installation.shown_secret(person)
        for known, secret in shown.values():
            assert await installation.shown_secret(known) == secret

    (old,) = ids(await kept(env_file))
    await somebody_comes_and_everybody_looks()

    # The new key opens before it seals.
    run = await rotate(installation, env_file)
    assert (run.code, "behind the one that seals" in run.said) == (0, True)
    _, new = ids(await kept(env_file))
    await somebody_comes_and_everybody_looks()
    await installation.deploy(await kept(env_file))
    await somebody_comes_and_everybody_looks()
    assert await counts(installation) == {old: 3}

    run = await rotate(installation, env_file)
    assert (run.code, "seals anew what is stored" in run.said) == (0, True)
    assert ids(await kept(env_file)) == [new, old]
    await installation.deploy(await kept(env_file))
    await somebody_comes_and_everybody_looks()
    assert await counts(installation) == {old: 3, new: 1}

    run = await rotate(installation, env_file)
    assert (run.code, f"{DONE} {old} any more" in run.said) == (0, True)
    assert "3 stored keys were sealed anew" in run.said
    assert await counts(installation) == {new: 4}
    await somebody_comes_and_everybody_looks()

    # Said again, not begun again.
    run = await rotate(installation, env_file)
    assert (run.code, f"{DONE} {old} any more" in run.said) == (0, True)
    run = await rotate(installation, env_file, "--remove-old")
    assert run.code == 0, run.said
    assert ids(await kept(env_file)) == [new]
    await installation.deploy(await kept(env_file))
    await somebody_comes_and_everybody_looks()


async def test_no_step_is_taken_before_the_one_before_is_deployed(installation: Installation, env_file: Path) -> None:
    for _ in range(3):
        run = await rotate(installation, env_file)
        assert run.code == 0
        before = await kept(env_file)
        if ids(before)[0].startswith("k") and DONE in run.said:
            break
        for words in ([], ["--remove-old"]):
            run = await rotate(installation, env_file, *words)
            assert run.code == 1
            assert "Deploy them with it" in run.said
        assert await kept(env_file) == before
        await installation.deploy(before)
    else:
        pytest.fail("it never came to its end")


async def test_the_old_key_stays_while_it_seals_anything(installation: Installation, env_file: Path) -> None:
    run = await rotate(installation, env_file, "--remove-old")
    assert run.code == 1
    assert "no old sealing key that could go" in run.said
    await seal_many(installation, await kept(env_file), 1)
    await to_the_last_step(installation, env_file)
    run = await rotate(installation, env_file, "--remove-old")
    assert run.code == 1
    assert "1 stored key is not sealed with" in run.said
    assert len(ids(await kept(env_file))) == 2


async def test_killed_in_the_middle_and_run_again_nothing_is_lost(installation: Installation, env_file: Path) -> None:
    secrets = await seal_many(installation, await kept(env_file), MANY_ROWS)
    new, old = await to_the_last_step(installation, env_file)
    in_the_middle = sorted(secrets)[3 * PAGE_ROWS + 7]
    async with installation.database.connect(autocommit=False) as connection:
        await connection.execute("select from doorkey.sealed_secrets where key_hash = %s for update", (in_the_middle,))
        process = await installation.start_command(
            "rotate-sealing-key", "--env-file", str(env_file), environment=installation.given()
        )
        await installation.until_blocked()
        process.kill()
        await process.communicate()
        assert await counts(installation) == {new: 3 * PAGE_ROWS, old: MANY_ROWS - 3 * PAGE_ROWS}
        assert await opened(installation, await kept(env_file)) == secrets
    run = await rotate(installation, env_file)
    assert (run.code, DONE in run.said) == (0, True)
    assert await counts(installation) == {new: MANY_ROWS}
    assert await opened(installation, {SEALING_KEYS: split(await kept(env_file), SEALING_KEYS)[0]}) == secrets


async def test_what_cannot_be_opened_is_named_and_left_and_the_rest_is_done(
    installation: Installation, env_file: Path
) -> None:
    secrets = await seal_many(installation, await kept(env_file), 5)
    broken = sorted(secrets)[2]
    await installation.database.run(
        "update doorkey.sealed_secrets set sealed_secret = overlay(sealed_secret placing 'AAAA' from 40)"
        " where key_hash = %s",
        (broken,),
    )
    new, old = await to_the_last_step(installation, env_file)
    for _ in range(2):
        run = await rotate(installation, env_file)
        assert run.code == 1
        assert broken in run.said
        assert "can't be opened" in run.said
        assert DONE not in run.said
        assert await counts(installation) == {new: 4, old: 1}
    assert (await rotate(installation, env_file, "--remove-old")).code == 1


def in_process(
    installation: Installation, env_file: Path, monkeypatch: pytest.MonkeyPatch, transport: httpx.AsyncBaseTransport
) -> Awaitable[None]:
    """The command with its wires in the test's hands."""
    for name, value in installation.given().items():
        monkeypatch.setenv(name, value)
    return rotate_command.run(Console(file=StringIO()), EnvFile(env_file), transport=transport)


Meanwhile = Callable[[], Awaitable[object]]


async def test_what_changes_meanwhile_is_not_overwritten_and_what_comes_is_found(
    installation: Installation, env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = await kept(env_file)
    secrets = await seal_many(installation, environment, 4)
    changed, deleted, *_ = sorted(secrets)
    new, _ = await to_the_last_step(installation, env_file)
    come: dict[str, str] = {}
    people: list[Person] = []

    async def meanwhile() -> None:
        owner = await installation.database.value(
            "select user_id from public.openrouter_user_keys where key_hash = %s", (changed,)
        )
        sealer = Sealer(tuple(SealingKey.parse(key) for key in split(environment, SEALING_KEYS)))
        await installation.database.run(
            "update doorkey.sealed_secrets set sealed_secret = %s where key_hash = %s",
            (sealer.seal("another secret", user_id=owner, key_hash=changed), changed),
        )
        await installation.database.run("delete from doorkey.sealed_secrets where key_hash = %s", (deleted,))
        # A worker from before the last deployment, and somebody who signs up just now.
        come.update(await seal_many(installation, environment, 2))
        people.append(await installation.somebody_ready())

    transport = Between(after=once_after(LIST_SEALED_SECRETS.name, meanwhile))
    await in_process(installation, env_file, monkeypatch, transport)
    (person,) = people
    stored = await opened(installation, {SEALING_KEYS: split(await kept(env_file), SEALING_KEYS)[0]})
    expected = {**secrets, **come, changed: "another secret"}
    del expected[deleted]
    assert {name: stored[name] for name in expected} == expected
    assert await counts(installation) == {new: len(expected) + 1}
    assert await installation.shown_secret(person) in stored.values()


def _sealed_anew(said: str) -> int:
    match = re.search(r"([\d,]+) stored keys? (was|were) sealed anew", said)
    assert match, said
    return int(match[1].replace(",", ""))


async def test_two_at_once_do_each_row_once(installation: Installation, env_file: Path) -> None:
    secrets = await seal_many(installation, await kept(env_file), MANY_ROWS)
    new, _ = await to_the_last_step(installation, env_file)
    processes = [
        await installation.start_command(
            "rotate-sealing-key", "--env-file", str(env_file), environment=installation.given()
        )
        for _ in range(2)
    ]
    said = [(await process.communicate())[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(_sealed_anew(text) for text in said) == MANY_ROWS
    assert await counts(installation) == {new: MANY_ROWS}
    assert await opened(installation, await kept(env_file)) == secrets


async def test_a_signing_secret_that_was_switched_meanwhile_stops_it(
    installation: Installation, env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await seal_many(installation, await kept(env_file), 1)
    await to_the_last_step(installation, env_file)

    async def meanwhile() -> None:
        await installation.database.run("update doorkey.settings set webhook_secret = null")

    transport = Between(after=once_after(LIST_SEALED_SECRETS.name, meanwhile))
    with pytest.raises(CannotGoOn, match="changed at this moment"):
        await in_process(installation, env_file, monkeypatch, transport)


async def test_before_connecting_it_says_what_to_do_first(installation: Installation, env_file: Path) -> None:
    environment = await kept(env_file)
    await installation.database.run("update doorkey.settings set webhook_secret = null")
    run = await rotate(installation, env_file)
    assert (run.code, "run doorkey connect" in run.said) == (1, True)
    run = await installation.run("rotate-sealing-key", "--print", environment=installation.given())
    assert (run.code, "DOORKEY_SEALING_KEYS: is not set" in run.said) == (1, True)
    assert environment[WEBHOOK_SECRETS] not in run.out
