"""Where a benchmark runs, and times and memory that are right there.

Every benchmark takes ``--device cpu``, ``cuda`` or ``cuda:1`` and prints what it ran on. A GPU is
given its work and goes on by itself, so a clock must wait for it; what the processor does meanwhile
says little, so on a GPU seconds are always by the clock, and memory is the GPU's.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_HIGH_WATER_MARK = Path("/proc/self/clear_refs")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Let the command line say where."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")


def header(device: str, *more: object) -> str:
    """What is printed first: libraries, processor or card by name, threads, and how busy it is.

    Args:
        device: as on the command line; the program ends where it is not there.
        more: what else was decided.
    """
    import torch

    if is_gpu(device) and not torch.cuda.is_available():
        sys.exit(f"--device {device}: PyTorch sees no CUDA device on this machine.")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    told = [f"torch {torch.__version__}", name_of(device), f"{torch.get_num_threads()} threads"]
    return ", ".join([*told, f"load {load:.1f}", *map(str, more)])


def is_gpu(device: str) -> bool:
    """Whether ``device`` is one that works by itself."""
    return device.startswith("cuda")


def name_of(device: str) -> str:
    """The card's name, or the processor's."""
    if is_gpu(device):
        import torch

        return torch.cuda.get_device_name(device)
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    named = {field.strip(): value.strip() for field, value in pairs}
    name = named.get("model name") or platform.processor() or platform.machine()
    return f"{name} (model {named['model']})" if "model" in named else name


def wait(device: str) -> None:
    """Let a GPU finish what it was given."""
    if is_gpu(device):
        import torch

        torch.cuda.synchronize(device)


def timed(
    run: Callable[[], Any], device: str, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, Any]:
    """Seconds that a call takes, and what it returns.

    Args:
        run: what to call.
        device: where it computes.
        clock: on a CPU; ``time.process_time`` counts what the processor did.
    """
    clock = time.perf_counter if is_gpu(device) else clock
    wait(device)
    start = clock()
    found = run()
    wait(device)
    return clock() - start, found


def seconds(
    run: Callable[[], Any], device: str, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds that a call takes; what it returns is dropped after that. See ``timed``."""
    return timed(run, device, clock)[0]


class Peak:
    """The most memory that is used from now on, above what is used now.

    On a CPU that is Linux's count for this process, which is set back; elsewhere the most that the
    process ever had.
    """

    def __init__(self, device: str) -> None:
        """Begin."""
        self.device = device
        if is_gpu(device):
            import torch

            wait(device)
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            return
        if _HIGH_WATER_MARK.exists():
            _HIGH_WATER_MARK.write_text("5")  # it starts here
        self._before = _resident("VmRSS")

    def nbytes(self) -> int:
        """Bytes so far."""
        if is_gpu(self.device):
            import torch

            wait(self.device)
            return torch.cuda.max_memory_allocated(self.device) - self._before
        return _resident("VmHWM") - self._before


def _resident(field: str) -> int:
    if not _HIGH_WATER_MARK.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024
