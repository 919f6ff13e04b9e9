"""`doorkey connect` as an operator runs it, on a stack of its own: first, again, and interrupted at any point."""

from __future__ import annotations

import base64
import re
import shutil
import stat
from io import StringIO
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from functions.connection.store import proof_of
from infra.cli import connect as connect_command
from infra.connection.environments import EnvFile, Home
from infra.connection.ping import NotAnswered
from tests.support.installations import (
    SEALING_KEYS,
    WEBHOOK_SECRETS,
    Installation,
    kept,
    split,
)
from tests.support.secrets_used import leaks, remember

SOME_SEALING_KEY = "k7:" + base64.b64encode(bytes(range(7, 39))).decode()
SIGNED_WRONG = "whsec_" + base64.b64encode(bytes(range(9, 41))).decode()


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    """Where the functions' environment will be."""
    return tmp_path / "functions.env"


async def connect(installation: Installation, env_file: Path, *more: str) -> tuple[int, str]:
    """Runs the command; whatever it says, it shows no secret."""
    run = await installation.run("connect", "--env-file", str(env_file), *more)
    for value in (await kept(env_file)).values():
        assert not value or value.startswith("http") or len(value) < 16 or value not in run.out + run.err
    assert leaks((run.out + run.err).encode()) - {"an e-mail address"} == set()
    return run.code, run.said


@pytest.fixture
async def connected(installation: Installation, env_file: Path) -> dict[str, str]:
    """Connected and deployed; the environment."""
    code, said = await connect(installation, env_file, "--url", installation.stack.functions_url)
    assert code == 0, said
    environment = await kept(env_file)
    await installation.deploy(environment)
    return environment


def mode_of(path: Path) -> int:
    """Who may do what with a file."""
    return stat.S_IMODE(path.stat().st_mode)


async def refused_hints(installation: Installation) -> int:
    """How many hints the functions refused."""
    return int(await installation.database.value("select count(*) from net._http_response where status_code = 401"))


async def test_the_first_run_makes_all_that_is_missing_and_a_signup_rings(
    installation: Installation, env_file: Path
) -> None:
    code, said = await connect(installation, env_file, "--url", installation.stack.functions_url + "/")
    assert code == 0, said
    assert "Deploy the functions with this environment" in said
    assert mode_of(env_file) == 0o600
    environment = await kept(env_file)
    assert environment.keys() == installation.given().keys() - {"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"} | {
        SEALING_KEYS,
        WEBHOOK_SECRETS,
    }
    assert [await installation.signing_secret()] == split(environment, WEBHOOK_SECRETS)
    assert await installation.database.value("select webhook_url from doorkey.settings") == installation.url
    await installation.deploy(environment)
    await installation.somebody_ready()


async def test_before_the_deployment_another_run_changes_nothing(installation: Installation, env_file: Path) -> None:
    await connect(installation, env_file, "--url", installation.stack.functions_url)
    before = (await kept(env_file), await installation.signing_secret())
    code, said = await connect(installation, env_file)
    assert code == 1
    assert "don't accept the signing secret" in said
    assert "Deploy them" in said
    assert (await kept(env_file), await installation.signing_secret()) == before


async def test_while_rotating_the_functions_accept_every_hint(
    installation: Installation, env_file: Path, connected: dict[str, str]
) -> None:
    (old,) = split(connected, WEBHOOK_SECRETS)
    people = [await installation.somebody_ready()]

    code, said = await connect(installation, env_file)
    assert code == 0
    assert "Deploy the functions with both" in said
    both = await kept(env_file)
    new, second = split(both, WEBHOOK_SECRETS)
    assert (second, await installation.signing_secret()) == (old, old)
    people.append(await installation.somebody_ready())

    # Nobody deployed it: the database must stay with the old one.
    code, said = await connect(installation, env_file)
    assert code == 1
    assert "The database is as it was" in said
    assert (await kept(env_file), await installation.signing_secret()) == (both, old)

    await installation.deploy(both)
    people.append(await installation.somebody_ready())
    code, said = await connect(installation, env_file)
    assert code == 0
    assert "signs with the first secret" in said
    assert (await kept(env_file), await installation.signing_secret()) == (both, new)
    people.append(await installation.somebody_ready())

    # The next rotation drops the one before.
    assert (await connect(installation, env_file))[0] == 0
    newest, second = split(await kept(env_file), WEBHOOK_SECRETS)
    assert second == new
    assert newest not in (new, old)
    people.append(await installation.somebody_ready())
    assert await refused_hints(installation) == 0
    assert len({person.user_id for person in people}) == 5


async def test_the_sealing_key_outlives_every_rotation(
    installation: Installation, env_file: Path, connected: dict[str, str]
) -> None:
    person = await installation.somebody_ready()
    secret = await installation.shown_secret(person)
    for _ in range(3):
        code, said = await connect(installation, env_file)
        assert code == 0, said
        await installation.deploy(await kept(env_file))
    assert (await kept(env_file))[SEALING_KEYS] == connected[SEALING_KEYS]
    assert await installation.shown_secret(person) == secret


class Killed(BaseException):
    """The end, in the middle of something."""


class KilledAt(httpx.AsyncBaseTransport, Home):
    """Lets so many steps outside happen, counts them all, and dies before or after the next."""

    def __init__(self, home: Home, steps: int, *, is_after: bool) -> None:
        self._home = home
        self._inner = httpx.AsyncHTTPTransport()
        self._left = steps
        self._is_after = is_after

    def _live(self, *, is_after: bool) -> None:
        if is_after == self._is_after:
            if self._left == 0:
                raise Killed
            self._left -= 1

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._live(is_after=False)
        answer = await self._inner.handle_async_request(request)
        await answer.aread()
        self._live(is_after=True)
        return answer

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def read(self) -> dict[str, str]:
        return await self._home.read()

    async def write(self, environment: dict[str, str]) -> bool:  # type: ignore[override]
        self._live(is_after=False)
        is_changed = await self._home.write(environment)
        self._live(is_after=True)
        return is_changed


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("phase", ["first", "rotate", "switch"])
async def test_killed_at_any_point_and_run_again_all_is_well(
    installation: Installation, env_file: Path, monkeypatch: pytest.MonkeyPatch, phase: str, is_after: bool
) -> None:
    for name, value in installation.given().items():
        monkeypatch.setenv(name, value)
    url = installation.stack.functions_url
    if phase != "first":
        await connect(installation, env_file, "--url", url)
    if phase == "switch":
        await installation.deploy(await kept(env_file))
        await connect(installation, env_file)
    await installation.deploy(await kept(env_file))
    deployed = split(await kept(env_file), WEBHOOK_SECRETS)
    sealing_keys = (await kept(env_file)).get(SEALING_KEYS)

    for steps in range(10):
        killer = KilledAt(EnvFile(env_file), steps, is_after=is_after)
        try:
            await connect_command.run(Console(file=StringIO()), killer, url, transport=killer)
        except Killed:
            pass
        except NotAnswered:
            # The run before had written the new secret down, and nobody deployed it.
            assert (phase, len(split(await kept(env_file), WEBHOOK_SECRETS))) == ("rotate", 2)
            break
        else:
            break
        signing = await installation.signing_secret()
        environment = await kept(env_file)
        assert signing in ([None, *split(environment, WEBHOOK_SECRETS)] if phase == "first" else deployed)
        if signing is not None:
            assert signing in split(environment, WEBHOOK_SECRETS)
        sealing_keys = sealing_keys or environment.get(SEALING_KEYS)
        assert environment.get(SEALING_KEYS) == sealing_keys
        if phase == "switch" and signing == deployed[0]:
            break
        if phase == "first" and signing is not None:
            break
    else:
        pytest.fail("it never came to its end")

    await installation.deploy(await kept(env_file))
    assert (await connect(installation, env_file))[0] == 0
    await installation.deploy(await kept(env_file))
    assert (await connect(installation, env_file))[0] == 0
    await installation.somebody_ready()


async def test_a_sealing_key_that_is_there_is_kept_to_the_letter(installation: Installation, env_file: Path) -> None:
    given = installation.given(**{SEALING_KEYS: SOME_SEALING_KEY})
    words = ("connect", "--env-file", str(env_file), "--url", installation.stack.functions_url)
    assert (await installation.run(*words, environment=given)).code == 0
    assert (await kept(env_file))[SEALING_KEYS] == SOME_SEALING_KEY
    # What is kept goes before what is given, and it is said.
    given[SEALING_KEYS] = "k8:" + SOME_SEALING_KEY.partition(":")[2]
    run = await installation.run(*words, environment=given)
    assert (await kept(env_file))[SEALING_KEYS] == SOME_SEALING_KEY
    assert SEALING_KEYS in run.said


async def test_no_sealing_key_is_made_where_stored_keys_need_another(
    installation: Installation, env_file: Path, connected: dict[str, str]
) -> None:
    await installation.somebody_ready()
    elsewhere = env_file.with_name("elsewhere.env")
    given = installation.given(**{WEBHOOK_SECRETS: connected[WEBHOOK_SECRETS]})
    for environment in (given, {**given, SEALING_KEYS: SOME_SEALING_KEY}):
        run = await installation.run("connect", "--env-file", str(elsewhere), environment=environment)
        assert run.code == 1
        assert "with another key nobody could open it again" in run.said
        assert not elsewhere.exists()
    told = await installation.run(
        "connect", "--env-file", str(elsewhere), "--give-up-sealed-secrets", environment=given
    )
    assert told.code == 0, told.said
    assert split(await kept(elsewhere), SEALING_KEYS)


async def test_who_does_not_have_the_signing_secret_is_told_and_changes_nothing(
    installation: Installation, env_file: Path, connected: dict[str, str]
) -> None:
    elsewhere = env_file.with_name("elsewhere.env")
    for secrets in ("", SIGNED_WRONG):
        run = await installation.run(
            "connect", "--env-file", str(elsewhere), environment=installation.given(**{WEBHOOK_SECRETS: secrets})
        )
        assert run.code == 1
        assert "not in DOORKEY_WEBHOOK_SECRETS here" in run.said
    assert not elsewhere.exists()
    assert [await installation.signing_secret()] == split(connected, WEBHOOK_SECRETS)


async def test_another_address_is_stored_only_when_the_functions_answer_there(
    installation: Installation, env_file: Path, connected: dict[str, str]
) -> None:
    for wrong, why in (
        (f"{installation.stack.supabase_url}", "not doorkey's webhook"),
        ("http://127.0.0.1:1", "Nothing answers"),
    ):
        code, said = await connect(installation, env_file, "--url", wrong)
        assert code == 1
        assert why in said
    assert await installation.database.value("select webhook_url from doorkey.settings") == installation.url
    other = installation.stack.functions_url.replace("127.0.0.1", "localhost")
    code, said = await connect(installation, env_file, "--url", other)
    assert code == 0, said
    assert await installation.database.value("select webhook_url from doorkey.settings") == f"{other}/webhooks/supabase"
    assert await kept(env_file) == connected


async def test_secrets_are_printed_only_when_asked_for_and_then_alone(installation: Installation) -> None:
    run = await installation.run("connect", "--url", installation.stack.functions_url)
    assert run.code == 2
    assert "--env-file PATH, --stage NAME or --print" in run.said
    assert await installation.signing_secret() is None
    run = await installation.run("connect", "--print", "--url", installation.stack.functions_url)
    assert run.code == 0, run.said
    printed = dict(line.split("=", 1) for line in run.out.splitlines())
    assert [await installation.signing_secret()] == split(printed, WEBHOOK_SECRETS)
    assert printed.keys() >= {SEALING_KEYS, "SUPABASE_URL", "DOORKEY_PROJECT"}
    assert leaks(run.err.encode()) == set()
    # It prints what is to be kept, not what is there already.
    await installation.deploy(printed)
    again = await installation.run("connect", "--print", environment={**installation.given(), **printed})
    assert split(dict(line.split("=", 1) for line in again.out.splitlines()), WEBHOOK_SECRETS)[1:] == split(
        printed, WEBHOOK_SECRETS
    )


async def test_what_is_missing_is_said_all_at_once_and_nothing_is_made(
    installation: Installation, env_file: Path
) -> None:
    given = installation.given(DOORKEY_PROJECT=None, OPENROUTER_MANAGEMENT_KEY=None)
    run = await installation.run("connect", "--env-file", str(env_file), environment=given)
    assert run.code == 1
    assert "DOORKEY_PROJECT: is not set" in run.said
    assert "OPENROUTER_MANAGEMENT_KEY: is not set" in run.said
    assert (await installation.run("connect", "--env-file", "x", "--url", "api.example.com")).code == 2
    assert await kept(env_file) == {}


async def test_a_rejected_service_key_is_a_sentence(installation: Installation, env_file: Path) -> None:
    wrong = "sb_secret_" + "0" * 32
    run = await installation.run(
        "connect",
        "--env-file",
        str(env_file),
        "--url",
        installation.url,
        environment=installation.given(SUPABASE_SECRET_KEY=wrong),
    )
    assert run.code == 1
    assert "service_key_rejected" in run.said
    assert "Traceback" not in run.said
    assert wrong not in run.out + run.err


async def test_two_at_once_leave_a_pair_that_fits(
    installation: Installation, env_file: Path, connected: dict[str, str]
) -> None:
    """Whoever of two comes late is told so, and the database signs with what somebody wrote down."""
    await connect(installation, env_file)
    both = await kept(env_file)
    await installation.deploy(both)
    other = env_file.with_name("other.env")
    shutil.copy(env_file, other)
    first, second = [
        await installation.start_command("connect", "--env-file", str(path), environment=installation.given())
        for path in (env_file, other)
    ]
    for process in (first, second):
        await process.communicate()
    assert 0 in (first.returncode, second.returncode)
    assert await installation.signing_secret() in split(both, WEBHOOK_SECRETS)
    assert split(connected, WEBHOOK_SECRETS)[0] in split(both, WEBHOOK_SECRETS)
    await installation.somebody_ready()


async def test_a_ping_is_answered_to_those_who_sign_and_names_no_secret(
    installation: Installation, connected: dict[str, str]
) -> None:
    body = b'{"type": "PING", "schema": "doorkey", "table": "settings"}'
    answer = await installation.http.post(installation.url, content=body)
    assert answer.status_code == 401
    assert "sealing_key_ids" not in answer.text
    shared = installation.stack.secrets.webhook_shared_secret
    answer = await installation.http.post(installation.url, content=body, headers={"x-webhook-secret": shared})
    assert answer.json()["sealing_key_ids"] == [key.partition(":")[0] for key in split(connected, SEALING_KEYS)]
    assert set(answer.json()) <= {"outcome", "sealing_key_ids", "request_id"}


async def test_no_log_of_that_stack_shows_what_was_made(
    installation: Installation, env_file: Path, connected: dict[str, str]
) -> None:
    del env_file
    for secret in split(connected, WEBHOOK_SECRETS) + split(connected, SEALING_KEYS):
        remember("a secret that connect made", secret, re.split("[:_]", secret, maxsplit=1)[1])
        remember("a digest that proves a secret", proof_of(secret))
    found = {log.name: leaks(log.read_bytes()) for log in installation.stack.log_folder.iterdir()}
    assert {name: kinds for name, kinds in found.items() if kinds} == {}
    assert (installation.stack.log_folder / "edge.log").stat().st_size
