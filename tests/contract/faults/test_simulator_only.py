"""What only OpenRouter can do to its clients: keys that show late, lists that shift, streams that break."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infra.local.faults import EDGE, ControlFailed, FaultControl
from tests.contract.faults.parts import FaultyProcess

MODEL = "openai/gpt-4o-mini"
PAGE_SIZE = 100


async def make_key(simulator: FaultyProcess, name: str = "n") -> dict[str, Any]:
    answer = await simulator.client.post(f"{simulator.base_url}/keys", json={"name": name})
    made: dict[str, Any] = answer.raise_for_status().json()
    return made


async def list_page(simulator: FaultyProcess, offset: int = 0) -> list[dict[str, Any]]:
    answer = await simulator.client.get(f"{simulator.base_url}/keys", params={"offset": offset})
    page: list[dict[str, Any]] = answer.raise_for_status().json()["data"]
    return page


async def chat(simulator: FaultyProcess, secret: str, **fields: Any) -> Any:
    return await simulator.client.post(
        f"{simulator.base_url}/chat/completions",
        headers={"Authorization": f"Bearer {secret}"},
        json={"model": MODEL, "messages": [{"role": "user", "content": "Say something long."}], **fields},
    )


async def test_a_new_key_is_out_of_sight_but_works(simulator: FaultyProcess) -> None:
    old = await make_key(simulator)
    old_url = f"{simulator.base_url}/keys/{old['data']['hash']}"
    await simulator.control.order(hide_new_keys_seconds=0.000_001)
    assert (await simulator.client.get(old_url)).status_code == 200
    await simulator.control.order(hide_new_keys_seconds=3_000)
    new = await make_key(simulator)
    url = f"{simulator.base_url}/keys/{new['data']['hash']}"
    assert (await simulator.client.get(url)).status_code == 404
    assert (await simulator.client.patch(url, json={"limit": 5})).status_code == 404
    assert new["data"]["hash"] not in {key["hash"] for key in await list_page(simulator)}
    assert (await chat(simulator, new["key"])).status_code == 200
    assert (await simulator.control.report()).counts == {"hide_new_keys_seconds": 3}
    await simulator.control.clear()
    shown = await simulator.client.get(url)
    assert (shown.status_code, shown.json()["data"]["limit"]) == (200, None)
    assert new["data"]["hash"] in {key["hash"] for key in await list_page(simulator)}


async def test_keys_of_somebody_else_shift_the_next_page(simulator: FaultyProcess) -> None:
    for number in range(PAGE_SIZE + 5):
        await make_key(simulator, f"mine-{number}")
    # The other tests' keys may fill the second page too.
    await simulator.control.order(keys_between_pages=7, at_most=1)
    first = await list_page(simulator)
    second = await list_page(simulator, PAGE_SIZE)
    assert [key["hash"] for key in second[:7]] == [key["hash"] for key in first[-7:]]
    others = [key["name"].startswith("somebody-elses-") for key in (await list_page(simulator))[:8]]
    assert others == [True] * 7 + [False]
    assert (await simulator.control.report()).counts["keys_between_pages"] == 1


async def test_a_cut_stream_ends_in_its_middle_with_an_error_event(simulator: FaultyProcess) -> None:
    secret = (await make_key(simulator))["key"]
    whole = (await chat(simulator, secret, stream=True)).text
    await simulator.control.order(cut_streams=1)
    answer = await chat(simulator, secret, stream=True)
    assert answer.status_code == 200
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data:")]
    assert len(events) == 2
    first, last = events
    assert first["choices"][0]["delta"]["content"]
    assert "error" not in first
    assert (last["id"], last["model"]) == (first["id"], first["model"])
    assert type(last["error"]["code"]) is int
    assert last["choices"] == [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]
    assert "[DONE]" in whole
    assert "[DONE]" not in answer.text
    assert (await chat(simulator, secret)).json()["usage"], "an answer in one piece is no stream"
    assert (await simulator.control.report()).counts == {"cut_streams": 1}


async def test_a_lost_chat_answer_is_charged_all_the_same(simulator: FaultyProcess) -> None:
    made = await make_key(simulator)
    url = f"{simulator.base_url}/keys/{made['data']['hash']}"
    await simulator.control.order(empty_answers=1, only=["POST /chat/completions"])
    assert (await chat(simulator, made["key"], stream=True)).json() == {}
    assert (await simulator.client.get(url)).json()["data"]["usage"] > 0


async def test_the_edge_refuses_what_only_openrouter_does(both: dict[str, FaultyProcess]) -> None:
    edge = both["edge"]
    for field in ("hide_new_keys_seconds", "keys_between_pages", "cut_streams"):
        with pytest.raises(ControlFailed, match=f"{field}: extra inputs are not permitted"):
            await edge.control.order(**{field: 1})


async def test_asking_the_wrong_part_is_a_sentence(simulator: FaultyProcess) -> None:
    with pytest.raises(ControlFailed, match="takes no faults for edge"):
        await FaultControl(EDGE, simulator.origin).report()
    with pytest.raises(ControlFailed, match="Nothing that takes faults for edge answers at"):
        await FaultControl(EDGE, "http://127.0.0.1:9/api/v1").report()
