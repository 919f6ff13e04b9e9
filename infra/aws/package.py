"""Builds the zip that runs on Lambda: ``python -m infra.aws.package``.

The wheels come from the hashed lock, for Lambda's machine and Python whatever this machine is; nothing is compiled and
nothing of a wheel is run. The surprising thing: the same commit gives the same bytes, so a deploy without a change is
recognised as one. For that every time stamp is fixed, and what an installation writes about itself is left out.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
ZIP = CHECKOUT / "build" / "doorkey.zip"
MAX_BYTES = 15_000_000
PLATFORM = "aarch64-manylinux2014"
PYTHON_VERSION = "3.13"
# The earliest time that a zip can hold.
TIMESTAMP = (1980, 1, 1, 0, 0, 0)
# Written by the installation, not by the authors: with paths, and in another order each time.
INSTALLATION_RECORDS = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}


class PackageFailed(Exception):
    """The zip could not be built. The message says why."""


def build(target: Path = ZIP, *, platform: str | None = PLATFORM, python_version: str = PYTHON_VERSION) -> Path:
    """Builds the zip and returns where it is.

    Args:
        target: the file to write.
        platform: whose wheels, in uv's words; None: this machine's.
        python_version: for which Python.

    Raises:
        PackageFailed: a wheel is missing for that platform, a hash is wrong, or the zip is too large.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="doorkey-package-") as folder:
        tree = Path(folder)
        install(tree, platform=platform, python_version=python_version)
        unfinished = target.with_suffix(".unfinished")
        with zipfile.ZipFile(unfinished, "w") as archive:
            for path in sorted(shipped(tree), key=lambda path: path.relative_to(tree).parts):
                entry = zipfile.ZipInfo(path.relative_to(tree).as_posix(), TIMESTAMP)
                entry.external_attr = 0o100644 << 16
                entry.create_system = 3  # Unix, on every machine
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
        size_bytes = unfinished.stat().st_size
        if size_bytes > MAX_BYTES:
            unfinished.unlink()
            raise PackageFailed(f"The zip has {size_bytes:,} bytes; {MAX_BYTES:,} is what a cold start can bear.")
        unfinished.replace(target)
    return target


def install(tree: Path, *, platform: str | None = PLATFORM, python_version: str = PYTHON_VERSION) -> None:
    """Puts the locked packages and our own code into a folder.

    Raises:
        PackageFailed: a wheel is missing for that platform, or a hash is wrong.
    """
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--python-version", python_version, "--target", str(tree)]
    command += ["--python-platform", platform] if platform else []
    # A copy, not a link: what is written there must not reach uv's cache.
    command += ["--link-mode", "copy", "--requirement", str(CHECKOUT / "requirements.txt")]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    if outcome.returncode:
        raise PackageFailed(f"The packages could not be installed.\n{outcome.stderr.strip()}")
    own = CHECKOUT / "functions"
    shutil.copytree(own, tree / "functions", ignore=_private)


def shipped(tree: Path) -> Iterator[Path]:
    """The files of a tree that go into the zip."""
    for path in tree.rglob("*"):
        parts = path.relative_to(tree).parts
        is_record = parts[0].endswith(".dist-info") and path.name in INSTALLATION_RECORDS
        # Scripts of packages name this machine's Python; a lock and typing stubs serve nobody there.
        is_tool = parts[0] in ("bin", ".lock") or path.suffix in (".pyi", ".pyc")
        if path.is_file() and not (is_record or is_tool):
            yield path


def _private(_folder: str, names: list[str]) -> list[str]:
    """What lies beside the code and is no part of it: caches, and files such as .env."""
    return [name for name in names if name.startswith((".", "__pycache__"))]


def main() -> None:
    """Builds, and says what came out."""
    parser = argparse.ArgumentParser(prog="python -m infra.aws.package", description=__doc__)
    parser.add_argument("--target", type=Path, default=ZIP, help="the file to write")
    arguments = parser.parse_args()
    try:
        path = build(arguments.target)
    except PackageFailed as failure:
        sys.exit(str(failure))
    megabytes = path.stat().st_size / 1_000_000
    sys.stdout.write(f"{path}: {megabytes:.1f} MB for {PLATFORM}, Python {PYTHON_VERSION}\n")


if __name__ == "__main__":
    main()
