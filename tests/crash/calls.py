"""Where a worker can be hit: each call to the outside, by what it is made for, and the moments around it.

What a call is made for is what the claim said (`create`, `update`, `delete`), or `sweep` where it is about nobody in
particular. Before a claim nobody knows: `any`. Through a person's own door it is `own`, whatever it is for: that is
where calls go while the service key is rejected.
"""

from __future__ import annotations

from dataclasses import dataclass

import httpx

CLAIM = "claim_provisioning"
ANY, SWEEP, OWN = "any", "sweep", "own"


@dataclass(frozen=True, order=True)
class Call:
    """A call to the outside.

    Attributes:
        purpose: what it is made for: `any`, `create`, `update`, `delete`, `sweep` or `own`.
        name: of the RPC, or method and path at OpenRouter.
    """

    purpose: str
    name: str

    def __str__(self) -> str:
        return f"{self.purpose}: {self.name}"


OWN_CALLS = tuple(
    Call(OWN, name)
    for name in (
        "claim_my_provisioning",
        "finish_my_provisioning",
        "finish_my_key_update",
        "request_my_key_rotation",
        "reserve_my_credits",
        "settle_my_hold",
        "release_my_hold",
    )
)
USERS_CALLS = (
    Call(ANY, CLAIM),
    Call("create", CLAIM),
    Call("create", "POST /keys"),
    Call("create", "finish_provisioning"),
    Call("create", "DELETE /keys"),
    Call("create", "defer_provisioning"),
    Call("create", "hold_provisioning"),
    Call("update", CLAIM),
    Call("update", "PATCH /keys"),
    Call("update", "finish_key_update"),
    Call("update", "recheck_key"),
    Call("update", "DELETE /keys"),
    Call("update", "finish_key_deletion"),
    Call("update", "defer_provisioning"),
    Call("update", "hold_provisioning"),
    Call("delete", CLAIM),
    Call("delete", "DELETE /keys"),
    Call("delete", "finish_key_deletion"),
    Call("delete", "defer_provisioning"),
    Call("delete", "hold_provisioning"),
    *OWN_CALLS,
)
SWEEPS_CALLS = (
    Call(SWEEP, "start_sweep"),
    Call(SWEEP, "list_due_provisioning"),
    Call(SWEEP, "GET /keys"),
    Call(SWEEP, "classify_keys"),
    Call(SWEEP, "DELETE /keys"),
)
CALLS = (*USERS_CALLS, *SWEEPS_CALLS)

BEFORE, DURING, AFTER = "before", "during", "after"
MOMENTS = (BEFORE, DURING, AFTER)


def name_of(request: httpx.Request) -> str:
    """``POST /keys``, ``PATCH /keys``, or the name of an RPC."""
    path = request.url.path
    return path.rsplit("/", 1)[1] if "/rpc/" in path else f"{request.method} /{path.split('/')[3]}"
