"""Where the functions' environment is kept: an env file, Secrets Manager (see stages.py), or the reader's own hands.

What is there stays as it is, but for the variables that are set. The surprising thing: the new content is complete on
the disk before it takes the old one's place. Half a file could be the end of the only copy of the sealing key.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import typer

from functions.kit.settings import variable_names
from infra.connection.plans import CannotGoOn

_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)")
_BARE = re.compile(r"[A-Za-z0-9_./:+=,@%*-]*")
_QUOTABLE = re.compile(r"[^\"'\\$`\r\n]*")
FILE_MODE = 0o600
CHANGED_MEANWHILE = "Somebody else changed {} at this moment. Run it again."


class Home(Protocol):
    """A place for the functions' environment; its text names it in sentences."""

    async def read(self) -> dict[str, str]:
        """The variables in it, whosoever's they are; none when it doesn't exist yet."""

    async def write(self, environment: Mapping[str, str]) -> bool:
        """Sets these and keeps all others; whether anything changed."""


class Terminal:
    """Reads nothing and prints what is to be kept: by explicit wish only."""

    def __str__(self) -> str:
        return "what is printed above"

    async def read(self) -> dict[str, str]:
        """Nothing: what there is stands in the process's environment."""
        return {}

    async def write(self, environment: Mapping[str, str]) -> bool:
        """Prints what differs from the process's environment, with all the rest, ready for an env file."""
        if all(os.environ.get(name, "").strip() == value for name, value in environment.items()):
            return False
        for name, value in environment.items():
            typer.echo(_line(name, value))
        return True


class EnvFile:
    """Lines of NAME=value. Comments, order and what isn't understood are kept."""

    def __init__(self, path: Path) -> None:
        # Through a link, not instead of it.
        self._path = path.resolve()
        self._shown = path
        self._read: list[str] | None = None

    def __str__(self) -> str:
        return str(self._shown)

    async def read(self) -> dict[str, str]:
        """The variables; a quoted value without its quotes.

        Raises:
            CannotGoOn: the file is there and can't be read.
        """
        self._read = self._lines()
        return {match[1]: _unquoted(match[2]) for line in self._read if (match := _LINE.fullmatch(line))}

    async def write(self, environment: Mapping[str, str]) -> bool:
        """Changes the lines of these variables, and adds those that are missing.

        Raises:
            CannotGoOn: it can't be written, or is another than was read.
        """
        before = self._lines()
        if self._read is not None and before != self._read:
            raise CannotGoOn(CHANGED_MEANWHILE.format(self))
        missing = dict(environment)
        after = []
        for line in before:
            match = _LINE.fullmatch(line)
            if match and match[1] in environment:
                missing.pop(match[1], None)
                line = line if _unquoted(match[2]) == environment[match[1]] else _line(match[1], environment[match[1]])
            after.append(line)
        after += [_line(name, value) for name, value in missing.items()]
        if after == before:
            return False
        try:
            self._replace("\n".join(after) + "\n")
        except OSError as error:
            raise CannotGoOn(f"{self} can't be written: {error.strerror}.") from None
        self._read = after
        return True

    def _lines(self) -> list[str]:
        try:
            return self._path.read_text().splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise CannotGoOn(f"{self} can't be read: {reason}.") from None

    def _replace(self, text: str) -> None:
        descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}-")
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if self._path.exists():
                before = self._path.stat()
                with contextlib.suppress(PermissionError):
                    os.chown(name, before.st_uid, before.st_gid)
                Path(name).chmod(before.st_mode & 0o777)
            else:
                Path(name).chmod(FILE_MODE)
            Path(name).replace(self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def given_environment() -> dict[str, str]:
    """What the process was given of the functions' variables; set to nothing counts as not set."""
    given = {name: os.environ.get(name, "").strip() for name in variable_names()}
    return {name: value for name, value in given.items() if value}


async def environment_at(home: Home) -> tuple[dict[str, str], list[str]]:
    """The functions' environment: what is kept there, and what the process was given of the rest.

    Returns:
        it, and the names of those that were given with another value than is kept.
    """
    given = given_environment()
    kept = {name: value.strip() for name, value in (await home.read()).items() if name in variable_names()}
    kept = {name: value for name, value in kept.items() if value}
    differing = [name for name in kept if name in given and given[name] != kept[name]]
    return {**given, **kept}, differing


def _line(name: str, value: str) -> str:
    if _BARE.fullmatch(value):
        return f"{name}={value}"
    if _QUOTABLE.fullmatch(value):
        return f'{name}="{value}"'
    raise CannotGoOn(f"{name} has a character that can't stand in an env file.")


def _unquoted(value: str) -> str:
    value = value.strip()
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value
