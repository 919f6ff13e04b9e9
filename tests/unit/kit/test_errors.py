"""Errors: each has an address and a sentence of its own, and shows nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import functions.api
import functions.webhook  # noqa: F401  with these two, every module that defines errors is loaded
from functions.clients import openrouter, supabase
from functions.kit import errors
from functions.kit.errors import DoorkeyError
from functions.web.events import problem_body


def all_errors(base: type[DoorkeyError] = DoorkeyError) -> Iterator[type[DoorkeyError]]:
    for error in base.__subclasses__():
        yield error
        yield from all_errors(error)


def make(error: type[DoorkeyError], private: str) -> DoorkeyError:
    if issubclass(error, supabase.DatabaseRefused):
        return error(private, 409)
    return error(private)


def test_every_code_is_one_errors_own() -> None:
    found = list(all_errors())
    assert len(found) > 20
    codes = [error.code for error in found]
    assert sorted(codes) == sorted(set(codes))


def test_every_error_has_a_sentence_of_its_own() -> None:
    sentences = set()
    for error in all_errors():
        assert error.__doc__, error
        sentence = make(error, "").sentence
        assert sentence[0].isupper(), error
        assert sentence.endswith("."), error
        assert "\n" not in sentence
        assert "Attributes" not in sentence
        sentences.add(sentence)
    assert len(sentences) == len(list(all_errors()))


def test_every_status_is_an_error_of_http() -> None:
    for error in all_errors():
        assert 400 <= error.status <= 599, error


def test_the_page_of_errors_lists_them_all_with_their_status_and_code() -> None:
    page = inspect.getdoc(errors) or ""
    lines = [line.split() for line in page.splitlines()]
    for error in all_errors():
        if error.__module__ == errors.__name__:
            assert [["├──", error.__name__, str(error.status), error.code]] == [
                line for line in lines if error.__name__ in line
            ], error
    for base, module in (
        (supabase.SupabaseError, "clients/supabase.py"),
        (openrouter.OpenRouterError, "clients/openrouter_errors.py"),
    ):
        (line,) = [line for line in lines if base.__name__ in line]
        assert line[-1] == f"({module})"
    listed = {line[1] for line in lines if line and line[0] in ("├──", "└──")}
    assert listed == {error.__name__ for error in DoorkeyError.__subclasses__()}


def test_what_only_the_log_may_see_is_shown_to_nobody() -> None:
    for error in all_errors():
        body = problem_body(make(error, "for the log only"), "request-1")
        assert "for the log only" not in str(body)
        assert set(body) == {"type", "title", "status", "code", "request_id"}
        assert body["type"] == f"urn:doorkey:error:{error.code}"
