"""Every figure of the documentation once more, on this machine.

    python benchmarks/everything.py [NAME ...] [--into FOLDER]

Runs the commands below one after another, each in a process of its own, and keeps what each prints
in ``build/figures/NAME.txt`` with its command and its time. What fails does not stop the others;
the last lines say what did, and the status is 1. Leave the machine alone meanwhile: on two cores
it takes an hour and a half. ``large`` needs 42 GB of disk, ``interchange`` the package ``pyvene``,
``views`` and ``explorer`` Chromium, and all of them ``pip install -e '.[bench]'``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent
COMMANDS = {
    "products": "products.py --threads 1",
    "forward": "forward.py",
    "loading": "loading.py",
    "caching": "caching.py",
    "generation": "generation.py",
    "training": "training.py",
    "probing": "probing.py --rows 400",
    "patching": "patching.py --threads 1",
    "patching_two_threads": "patching.py --lengths 14",
    "paths": "paths.py",
    "circuits": "circuits.py --batch 4 --turns 3 --circuits 8 --threads 1",
    "dictionaries": "dictionaries.py",
    "features": "features.py --tokens 131072 --d-model 512",
    "attribution_graphs": "attribution_graphs.py",
    "collecting": "collecting.py --tokens 4000 --turns 3",
    "dynamics": "dynamics.py",
    "tuned_lens": "tuned_lens.py",
    "tuned_lens_float32": "tuned_lens.py --batch 8 --precision float32",
    "interchange": "interchange.py --pairs 16 --positions 8 15",
    "explorer": "explorer.py",
    "views": "views.py",
    "streaming": "streaming.py --sweep",
    "medium": "streaming.py --shape 1.4b --sweep --ways streamed",
    "large": "streaming.py --shape 20b --sweep --ways streamed mapped",
}


def kept(name: str, folder: Path) -> bool:
    """Run one of ``COMMANDS``; whether it ended well.

    Args:
        name: which.
        folder: where what it prints is kept.
    """
    script, *arguments = COMMANDS[name].split()
    start = time.perf_counter()
    with (folder / f"{name}.txt").open("w", encoding="utf-8") as file:
        file.write(f"$ python benchmarks/{COMMANDS[name]}\n")
        file.flush()
        command = [sys.executable, str(FOLDER / script), *arguments]
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
        taken = time.perf_counter() - start
        file.write(f"# {taken:.0f} s, status {status}\n")
    print(f"{name}: {taken:.0f} s" + (f", status {status}" if status else ""), flush=True)
    return status == 0


def main() -> None:
    """Run what was asked for, everything if nothing was."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(COMMANDS))
    parser.add_argument("--into", type=Path, default=FOLDER.parent / "build" / "figures")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(COMMANDS)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(COMMANDS)}")
    arguments.into.mkdir(parents=True, exist_ok=True)
    names = arguments.names or list(COMMANDS)
    failed = [name for name in names if not kept(name, arguments.into)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; {arguments.into} has what they printed")


if __name__ == "__main__":
    main()
