"""Send a value as JSON."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import JSONResponse


class JSONAnswer(JSONResponse):
    """Answer with a value as JSON, also if a text in it comes from a file whose name is not UTF-8."""

    def render(self, content: Any) -> bytes:
        r"""Return the value as JSON in UTF-8.

        A lone surrogate, which UTF-8 cannot express, is written as its JSON escape, such as \udce9.
        """
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", errors="backslashreplace")
