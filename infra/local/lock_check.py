"""Checks that the lock files fit what they lock, without asking anybody: ``python -m infra.local.lock_check``."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).resolve().parents[2]
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
_ADDRESS = re.compile(r"https?://|index-url|find-links", re.IGNORECASE)


def problems(checkout: Path = CHECKOUT) -> list[str]:
    """What doesn't fit, each as a sentence."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    everything = [*project["dependencies"], *(wish for wishes in extras.values() for wish in wishes)]
    return [
        *_python_problems(checkout / "requirements.txt", project["dependencies"]),
        *_python_problems(checkout / "requirements-dev.txt", everything),
        *_shared_pins_differ(checkout),
        *_npm_problems(checkout),
    ]


def _python_problems(lock: Path, wishes: list[str]) -> list[str]:
    text = lock.read_text()
    pins = _pins(text)
    found = []
    for wish in map(Requirement, wishes):
        if wish.name == "doorkey":
            continue
        version = pins.get(canonicalize_name(wish.name))
        if version is None:
            found.append(f"{lock.name} lacks {wish.name}; run `make lock`")
        elif not wish.specifier.contains(version, prereleases=True):
            found.append(f"{lock.name} has {wish.name} {version}, and pyproject.toml wants {wish.specifier}")
    entries = re.split(r"\n(?=[A-Za-z0-9])", text)
    found += [
        f"{lock.name}: {entry.split()[0]} has no hash" for entry in entries if "==" in entry and "--hash=" not in entry
    ]
    if _ADDRESS.search(text):
        found.append(f"{lock.name} names an address; run `make lock`")
    return found


def _shared_pins_differ(checkout: Path) -> list[str]:
    shipped = _pins((checkout / "requirements.txt").read_text())
    tested = _pins((checkout / "requirements-dev.txt").read_text())
    return [
        f"{name} ships as {version} and is tested as {tested.get(name)}; run `make lock`"
        for name, version in shipped.items()
        if tested.get(name) != version
    ]


def _npm_problems(checkout: Path) -> list[str]:
    wanted = json.loads((checkout / "package.json").read_text())
    lock = json.loads((checkout / "package-lock.json").read_text())
    root = lock["packages"][""]
    found = [
        f"package-lock.json does not fit package.json ({kind}); run `make lock`"
        for kind in ("dependencies", "optionalDependencies")
        if root.get(kind, {}) != wanted.get(kind, {})
    ]
    if any("resolved" in package for package in lock["packages"].values()):
        found.append("package-lock.json names download addresses; run `make lock`")
    return found


def _pins(text: str) -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in _PIN.findall(text)}


def main() -> None:
    """Exits with 1 and the problems, if there are any."""
    found = problems()
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
