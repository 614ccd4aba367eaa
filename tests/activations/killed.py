"""A collection that is killed again and again, until it is done: python killed.py FOLDER.

The model is built once; every attempt is a process of its own, forked before anything ran.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from conftest import build

import neox_lab as nl
from neox_lab.activations import collecting

collecting.FEWEST, collecting.SHARD_BYTES = 20, 0
IDS = [[1 + (row * pos) % 49 for pos in range(1 + row % 13)] for row in range(60)]


def begun(model: nl.GPTNeoXForCausalLM, folder: Path) -> int:
    """The number of a process that collects."""
    child = os.fork()
    if child == 0:
        sites = ["resid_post", "mlp_out"]
        nl.activations.collect(model, iter(IDS), sites, folder, context=8, progress=False)
        os._exit(0)
    return child


def main(where: Path) -> None:
    torch.set_num_threads(1)
    model = build()
    start = time.monotonic()
    assert os.waitpid(begun(model, where / "whole"), 0)[1] == 0
    took = time.monotonic() - start
    kills, chance = 0, random.Random(0)
    while True:
        child = begun(model, where / "killed")
        time.sleep(chance.uniform(0, took / 3))
        os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] == 0:
            break
        kills += 1
        if (where / "killed" / "activations.json").exists():
            nl.activations.open(where / "killed", verify=True)
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
