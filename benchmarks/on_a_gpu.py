"""What a machine with a GPU should be asked once: are the numbers right there, and how fast is it?

    python benchmarks/on_a_gpu.py [--device cuda] [--shapes 70m 410m 1.4b] [--minutes 8]

Random weights of the Pythia shapes; needs nothing but the package, and compares with transformers
where it is installed. First equalities, each with the number that decides; one that fails ends the
program with status 1 after all have been tried. Then times, in tables that name the card. Nothing
new is begun when the minutes are over. With ``--device cpu`` everything runs on small shapes, which
shows that the script works and nothing else.

    plain, recorded  tokens a second of greedy ``generate``: one kernel after another, and from a
                     recorded CUDA graph (``neox_lab/generation/captured_stepper.py``)
    bandwidth        share of the memory bandwidth that reading the weights once a token takes, of
                     what adding up a large tensor reaches
    launches, busy   of a ``resid_pre`` sweep: kernels that are started, and the share of the time
                     in which one runs
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import neox_lab as nl
from neox_lab.generation import captured, captured_stepper

sys.path.insert(0, str(Path(__file__).parent))
from devices import add_device, header, is_gpu, name_of, seconds, timed

SHAPES = {  # layers, d_model, heads
    "tiny": (3, 64, 4),
    "70m": (6, 512, 8),
    "160m": (12, 768, 12),
    "410m": (24, 1024, 16),
    "1.4b": (24, 2048, 16),
    "6.9b": (32, 4096, 32),
}
VOCAB, PROMPT, NEW = 50304, 16, 64
METRIC = nl.patching.logit_difference(17, 4000)


def sizes(shape: str) -> dict[str, Any]:
    """Arguments of a configuration."""
    layers, d_model, heads = SHAPES[shape]
    return {
        "vocab_size": VOCAB,
        "hidden_size": d_model,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * d_model,
    }


@torch.no_grad()
def model_of(shape: str, device: str, dtype: torch.dtype, scale: float = 0.05, **more: Any) -> Any:
    """A model with random weights, made where it is to be; layers and biases all differ."""
    with torch.device("meta"):
        model = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**sizes(shape), **more)).to(dtype).eval()
    model.to_empty(device=device)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, float("norm.weight" in name), scale)
    return model


def ids_of(batch: int, length: int, device: str) -> Tensor:
    """Random tokens ``[batch, pos]``, the same on every device."""
    generator = torch.Generator().manual_seed(batch + length)
    return torch.randint(VOCAB, (batch, length), generator=generator).to(device)


def continued(model: Any, ids: Tensor, new: int = NEW, **more: Any) -> Tensor:
    """``ids`` and ``new`` more tokens."""
    settings = {"max_new_tokens": new, "eos_token_id": None, "pad_token_id": 0} | more
    result: Tensor = model.generate(ids, **settings)
    return result


@contextmanager
def plain_steps() -> Iterator[None]:
    """Inside, nothing is recorded."""
    before, captured.DEVICES = captured.DEVICES, ()
    try:
        yield
    finally:
        captured.DEVICES = before


class Equalities:
    """Numbers that must be small, printed as they come."""

    def __init__(self) -> None:
        """None yet."""
        self.failed = 0

    def hold(self, what: str, found: Callable[[], float], bound: float) -> None:
        """Print whether a number is at most ``bound``; an error is a failure and stops nothing."""
        try:
            number = found()
        except Exception as error:
            self.failed += 1
            print(f"FAILED  {what}: {type(error).__name__}: {error}", flush=True)
            return
        bad = not number <= bound
        self.failed += bad
        told = f"{'FAILED' if bad else 'ok':6}  {what}: {number:.1e} (at most {bound:.0e})"
        print(told, flush=True)


def apart(one: Tensor, other: Tensor) -> float:
    """Largest difference, as a share of the largest number."""
    one, other = one.double().cpu(), other.double().cpu()
    return float((one - other).abs().max() / other.abs().max())


def equalities(device: str) -> int:
    """Try all; returns how many failed."""
    holds = Equalities()
    shape = "70m" if is_gpu(device) else "tiny"
    there = model_of(shape, device, torch.float32)
    here = nl.GPTNeoXForCausalLM(there.config).eval()
    here.load_state_dict(there.state_dict())
    ids, others = ids_of(2, 12, "cpu"), ids_of(2, 13, "cpu")[:, :12]

    def forward() -> float:
        return apart(there(ids.to(device)).logits, here(ids).logits)

    def cached() -> float:
        both = zip(there.run_with_cache(ids.to(device))[1].values(),
                   here.run_with_cache(ids)[1].values(), strict=True)  # fmt: skip
        finite = ((a.cpu().nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)) for a, b in both)
        return max(apart(a, b) for a, b in finite)

    def swept() -> float:
        run = partial(nl.patching.sweep, metric=METRIC, progress=False)
        ours = run(there, others[:1].to(device), ids[:1].to(device))
        return apart(ours.values, run(here, others[:1], ids[:1]).values)

    with torch.no_grad():
        holds.hold("forward pass, here and on a CPU", forward, 1e-4)
        holds.hold("every activation", cached, 1e-3)
        holds.hold("resid_pre sweep", swept, 1e-3)
    for dtype, bound in ((torch.float32, 1e-3), (torch.float16, 2e-2), (torch.bfloat16, 0.1)):
        for wiring in (True, False):
            model = model_of(shape, device, dtype, use_parallel_residual=wiring)
            words = f"{str(dtype).removeprefix('torch.')}, {'' if wiring else 'not '}parallel"
            holds.hold(f"recorded decoding, {words}", partial(recorded, model, device), bound)
            del model
    for dtype in (torch.float32, torch.bfloat16):
        holds.hold(f"streamed layers, {dtype}", partial(streamed, shape, device, dtype), 0.0)
    return holds.failed


def recorded(model: Any, device: str) -> float:
    """Largest difference of logits from those of plain steps, as ``apart``, while texts are equal.

    In half precision texts part where two tokens are equally likely but for rounding.

    Raises:
        AssertionError: nothing was recorded, or texts in float32 part.
    """
    differ = []
    mask = torch.ones(3, PROMPT, dtype=torch.long, device=device)
    mask[1, :5] = 0
    logits = {"return_dict_in_generate": True, "output_logits": True}
    for given in ({}, {"do_sample": True, "temperature": 0.7}, {"attention_mask": mask}):
        run = partial(continued, model, ids_of(3, PROMPT, device), **logits, **given)
        torch.manual_seed(0)
        with plain_steps():
            expected: Any = run()
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found: Any = run()
        same = (found.sequences == expected.sequences).all(dim=0)[PROMPT:].tolist()
        steps = same.index(False) + 1 if False in same else len(same)
        assert all(same) or model.dtype != torch.float32, f"texts part at new token {steps}"
        both = zip(found.logits[:steps], expected.logits[:steps], strict=True)
        differ.append(max(apart(here, there) for here, there in both))
    assert model in captured_stepper._KEPT or not is_gpu(device), "nothing was recorded"
    return max(differ)


def streamed(shape: str, device: str, dtype: torch.dtype) -> float:
    """Largest difference of five streamed passes, one after another, from the resident model's."""
    model = model_of(shape, device, dtype)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        layer = sum(parameter.nbytes for parameter in model.gpt_neox.layers[0].parameters())
        others = sum(parameter.nbytes for parameter in model.parameters())
        others -= layer * len(model.gpt_neox.layers)
        where = torch.device(device).index or 0 if is_gpu(device) else "cpu"
        budget = {where: others + int(2.6 * layer)}
        other = nl.GPTNeoXForCausalLM.from_pretrained(folder, dtype=dtype, max_memory=budget)
        assert other.gpt_neox.store is not None
        with torch.no_grad():
            texts = [ids_of(2, length, device) for length in (5, 9, 33, 9, 5)]
            return max(apart(other(ids).logits, model(ids).logits) for ids in texts)


def decoding(shapes: list[str], device: str, goes_on: Callable[[], bool]) -> None:
    """A table of tokens a second."""
    large = torch.ones(2**28 if is_gpu(device) else 2**22, device=device)
    bandwidth = large.nbytes / min(seconds(large.sum, device) for _ in range(10))
    del large
    print(f"\nDecoding in float16 on {name_of(device)}, which reads {bandwidth / 1e9:.0f} GB/s")
    print(f"{'shape':6} {'batch':>5} {'transformers':>13} {'plain':>8} {'recorded':>9} bandwidth")
    for shape in shapes:
        if not goes_on():
            return
        model = model_of(shape, device, torch.float16, 0.02)
        weights = sum(m.weight.nbytes for m in model.modules() if isinstance(m, nn.Linear))
        sides: dict[str, Any] = {"plain": model, "recorded": model}
        if importlib.util.find_spec("transformers") and shape != "6.9b":
            sides = {"transformers": theirs(shape, model, device)} | sides
        for batch in (1, 32):
            ids = ids_of(batch, PROMPT, device)
            found = {"transformers": float("nan")}
            for name, side in sides.items():
                with plain_steps() if name == "plain" else warnings.catch_warnings():
                    run = partial(continued, side, ids, do_sample=False)
                    run()  # warms up, and records
                    found[name] = batch * NEW / median(seconds(run, device) for _ in range(3))
            share = found["recorded"] / batch * weights / bandwidth
            print(f"{shape:6} {batch:5} {found['transformers']:13.0f} {found['plain']:8.0f} "
                  f"{found['recorded']:9.0f} {share:9.2f}", flush=True)  # fmt: skip
        del model, sides


def theirs(shape: str, model: Any, device: str) -> Any:
    """Transformers' model with the same weights."""
    import transformers

    transformers.logging.set_verbosity_error()
    config = transformers.GPTNeoXConfig(**sizes(shape), attn_implementation="sdpa")
    made = transformers.GPTNeoXForCausalLM(config).eval().to(device, model.dtype)
    names = (name.replace("embed_out.", "lm_head.") for name in model.state_dict())
    made.load_state_dict(dict(zip(names, model.state_dict().values(), strict=True)), strict=False)
    return made


def sweeping(shapes: list[str], device: str, goes_on: Callable[[], bool]) -> None:
    """A table of sweeps and of what their launches cost."""
    print(f"\nresid_pre sweeps in float32 on {name_of(device)}")
    print(f"{'shape':6} {'tokens':>6} {'seconds':>8} {'launches':>9} {'busy':>5}")
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if is_gpu(device) else []
    for shape in shapes:
        for length in (14, 64):
            if not goes_on():
                return
            model = model_of(shape, device, torch.float32)
            clean, corrupted = ids_of(1, length, device), ids_of(1, length, device)
            corrupted[0, length // 4] = (corrupted[0, length // 4] + 1) % VOCAB
            run = partial(nl.patching.sweep, model, clean, corrupted, METRIC, progress=False)
            run()
            taken = median(seconds(run, device) for _ in range(3))
            with torch.profiler.profile(activities=activities) as profile:
                within, _ = timed(run, device)
            events = [e for e in profile.events() if e.device_type.name == "CUDA"]
            busy = sum(event.time_range.elapsed_us() for event in events) / 1e6 / within
            print(f"{shape:6} {length:6} {taken:8.3f} {len(events):9} {busy:5.2f}", flush=True)


def main() -> None:
    """Equalities, then times."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_device(parser)
    parser.set_defaults(device="cuda")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES))
    parser.add_argument("--minutes", type=float, default=8)
    options = parser.parse_args()
    print(header(options.device) + "\n")
    end = time.monotonic() + 60 * options.minutes - 60
    failed = equalities(options.device)
    print(f"{failed} failed" if failed else "all equal")
    small = not is_gpu(options.device)

    def goes_on() -> bool:
        return time.monotonic() < end

    usual = ["tiny"] if small else ["70m", "410m", "1.4b", "6.9b"]
    if not small and torch.cuda.mem_get_info(options.device)[1] < 24e9:
        usual.remove("6.9b")
    sweeping(options.shapes or (["tiny"] if small else ["160m"]), options.device, goes_on)
    decoding(options.shapes or usual, options.device, goes_on)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
