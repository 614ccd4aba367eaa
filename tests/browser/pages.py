"""What a page must not do, whatever is on it."""

from __future__ import annotations

from typing import Any

LOCAL = ("file:", "data:", "blob:", "about:", "http://127.0.0.1", "ws://127.0.0.1")


def watch(page: Any) -> list[str]:
    """Everything that a page does and should not: errors, and requests to other machines."""
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on(
        "request",
        lambda request: request.url.startswith(LOCAL) or wrong.append(f"request: {request.url}"),
    )
    return wrong
