"""The one shape of an answer: JSON, which no browser may take for anything else."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.background import BackgroundTask
from starlette.responses import Response

SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'",
}

_MARKUP = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


class JSONReply(Response):
    """JSON in which ``<``, ``>`` and ``&`` are escaped too: a backend's name is never markup."""

    media_type = "application/json"

    def __init__(
        self,
        content: Any,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
    ) -> None:
        super().__init__(content, status_code, {**SAFE_HEADERS, **(headers or {})}, background=background)

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, ensure_ascii=True, allow_nan=False).translate(_MARKUP).encode() + b"\n"


class TextReply(Response):
    """Plain text of the given media type, for Prometheus."""

    def __init__(self, content: str, media_type: str) -> None:
        super().__init__(content, headers={**SAFE_HEADERS, "content-type": media_type})
