"""The built-in model: a GPT-NeoX of about one million weights that comes with the package.

It is small enough to load, run and change in milliseconds on a laptop and needs no network::

    from neox_lab import GPTNeoXForCausalLM
    from neox_lab.gym import weights_directory

    model = GPTNeoXForCausalLM.from_pretrained(weights_directory())

``planted()`` is a second model, with an induction circuit whose weights were written by hand (see
``planting``).

``train`` is the script that made it, ``corpus`` the text side of training, and ``README.md``
beside this file says what the model can and cannot do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neox_lab.gym.planting import planted as planted


def weights_directory() -> Path:
    """The directory of the built-in checkpoint, to give to any ``from_pretrained``.

    Besides the usual files of a checkpoint it holds ``training.json``: how it was trained.
    """
    return Path(__file__).parent / "weights"


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name == "planted":
        from neox_lab.gym.planting import planted

        return planted
    raise AttributeError(f"module 'neox_lab.gym' has no attribute {name!r}")
