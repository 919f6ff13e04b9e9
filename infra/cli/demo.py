"""``doorkey demo``: three people sign up, and everything that they get is shown."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from infra.local.stack import Stack, StackOptions, running_stack

PEOPLE = ("Ada Lovelace", "Grace Hopper", "Katherine Johnson")
READY_SECONDS = 15.0
POLL_SECONDS = 0.025
STACK_STEPS = 5


class DemoFailed(Exception):
    """The demo did not show what it promises; the message says what."""


@dataclass
class Person:
    """Somebody who signs up."""

    name: str
    email: str
    token: str = field(default="", repr=False)
    signup_ms: float = 0.0
    ready_ms: float = 0.0
    me: dict[str, Any] = field(default_factory=dict)


async def run(console: Console, options: StackOptions) -> None:
    """Starts a stack, shows it, stops it.

    Raises:
        PartFailed: a part of the stack did not start or died.
        DemoFailed: something is not as it must be.
    """
    started = time.perf_counter()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
        task = progress.add_task("Starting the stack", total=STACK_STEPS + 1)

        def show(step: str) -> None:
            progress.update(task, advance=1, description=f"Starting the stack: {step}")

        async with running_stack(options, show) as stack:
            progress.update(task, completed=STACK_STEPS + 1, description="The stack is up")
            progress.stop()
            console.print(f"The stack is up: {len(stack.parts) + 1} parts, {time.perf_counter() - started:.1f} s.")
            death = asyncio.ensure_future(stack.supervisor.death())
            show_all = asyncio.ensure_future(_show(console, stack))
            await asyncio.wait((death, show_all), return_when=asyncio.FIRST_COMPLETED)
            if death.done():
                show_all.cancel()
                raise death.result()
            death.cancel()
            show_all.result()
    console.print(f"Everything is stopped and removed. {time.perf_counter() - started:.1f} s in all.")


async def _show(console: Console, stack: Stack) -> None:
    people = [Person(name, f"{name.split()[0].lower()}.{secrets.token_hex(3)}@example.com") for name in PEOPLE]
    async with httpx.AsyncClient(timeout=READY_SECONDS, trust_env=False) as client:
        console.print("\n[bold]Three people sign up through Supabase Auth[/bold]")
        with Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console
        ) as progress:
            tasks = {person.name: progress.add_task(f"{person.name}: signing up") for person in people}
            await asyncio.gather(*(_sign_up(client, stack, p, progress, tasks[p.name]) for p in people))
        console.print(_table(people))
        await _chat(console, client, stack, people[0])


async def _sign_up(client: httpx.AsyncClient, stack: Stack, person: Person, progress: Progress, task: TaskID) -> None:
    started = time.perf_counter()
    response = await client.post(
        f"{stack.supabase_url}/auth/v1/signup",
        headers={"apikey": stack.secrets.publishable_key},
        json={"email": person.email, "password": secrets.token_urlsafe(12), "data": {"full_name": person.name}},
    )
    if response.status_code != 200:
        raise DemoFailed(f"The signup of {person.name} was answered with {response.status_code}.")
    signed_up = time.perf_counter()
    person.signup_ms = (signed_up - started) * 1000
    person.token = response.json()["access_token"]
    while time.perf_counter() - signed_up < READY_SECONDS:
        me = await client.get(f"{stack.functions_url}/v1/me", headers=_bearer(person.token))
        if me.status_code == 200:
            person.me = me.json()
            progress.update(task, description=f"{person.name}: {person.me['status']}")
            if person.me["status"] == "active":
                person.ready_ms = (time.perf_counter() - signed_up) * 1000
                progress.update(task, description=f"{person.name}: active", total=1, completed=1)
                return
        await asyncio.sleep(POLL_SECONDS)
    raise DemoFailed(
        f"{person.name} has no key after {READY_SECONDS:.0f} seconds; "
        "run it with --log-folder build/logs and see functions.log."
    )


def _table(people: list[Person]) -> Table:
    table = Table(title="What each of them has now", title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    # A key's name is 60 characters long and must not be cut.
    table.add_column(overflow="fold")
    for person in people:
        me, key = person.me, person.me["key"]
        table.add_row("Profile", f"{me['full_name']}, {me['email']}")
        table.add_row("Balance", f"{me['balance']['credits']} credits ({me['balance']['plan']})")
        table.add_row("Key", key["name"])
        table.add_row("Limit", f"{_dollars(key['limit_micros'])} on {key['label']}")
        table.add_row("Took", f"{person.ready_ms:.0f} ms to the key, after a signup of {person.signup_ms:.0f} ms")
        table.add_section()
    return table


async def _chat(console: Console, client: httpx.AsyncClient, stack: Stack, person: Person) -> None:
    """One call with the person's own key, and what it did to the key's usage."""
    response = await client.get(f"{stack.functions_url}/v1/me/key", headers=_bearer(person.token))
    secret = response.json().get("secret") if response.status_code == 200 else None
    if not secret:
        raise DemoFailed(f"{person.name} can't see the secret of their key ({response.status_code}).")
    before = await _usage(client, stack, secret)
    answer = await client.post(
        f"{stack.openrouter_url}/chat/completions",
        headers=_bearer(secret),
        json={"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "Who are you?"}]},
    )
    if answer.status_code != 200:
        raise DemoFailed(f"The chat call was answered with {answer.status_code}.")
    after = await _usage(client, stack, secret)
    if after["usage"] <= before["usage"]:
        raise DemoFailed("The chat call did not move the key's usage.")
    console.print(f"\n[bold]{person.name} makes a chat call with their own key[/bold]")
    table = Table(title_justify="left")
    for heading in ("Key", "Usage before", "Usage after", "Left of the limit"):
        table.add_column(heading, justify="left" if heading == "Key" else "right")
    table.add_row(
        person.me["key"]["label"],
        f"${before['usage']:.6f}",
        f"${after['usage']:.6f}",
        f"${after['limit_remaining']:.6f}",
    )
    console.print(table)


async def _usage(client: httpx.AsyncClient, stack: Stack, secret: str) -> dict[str, Any]:
    response = await client.get(f"{stack.openrouter_url}/key", headers=_bearer(secret))
    if response.status_code != 200:
        raise DemoFailed(f"OpenRouter answered {response.status_code} about the new key.")
    data: dict[str, Any] = response.json()["data"]
    return data


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _dollars(micros: int | None) -> str:
    return "none" if micros is None else f"${micros / 1_000_000:.2f}"
