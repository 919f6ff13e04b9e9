"""What is deployed, built once: the zip for Lambda, the same lock for this machine, and the compiled template."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.aws import package
from infra.local.stack import CHECKOUT
from tests.support.lambda_runtime import copy_runtime
from tests.support.osls import run_osls

STAGE = "prod"


@pytest.fixture(scope="session")
def zip_path() -> Path:
    """The zip, where serverless.yml looks for it."""
    return package.build()


@pytest.fixture(scope="session")
def local_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in the zip, with wheels of the same versions for this machine and this Python."""
    tree = tmp_path_factory.mktemp("tree")
    package.install(tree, platform=None, python_version=f"{sys.version_info.major}.{sys.version_info.minor}")
    return tree


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AWS's runtime client for Python."""
    return copy_runtime(tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="session")
def osls_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home without credentials, for osls."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def compiled_folder(zip_path: Path, osls_home: Path) -> Path:
    """What `make package` makes besides the zip."""
    folder = zip_path.parent / "aws-tested"
    # No address answers: packaging asks nobody.
    nobody = "http://127.0.0.1:9"
    outcome = run_osls(
        osls_home, "package", "--stage", STAGE, "--package", str(folder), HTTPS_PROXY=nobody, AWS_ENDPOINT_URL=nobody
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return folder


@pytest.fixture(scope="session")
def template(compiled_folder: Path) -> dict[str, Any]:
    """The CloudFormation that is deployed."""
    compiled: dict[str, Any] = json.loads((compiled_folder / "cloudformation-template-update-stack.json").read_text())
    return compiled


@pytest.fixture(scope="session")
def service() -> dict[str, Any]:
    """serverless.yml as it is written."""
    written: dict[str, Any] = yaml.safe_load((CHECKOUT / "serverless.yml").read_text())
    return written
