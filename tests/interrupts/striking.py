"""Ctrl-C at a chosen moment of the package's code, and at a random one.

Python looks for signals after a call, at the start of a function and at the end of a loop's turn,
and raises what comes of them there. ``strike`` counts these moments in the package's own code and
interrupts at one of them, so the same number is the same moment again. ``strike_by_clock`` sends
the signal from another thread, at any moment of anybody's code.
"""

from __future__ import annotations

import dis
import functools
import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import torch

import neox_lab

PACKAGE = os.path.dirname(neox_lab.__file__) + os.sep
_LOOKS_FOR_SIGNALS = {
    dis.opmap[name]
    for name in (
        *("RESUME", "CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD"),
        *("CALL_INTRINSIC_1", "SEND"),
    )
    if name in dis.opmap
}


@functools.cache
def _bytes(code: CodeType) -> bytes:
    return code.co_code


@functools.cache
def _handlers(code: CodeType) -> dict[int, int]:
    """Where an exception goes on, for each place of a function where that is in it."""
    entries = dis.Bytecode(code).exception_entries
    return {
        at: entry.target for entry in reversed(entries) for at in range(entry.start, entry.end, 2)
    }


class _Striker:
    """Counts moments, and interrupts at one of them."""

    def __init__(self, at: int) -> None:
        self.at, self.where = at, ""
        self.files: list[str] = []

    def enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        code, before, handlers = _bytes(frame.f_code), -1, _handlers(frame.f_code)
        name = frame.f_code.co_filename.removeprefix(PACKAGE)

        def step(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal before
            if event == "opcode":
                at = frame.f_lasti
                # What is raised here is raised at the next place. Where that is out of a block that
                # the call was in, Python itself never raises: the block would not be left.
                same = handlers.get(before) == handlers.get(at)
                if before >= 0 and code[before] in _LOOKS_FOR_SIGNALS and same:
                    self.files.append(name)
                    if len(self.files) == self.at + 1:
                        self.where = f"{name}:{frame.f_lineno} in {frame.f_code.co_name}"
                        signal.raise_signal(signal.SIGINT)
                before = at
            return step

        return step


def strike(action: Callable[[], object], at: int) -> str:
    """Do something and interrupt it at its moment number ``at``; where that was, "" if nowhere."""
    striker, gradients = _Striker(at), torch.is_grad_enabled()
    before = sys.gettrace()
    sys.settrace(striker.enter)
    try:
        action()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    assert torch.is_grad_enabled() == gradients, f"interrupted at {striker.where}: gradients"
    assert sys.exc_info()[0] is None
    return striker.where


def moments(action: Callable[[], object]) -> list[str]:
    """In which file each moment is, all of them in turn."""
    striker = _Striker(-1)
    before = sys.gettrace()
    sys.settrace(striker.enter)
    try:
        action()
    finally:
        sys.settrace(before)
    return striker.files


def chosen(files: list[str], count: int, seed: str) -> list[int]:
    """Some moments, half of them where files are written and interrupts are dealt with."""
    chance = random.Random(seed)
    there = [n for n, file in enumerate(files) if file in ("files.py", "interrupts.py")]
    some = chance.sample(there, min(count // 2, len(there)))
    others = sorted(set(range(len(files))) - set(some))
    return sorted(some + chance.sample(others, min(count - len(some), len(others))))


def strike_by_clock(action: Callable[[], object], seconds: float) -> None:
    """Do something and interrupt it after a time, or when it is done already.

    A signal within PyTorch's own ``no_grad().__exit__`` leaves gradients switched off for the
    process, which nobody outside of it can mend, and so does one within ``inference_mode``'s as
    soon as its traceback is collected; the next test begins as this one did.
    """
    gradients = torch.is_grad_enabled()
    main = threading.main_thread().ident
    assert main is not None and threading.current_thread() is threading.main_thread()

    def send() -> None:
        time.sleep(seconds)
        signal.pthread_kill(main, signal.SIGINT)

    sender = threading.Thread(target=send)
    try:
        sender.start()
        action()
        sender.join()
        time.sleep(0.001)  # a signal that was sent may still be on its way
    except KeyboardInterrupt:
        sender.join()
    finally:
        gc.collect(0)
        torch.set_grad_enabled(gradients)
