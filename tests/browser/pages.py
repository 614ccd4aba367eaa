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


def places(page: Any, *parts: Any) -> list[dict[str, float]]:
    """Where parts of the page are, all at one moment, once nothing moves any more.

    Boxes asked one after the other belong to different moments: after a change of size the second
    may be where the first no longer is.
    """
    handles = [part.element_handle() for part in parts]
    found: list[dict[str, float]] = page.evaluate(
        """async (nodes) => {
            const frame = () => new Promise(requestAnimationFrame);
            const boxes = () => nodes.map((node) => {
                const { x, y, width, height } = node.getBoundingClientRect();
                return { x, y, width, height };
            });
            let before = "";
            for (let tries = 0; tries < 100; tries++) {
                await frame();
                await frame();
                const now = JSON.stringify(boxes());
                if (now === before) break;
                before = now;
            }
            return boxes();
        }""",
        handles,
    )
    return found
