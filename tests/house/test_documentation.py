"""Every setting, command, error code and make target is documented: a test completes every list."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined
from typer import Typer
from typer.models import CommandInfo

from functions.kit.errors import DoorkeyError
from functions.kit.settings import Settings
from infra.cli.main import app
from infra.doctor.lines import judges
from infra.doctor.places import Place
from infra.doctor.settings import examine_settings
from infra.local.stack import CHECKOUT
from tests.support.databases import Database

README = (CHECKOUT / "README.md").read_text()
ALARMS = (CHECKOUT / "infra" / "aws" / "alarms.yml").read_text()


def settings_table() -> str:
    """The table in docs/settings.md, as the code has it."""
    rows = ["| variable | default | what it is |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        if field.is_required():
            default = "**required**"
        elif field.default in (None, ()) or field.default is PydanticUndefined:
            default = "not set"
        else:
            default = f"`{field.default}`"
        rows.append(f"| `{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def commands(of: Typer = app, prefix: str = "") -> dict[str, CommandInfo]:
    """Every command of `doorkey`, those of its groups too."""
    own = {prefix + (info.name or info.callback.__name__): info for info in of.registered_commands if info.callback}
    for group in of.registered_groups:
        assert group.typer_instance is not None
        own |= commands(group.typer_instance, f"{prefix}{group.typer_instance.info.name} ")
    return own


def test_every_setting_is_documented() -> None:
    table = settings_table()
    assert table in (CHECKOUT / "docs" / "settings.md").read_text(), f"Put this into docs/settings.md:\n{table}"


async def test_every_setting_of_the_database_is_documented(database: Database) -> None:
    page = (CHECKOUT / "docs" / "settings.md").read_text()
    columns = await database.rows(
        "select attname from pg_attribute where attrelid = 'doorkey.settings'::regclass and attnum > 0"
        " and not attisdropped and attname <> 'only_row'"
    )
    missing = {row["attname"] for row in columns if f"`{row['attname']}`" not in page}
    assert not missing, "Say in docs/settings.md what it is."


@pytest.mark.parametrize("name", list(commands()))
def test_every_command_has_help_and_an_example_and_is_in_the_readme(name: str) -> None:
    command = commands()[name]
    assert command.callback is not None
    assert command.help or command.callback.__doc__
    assert f"doorkey {name}" in (command.epilog or ""), "Give an example in the epilog."
    assert f"doorkey {name}" in README


def test_every_make_target_has_a_line_of_help() -> None:
    makefile = (CHECKOUT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    explained = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert targets == explained
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())  # type: ignore[index]
    assert phony == targets


def test_every_line_of_the_doctors_is_documented() -> None:
    nowhere = Place("nothing", {}, None)
    page = (CHECKOUT / "docs" / "doctor.md").read_text()
    documented = re.findall(r"^\| `([a-z_]+)` \|", page, re.MULTILINE)
    assert documented == list(judges(nowhere, examine_settings({}), {})), "Say in docs/doctor.md what it looks at."


def test_every_page_that_the_doctor_names_is_there() -> None:
    sources = [path for folder in ("functions/health", "infra/doctor") for path in (CHECKOUT / folder).glob("*.py")]
    named = {page for path in sources for page in re.findall(r"docs/[a-z]+\.md(?:#[a-z-]+)?", path.read_text())}
    assert len(named) >= 6
    for page in named:
        name, _, anchor = page.partition("#")
        assert not anchor or anchor in anchors((CHECKOUT / name).read_text()), page


def _all_errors(kind: type[DoorkeyError] = DoorkeyError) -> list[type[DoorkeyError]]:
    return [kind, *(inner for child in kind.__subclasses__() for inner in _all_errors(child))]


def test_every_error_code_is_documented() -> None:
    for module in ("functions.clients.supabase", "functions.clients.openrouter"):
        importlib.import_module(module)
    page = (CHECKOUT / "docs" / "errors.md").read_text()
    missing = {kind.code for kind in _all_errors() if f"`{kind.code}`" not in page}
    assert not missing, "Say in docs/errors.md what it means, who can mend it, and how."


def test_every_alarm_has_its_section_and_every_section_its_alarm() -> None:
    alarms = set(re.findall(r"AlarmName: doorkey-\$\{sls:stage\}-([a-z-]+)$", ALARMS, re.MULTILINE))
    page = (CHECKOUT / "docs" / "operations.md").read_text()
    sections = set(re.findall(r"^### `([a-z-]+)`$", page, re.MULTILINE))
    assert len(alarms) == ALARMS.count("AWS::CloudWatch::Alarm")
    assert alarms == sections, "Say in docs/operations.md what it means and what to do."


@pytest.mark.parametrize(
    "path", [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        page = path.parent / name if name else path
        if not page.exists() or (anchor and anchor not in anchors(page.read_text())):
            broken.append(target)
    assert not broken


def anchors(text: str) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-") for heading in headings}
