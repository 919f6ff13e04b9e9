"""Fixtures of the edge's contract: one stack for the suite, a client and a user per test."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.contract.edge.stack import Edge, running_edge

PASSWORD = "correct-horse-battery"


@dataclass(frozen=True)
class Person:
    """Somebody who has signed up, with their first session."""

    id: str
    email: str
    access_token: str
    refresh_token: str
    answer: dict[str, Any]


@pytest.fixture(scope="session")
async def edge() -> AsyncIterator[Edge]:
    async with running_edge() as edge:
        yield edge


@pytest.fixture(scope="session")
async def http(edge: Edge) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=edge.url, trust_env=False, timeout=10) as client:
        yield client


@pytest.fixture
def sign_up(edge: Edge, http: httpx.AsyncClient) -> Callable[..., Awaitable[Person]]:
    """Signs somebody new up."""

    async def sign_up(**data: Any) -> Person:
        email = f"{uuid.uuid4().hex}@example.com"
        answer = await http.post(
            "/auth/v1/signup",
            headers={"apikey": edge.publishable},
            json={"email": email, "password": PASSWORD, "data": data},
        )
        assert answer.status_code == 200, answer.text
        body = answer.json()
        return Person(body["user"]["id"], email, body["access_token"], body["refresh_token"], body)

    return sign_up


@pytest.fixture
async def person(sign_up: Callable[..., Awaitable[Person]]) -> Person:
    return await sign_up(name="Ada")
