"""A collection that is killed again and again, until it is done: python killed.py FOLDER.

The model is built once; every attempt is a process of its own, forked before anything ran.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

import torch
from collected_model import build

import neox_lab as nl
from neox_lab.activations import collecting

collecting.FEWEST, collecting.SHARD_BYTES = 20, 0
IDS = [[1 + (row * pos) % 49 for pos in range(1 + row % 13)] for row in range(60)]


def begun(model: nl.GPTNeoXForCausalLM, folder: Path, dies_at: int) -> int:
    """The number of a process that collects, and kills itself at one of its audit events.

    Such events are files that are opened, renamed, removed or mapped, and whatever else Python
    tells auditors of: unlike seconds they are as many on a busy machine.
    """
    child = os.fork()
    if child == 0:
        seen = iter(range(dies_at))

        def count(event: str, _: object) -> None:
            if next(seen, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        sites = ["resid_post", "mlp_out"]
        nl.activations.collect(model, iter(IDS), sites, folder, context=8, progress=False)
        os._exit(0)
    return child


def main(where: Path) -> None:
    """Collect once undisturbed; then be killed, later each time, until it is done."""
    torch.set_num_threads(1)
    model = build()
    assert os.waitpid(begun(model, where / "whole", 10**9), 0)[1] == 0
    kills, chance = 0, random.Random(0)
    while os.waitpid(begun(model, where / "killed", chance.randint(1, 200 + 250 * kills)), 0)[1]:
        kills += 1
        if (where / "killed" / "activations.json").exists():
            nl.activations.open(where / "killed", verify=True)
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
