"""How a Supabase project looks from outside: whether its gateway accepts a key, and what Auth asks of signups.

Only the doctor asks this. The surprising thing: a key is tried by reading public plans, which every key may, and any
answer but the gateway's own 401 shows that it was let in; also one that says that there are no plans.
"""

from __future__ import annotations

from enum import Enum

import httpx

from functions.clients.supabase import SupabaseAnswerLost, SupabaseUnreachable

# Refused by Auth before anybody is made of it: there is no password. With an address that nobody can have.
NO_SIGNUP = {"email": "nobody@doctor.invalid", "password": ""}


class KeyAnswer(Enum):
    """What the gateway says to a key."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    LEGACY_OFF = "legacy_off"


async def try_key(http: httpx.AsyncClient, supabase_url: str, key: str) -> KeyAnswer:
    """Whether the gateway lets this key in.

    Raises:
        SupabaseUnreachable: nobody answers there.
        SupabaseAnswerLost: what answers doesn't say.
    """
    headers = {"apikey": key} | ({"Authorization": f"Bearer {key}"} if key.startswith("eyJ") else {})
    response = await _get(http, f"{supabase_url}/rest/v1/plans?select=id&limit=1", headers)
    body = _json(response)
    if response.is_success and isinstance(body, list):
        return KeyAnswer.ACCEPTED
    said = body if isinstance(body, dict) else {}
    code, message = said.get("code"), str(said.get("message", ""))
    if response.status_code == 401 and (code is None or str(code).startswith("PGRST30")):
        return KeyAnswer.LEGACY_OFF if message.startswith("Legacy") else KeyAnswer.REJECTED
    if 400 <= response.status_code < 500 and code is not None:
        return KeyAnswer.ACCEPTED
    raise SupabaseAnswerLost(f"plans: {response.status_code}")


async def is_captcha_on(http: httpx.AsyncClient, supabase_url: str, publishable_key: str) -> bool:
    """Whether Auth asks those who sign up for a CAPTCHA: it says so before anything else. Nobody is signed up.

    Raises:
        SupabaseUnreachable: nobody answers there.
    """
    try:
        response = await http.post(
            f"{supabase_url}/auth/v1/signup", headers={"apikey": publishable_key}, json=NO_SIGNUP
        )
    except httpx.HTTPError as error:
        raise SupabaseUnreachable(f"signup: {type(error).__name__}") from error
    body = _json(response)
    return isinstance(body, dict) and body.get("error_code") == "captcha_failed"


async def _get(http: httpx.AsyncClient, url: str, headers: dict[str, str]) -> httpx.Response:
    try:
        return await http.get(url, headers=headers)
    except httpx.HTTPError as error:
        raise SupabaseUnreachable(f"plans: {type(error).__name__}") from error


def _json(response: httpx.Response) -> object:
    try:
        return response.json()
    except ValueError:
        return None
