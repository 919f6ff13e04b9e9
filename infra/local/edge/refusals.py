"""Auth's own refusals: status, stable code, sentence. And the gateway's, which have no code."""

from http import HTTPStatus

from infra.local.edge.answers import Json


class AuthRefused(Exception):
    """An error as Auth answers it; `error_code` is what clients match on."""

    def __init__(self, status: int, error_code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error_code = error_code
        self.message = message

    def body(self) -> Json:
        """The JSON that clients see."""
        return {"code": self.status, "error_code": self.error_code, "msg": self.message}


def invalid(message: str) -> AuthRefused:
    """400: a parameter that Auth does not accept."""
    return AuthRefused(400, "validation_failed", message)


def banned(status: int = 403, message: str = "User is banned") -> AuthRefused:
    """The user is banned now. Auth's status and words vary by endpoint."""
    return AuthRefused(status, "user_banned", message)


_GATEWAY_MESSAGES = {
    401: "Invalid API key",
    429: "API rate limit exceeded",
    500: "An unexpected error occurred",
    502: "An invalid response was received from the upstream server",
    503: "The upstream server is currently unavailable",
    504: "The upstream server is timing out",
}


def gateway_refusal(status: int) -> Json:
    """What hosted's gateway says by itself: a message, and never a code (supabase.md 3)."""
    known = status in HTTPStatus.__members__.values()
    return {"message": _GATEWAY_MESSAGES.get(status) or (HTTPStatus(status).phrase if known else "Unknown error")}
