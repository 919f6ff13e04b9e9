"""Rules of the house that a linter doesn't know. Each message says what to do instead."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from functions.provisioning.states import ProvisioningState
from infra.local.lock_check import problems
from infra.local.stack import CHECKOUT
from tests.support.databases import Database

FUNCTIONS = sorted((CHECKOUT / "functions").rglob("*.py"))
OWN_CODE = [*FUNCTIONS, *sorted((CHECKOUT / "infra").rglob("*.py"))]
TESTS = sorted((CHECKOUT / "tests").rglob("*.py"))
MAX_LINES = 400
# Where a person reads how many there are, it may be one.
COUNTED = re.compile(
    r" ([a-z']+ )?(accounts|calls|checks|figures|keys|migrations|offers|receipts|requests|rows|seconds|settings"
    r"|signups|strays|transactions|users|welcomes)\b"
)
SPOKEN = {"functions/health", "infra/cli", "infra/connection", "infra/doctor"}
ALWAYS_SEVERAL = {"len(files)", "len(names)", "rows"}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def test_only_settings_reads_the_environment() -> None:
    readers = [
        str(path.relative_to(CHECKOUT))
        for path in FUNCTIONS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        and node.attr in ("environ", "getenv", "environb")
    ]
    assert set(readers) <= {"functions/kit/settings.py"}, "Add a field to Settings and take it from there."


def test_modules_say_what_they_are_for() -> None:
    silent = [
        str(path.relative_to(CHECKOUT))
        for path in [*OWN_CODE, *TESTS]
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent, "Open the module with what it is for, and the one surprising thing."


def test_public_names_are_documented() -> None:
    silent = [
        f"{path.relative_to(CHECKOUT)}:{node.lineno} {node.name}"
        for path in OWN_CODE
        for node in _public_definitions(ast.parse(path.read_text()))
        if not ast.get_docstring(node)
    ]
    assert not silent, "Say what it means, in which units, and which errors it raises."


def test_one_of_a_thing_is_no_plural() -> None:
    found = [
        f"{path.relative_to(CHECKOUT)}:{text.lineno} {ast.unparse(value)}"
        for path in OWN_CODE
        if "/".join(path.relative_to(CHECKOUT).parts[:2]) in SPOKEN
        for text, value in _numbers_before_plurals(ast.parse(path.read_text()))
        if not (isinstance(value, ast.Name) and value.id.isupper()) and ast.unparse(value) not in ALWAYS_SEVERAL
    ]
    assert not found, "Say it by functions.kit.counting.counted, or put it into ALWAYS_SEVERAL."


def _numbers_before_plurals(tree: ast.Module) -> Iterator[tuple[ast.JoinedStr, ast.expr]]:
    for text in ast.walk(tree):
        if isinstance(text, ast.JoinedStr):
            for value, then in zip(text.values, text.values[1:], strict=False):
                if (
                    isinstance(value, ast.FormattedValue)
                    # A fraction is several, whatever it is.
                    and (value.format_spec is None or "." not in ast.unparse(value.format_spec))
                    and isinstance(then, ast.Constant)
                    and COUNTED.match(str(then.value))
                ):
                    yield text, value.value


def test_files_are_short_enough_to_be_one_room() -> None:
    long = {
        str(path.relative_to(CHECKOUT)): lines
        for path in [*OWN_CODE, *TESTS]
        if (lines := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert not long, f"More than {MAX_LINES} lines: is it two rooms?"


def test_no_module_is_called_after_nothing() -> None:
    vague = [str(p.relative_to(CHECKOUT)) for p in [*OWN_CODE, *TESTS] if FORBIDDEN_NAMES & {p.stem, p.parent.name}]
    assert not vague, "Name it after the thing it knows."


async def test_states_in_sql_and_python_agree(database: Database) -> None:
    in_sql = await database.value("select enum_range(null::doorkey.provisioning_state)::text[]")
    assert in_sql == [state.value for state in ProvisioningState]


def test_lock_files_fit() -> None:
    assert problems() == []


def test_tests_that_share_servers_run_in_one_process(request: pytest.FixtureRequest) -> None:
    """Groups that are ignored make nothing fail by themselves: there are only more servers, in each other's way."""
    is_grouping = request.config.getoption("loadgroup", default=False)
    assert not is_grouping or request.node.nodeid.endswith("@house/test_house_rules.py"), (
        "pytest-xdist took no groups of this pytest: see the note beside pytest in pyproject.toml."
    )


def test_every_folder_of_tests_is_explained() -> None:
    readme = (CHECKOUT / "tests" / "README.md").read_text()
    folders = {path.parent.relative_to(CHECKOUT / "tests").parts[0] for path in TESTS if path.parent.name != "tests"}
    assert {folder for folder in folders if f"`{folder}/`" not in readme} == set()


def _public_definitions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = [node for node in tree.body if isinstance(node, kinds)]
    found += [
        inner for node in found if isinstance(node, ast.ClassDef) for inner in node.body if isinstance(inner, kinds)
    ]
    return [node for node in found if not node.name.startswith("_")]
