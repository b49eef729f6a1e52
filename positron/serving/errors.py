"""Define the errors of the API, in OpenAI's format."""

from __future__ import annotations

from typing import Any, Literal

ErrorType = Literal["invalid_request_error", "server_error"]


class ApiError(Exception):
    """Report a request that was refused or failed.

    `status`: the HTTP status. `parameter`: the name of the wrong parameter. `code`: the kind of the error as one word, such as
    invalid_json. `headers`: additional HTTP headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        parameter: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(_encodable(message))
        self.status, self.code, self.headers = status, code, headers or {}
        self.parameter = None if parameter is None else _encodable(parameter)

    def body(self) -> dict[str, Any]:
        """Return the JSON object that the client gets as the answer."""
        kind: ErrorType = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.parameter, "code": self.code}}


def _encodable(text: str) -> str:
    """Escape lone surrogates, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
