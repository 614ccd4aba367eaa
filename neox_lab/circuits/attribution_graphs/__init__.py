"""Attribution graphs: a prompt's features and who of them acts on whom, up to the logits."""

from __future__ import annotations
