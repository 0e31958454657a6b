"""The page at ``/``: one file, and headers that let it do nothing but ask this service."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi.responses import HTMLResponse

_FILE = Path(__file__).with_name("page.html")


class Page:
    """The page and its headers. The policy names its script and its style by their hashes, so nothing that is put into it runs."""

    def __init__(self) -> None:
        self._html = _FILE.read_text(encoding="utf-8")
        policy = [
            "default-src 'none'",
            f"script-src {self._hash('script')}",
            f"style-src {self._hash('style')}",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ]
        self._headers = {
            "Content-Security-Policy": "; ".join(policy),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }

    def _hash(self, tag: str) -> str:
        [content] = re.findall(f"<{tag}>(.*?)</{tag}>", self._html, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    def response(self) -> HTMLResponse:
        """The answer."""
        return HTMLResponse(self._html, headers=self._headers)
