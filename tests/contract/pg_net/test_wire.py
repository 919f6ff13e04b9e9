"""What a request looks like where it arrives (supabase.md 1.3). All of them travel in one batch."""

from __future__ import annotations

import hashlib

import pytest

from tests.contract.pg_net.net import Net
from tests.contract.pg_net.sink import Arrival, Sink

BODY = """{"zeta": 1, "a": {"c": [true, null], "b": "é and \\u2603"}, "n": 1.50}"""
SECRETS = """'{"Authorization": "Bearer a", "apikey": "k", "X-Own": "o", "Cookie": "c=1"}'"""


@pytest.fixture(scope="module", autouse=True)
async def sent(net: Net, sink: Sink, other_sink: Sink) -> None:
    elsewhere = other_sink.url("ok/{}", host="localhost").format
    calls = [
        f"net.http_post('{sink.url('ok/body')}', '{BODY}')",
        f"net.http_post('{sink.url('ok/no-body')}', null)",
        f"net.http_post('{sink.url('ok/own-headers')}', headers => {SECRETS})",
        f"""net.http_post('{sink.url("ok/exact")}', headers => '{{"content-type": "application/json"}}')""",
        f"net.http_post('{sink.url('ok/null-headers')}', headers => null)",
        f"net.http_get('{sink.url('ok/get')}', params => '{{\"q\": \"a b\"}}')",
        f"""net.http_get('{sink.url("ok/blanks")}', headers => '{{"X-None": null, "X-Blank": ""}}')""",
        f"net.http_delete('{sink.url('ok/delete')}')",
        f"net.http_delete('{sink.url('ok/delete-body')}', body => '{{\"a\": 1}}')",
        *(
            f"net.http_post('{sink.redirect(code, f'leave-{code}', elsewhere(f'left-{code}'))}',"
            f" '{BODY}', headers => {SECRETS})"
            for code in (301, 302, 303, 307, 308)
        ),
        f"net.http_post('{sink.redirect(307, 'stay', '/ok/stayed')}', headers => {SECRETS})",
        f"net.http_delete('{sink.redirect(302, 'kept', '/ok/kept-delete')}', body => '{{}}')",
    ]
    row = (await net.rows(f"select {', '.join(f'{c} as c{n}' for n, c in enumerate(calls))}"))[0]
    await net.responses(*row.values())


async def test_body_is_exactly_the_text_of_the_jsonb(net: Net, sink: Sink) -> None:
    arrived = await sink.arrival("body")
    assert arrived.body.decode() == await net.value("select %s::jsonb::text", BODY)
    assert arrived.body.startswith('{"a": {"b": "é and ☃", '.encode())
    # So a signature that SQL computes over the text holds for the bytes.
    digest = "select encode(sha256(convert_to((%s::jsonb)::text, 'UTF8')), 'hex')"
    assert hashlib.sha256(arrived.body).hexdigest() == await net.value(digest, BODY)


async def test_post_without_body_says_that_it_is_empty(sink: Sink) -> None:
    arrived = await sink.arrival("no-body")
    assert (arrived.method, arrived.header("content-length")) == ("POST", "0")


async def test_post_carries_only_the_headers_that_pg_net_sends(sink: Sink) -> None:
    arrived = await sink.arrival("body")
    assert {(name.lower(), value) for name, value in arrived.headers} == {
        ("host", f"127.0.0.1:{sink.port}"),
        ("accept", "*/*"),
        ("user-agent", "pg_net/0.20.4"),
        ("content-type", "application/json"),
        ("content-length", str(len(arrived.body))),
    }


@pytest.mark.parametrize("tag", ["own-headers", "exact"])
async def test_content_type_is_json_beside_own_headers(sink: Sink, tag: str) -> None:
    assert (await sink.arrival(tag)).header("content-type") == "application/json"


async def test_null_headers_post_a_form(sink: Sink) -> None:
    arrived = await sink.arrival("null-headers")
    assert arrived.header("content-type") == "application/x-www-form-urlencoded"
    assert arrived.header("user-agent") == "pg_net/0.20.4"


async def test_own_headers_arrive_as_given(sink: Sink) -> None:
    arrived = await sink.arrival("own-headers")
    assert ("X-Own", "o") in arrived.headers
    assert arrived.header("authorization") == "Bearer a"


async def test_get_has_its_params_and_no_body(sink: Sink) -> None:
    arrived = await sink.arrival("get")
    assert (arrived.method, arrived.target) == ("GET", "/ok/get?q=a%20b")
    assert {name.lower() for name, _ in arrived.headers} == {"host", "accept", "user-agent"}


async def test_headers_without_a_value_are_left_out(sink: Sink) -> None:
    arrived = await sink.arrival("blanks")
    assert {name.lower() for name, _ in arrived.headers} == {"host", "accept", "user-agent"}


async def test_delete_has_a_body_only_when_given_one(sink: Sink) -> None:
    bare, full = await sink.arrival("delete"), await sink.arrival("delete-body")
    assert (bare.method, bare.body, bare.header("content-length")) == ("DELETE", b"", None)
    assert (full.method, full.body) == ("DELETE", b'{"a": 1}')


@pytest.mark.parametrize("code", [301, 302, 303])
async def test_redirected_post_becomes_a_get_without_body(other_sink: Sink, code: int) -> None:
    arrived = await other_sink.arrival(f"left-{code}")
    assert (arrived.method, arrived.body, arrived.header("content-length")) == ("GET", b"", None)


@pytest.mark.parametrize("code", [307, 308])
async def test_307_and_308_post_the_body_again(sink: Sink, other_sink: Sink, code: int) -> None:
    first, second = await sink.arrival(f"leave-{code}"), await other_sink.arrival(f"left-{code}")
    assert (second.method, second.body) == ("POST", first.body)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_another_host_gets_every_secret_but_authorization_and_cookie(
    sink: Sink, other_sink: Sink, code: int
) -> None:
    first, second = await sink.arrival(f"leave-{code}"), await other_sink.arrival(f"left-{code}")
    assert secrets(first) == {"authorization": "Bearer a", "cookie": "c=1", "apikey": "k"}
    assert secrets(second) == {"authorization": None, "cookie": None, "apikey": "k"}
    assert second.header("x-own") == "o"
    assert second.header("host") == f"localhost:{other_sink.port}"


async def test_the_same_host_gets_authorization_again(sink: Sink) -> None:
    assert (await sink.arrival("stayed")).header("authorization") == "Bearer a"


async def test_redirected_delete_stays_a_delete_and_loses_its_body(sink: Sink) -> None:
    arrived = await sink.arrival("kept-delete")
    assert (arrived.method, arrived.body) == ("DELETE", b"")


def secrets(arrival: Arrival) -> dict[str, str | None]:
    return {name: arrival.header(name) for name in ("authorization", "cookie", "apikey")}
