"""Who an operator is in the audit log, also where the machine has no name for them."""

from __future__ import annotations

import getpass
import os

import pytest

from infra.cli.actor import operator_name


@pytest.mark.parametrize("error", [KeyError, OSError])
def test_an_operator_without_a_name_is_named_by_their_number(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def refuse() -> str:
        raise error("uid not found")

    monkeypatch.setattr(getpass, "getuser", refuse)
    assert operator_name() == f"operator:{os.getuid()}"
