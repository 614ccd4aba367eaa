"""Questions about features: where they are active, what they do, which of them make a circuit."""

from __future__ import annotations

__all__: list[str] = []
