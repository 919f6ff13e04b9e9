"""The real zip: what is in it, for which machine, and that it is the same every time."""

from __future__ import annotations

import re
import struct
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from infra.aws import package
from infra.local.stack import CHECKOUT
from tests.support.lambda_runtime import bare_python

MAX_BYTES = 15_000_000
# Lambda refuses what is larger when unpacked.
MAX_UNPACKED_BYTES = 250_000_000
ELF_AARCH64 = 183
PYTHON_TAG = "cpython-313-aarch64-linux-gnu"


@pytest.fixture(scope="session")
def archive(zip_path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(zip_path)


def test_the_zip_is_small_enough(zip_path: Path, archive: zipfile.ZipFile) -> None:
    assert zip_path.stat().st_size <= MAX_BYTES
    assert sum(entry.file_size for entry in archive.infolist()) <= MAX_UNPACKED_BYTES


def test_the_same_commit_gives_the_same_bytes(zip_path: Path, tmp_path: Path) -> None:
    assert package.build(tmp_path / "again.zip").read_bytes() == zip_path.read_bytes()


def test_every_library_is_for_lambdas_machine_and_python(archive: zipfile.ZipFile) -> None:
    libraries = [name for name in archive.namelist() if ".so" in Path(name).suffixes]
    assert {Path(name).name.split(".")[0] for name in libraries} == {"_cffi_backend", "_pydantic_core", "_rust"}
    for name in libraries:
        head = archive.read(name)[:20]
        assert head[:5] == b"\x7fELF\x02", f"{name}: no 64-bit ELF"
        (machine,) = struct.unpack_from("<H", head, 18)
        assert machine == ELF_AARCH64, name
        tag = re.sub(r"^[^.]*\.|\.so$", "", Path(name).name)
        assert tag in (PYTHON_TAG, "abi3"), name
    assert not [name for name in archive.namelist() if name.endswith((".dylib", ".pyd", ".dll"))]


def test_the_zip_holds_the_locked_versions_and_nothing_else(archive: zipfile.ZipFile) -> None:
    lock = (CHECKOUT / "requirements.txt").read_text()
    locked = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock, re.MULTILINE))
    found = {
        match[1].lower().replace("_", "-"): match[2]
        for name in archive.namelist()
        if (match := re.match(r"([^/]+)-([^/-]+)\.dist-info/METADATA$", name))
    }
    needless = {name for name in locked if name not in found}
    # Named in the lock for other systems only.
    assert needless <= {"colorama", "exceptiongroup"}, needless
    assert found == {name: version for name, version in locked.items() if name not in needless}


def test_the_zip_holds_all_of_our_functions_and_nothing_that_only_serves_us(archive: zipfile.ZipFile) -> None:
    names = archive.namelist()
    own = {name for name in names if name.startswith("functions/")}
    assert own == {
        path.relative_to(CHECKOUT).as_posix()
        for path in (CHECKOUT / "functions").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for name in names:
        parts = Path(name).parts
        assert parts[0] not in ("tests", "supabase", "infra", "docs", "bin", "build", "node_modules"), name
        assert not {"__pycache__", "migrations"} & set(parts), name
        assert not parts[-1].startswith(".env"), name
        assert Path(name).suffix not in (".sql", ".pyc"), name
        assert parts[-1] not in ("RECORD", "INSTALLER", "direct_url.json"), name
    assert len(names) == len(set(names))


def test_what_lies_about_beside_the_code_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "functions"
    (own / "__pycache__").mkdir(parents=True)
    (own / "webhook.py").write_text("")
    (own / ".env").write_text("SUPABASE_SECRET_KEY=")
    (own / "__pycache__" / "webhook.cpython-311.pyc").write_bytes(b"")
    (tmp_path / "requirements.txt").write_text("")
    monkeypatch.setattr(package, "CHECKOUT", tmp_path)
    tree = tmp_path / "tree"
    package.install(tree)
    assert {path.relative_to(tree).as_posix() for path in package.shipped(tree)} == {"functions/webhook.py"}


def test_a_wheel_that_is_not_the_locked_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "functions").mkdir()
    lock = re.sub(r"sha256:[0-9a-f]{64}", "sha256:" + "0" * 64, (CHECKOUT / "requirements.txt").read_text())
    (tmp_path / "requirements.txt").write_text(lock)
    monkeypatch.setattr(package, "CHECKOUT", tmp_path)
    with pytest.raises(package.PackageFailed, match=r"(?i)hash"):
        package.install(tmp_path / "tree")


def test_every_handler_imports_from_the_built_tree(local_tree: Path, service: dict[str, Any]) -> None:
    handlers = [function["handler"].rpartition(".") for function in service["functions"].values()]
    program = "\n".join(f"import {module}; assert callable({module}.{name})" for module, _, name in handlers)
    # Nothing but the tree: what it lacks, it lacks.
    outcome = subprocess.run(
        [bare_python(), "-S", "-c", program],
        cwd=local_tree.parent, env={"PYTHONPATH": str(local_tree)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    files = {path.stem for path in (CHECKOUT / "functions").glob("*.py")} - {"__init__"}
    assert {module.removeprefix("functions.") for module, _, _ in handlers} == files, "every handler is deployed"
