"""``doorkey domains``: where mail counts as throw-away, when welcomes are held back.

The surprising thing: what is listed counts for what is below it, too: a domain's every subdomain.
"""

from __future__ import annotations

import json
import re
import uuid
from typing import Annotated

import typer
from rich.console import Console

from functions.clients.outside import build_clients
from functions.kit.counting import counted
from functions.kit.settings import Settings
from functions.offers import store
from infra.cli.actor import operator_name
from infra.cli.dollars import refuse
from infra.cli.running import run_command

PAGE_ROWS = 1_000
MAX_PAGES = 1_000
MAX_CHARACTERS = 253
DOMAIN = re.compile(r"[^@\s.]+(\.[^@\s.]+)+")

app = typer.Typer(
    name="domains",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Where mail counts as throw-away. Needs the functions' environment (docs/settings.md).",
)
console = Console()

Domain = Annotated[str, typer.Argument(help="Such as mailinator.com; what is below it counts, too.")]


@app.command("list", epilog="Example: [bold]doorkey domains list[/bold]")
def list_(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Shows every domain whose mail counts as throw-away."""
    run_command(_list(as_json))


@app.command(epilog="Example: [bold]doorkey domains add another.example[/bold]")
def add(domain: Domain) -> None:
    """Has mail there count as throw-away: where `reviews_mail` is on, who comes with it is held."""
    run_command(_set(_domain(domain), is_disposable=True))


@app.command(epilog="Example: [bold]doorkey domains remove another.example[/bold]")
def remove(domain: Domain) -> None:
    """Has mail there count as any other, for who comes from now on. Who is held already stays so: `doorkey review`."""
    run_command(_set(_domain(domain), is_disposable=False))


async def _list(as_json: bool) -> None:
    clients = build_clients(Settings.from_environment())
    domains: list[str] = []
    async with clients.http:
        for _ in range(MAX_PAGES):
            after = domains[-1] if domains else None
            page = await store.list_domains(clients.supabase, after_domain=after, domain_rows=PAGE_ROWS)
            domains += page
            if len(page) < PAGE_ROWS:
                break
    if as_json:
        console.print_json(json.dumps(domains))
        return
    for domain in domains:
        console.print(domain, highlight=False, markup=False, soft_wrap=True)
    console.print(f"Mail at {counted(len(domains), 'domain counts', 'domains counts')} as throw-away.")


async def _set(domain: str, *, is_disposable: bool) -> None:
    clients = build_clients(Settings.from_environment())
    async with clients.http:
        is_new = await store.set_domain(
            clients.supabase,
            domain,
            is_disposable=is_disposable,
            actor=operator_name(),
            request_id=uuid.uuid4().hex,
        )
    since = "from now on" if is_new else "as it did before"
    console.print(
        f"Mail at {domain} counts as {'throw-away' if is_disposable else 'any other'}, {since}.",
        highlight=False,
        markup=False,
    )


def _domain(given: str) -> str:
    domain = given.strip().lower()
    if not DOMAIN.fullmatch(domain) or not domain.isprintable() or len(domain) > MAX_CHARACTERS:
        refuse("DOMAIN", "a domain such as mailinator.com.")
    return domain
