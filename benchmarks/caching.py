"""The price of watching, and of being watchable: python benchmarks/caching.py [--device cuda].

    cache   every activation of 4 x 128 tokens, beside TransformerLens's bridge on the same weights:
            seconds, the peak of memory above the loaded model, and what the cache goes on holding
            (each in a process of its own)
    hooks   a forward pass without any hooks, beside a twin whose code has no hook points:
            4 x 128 tokens, and one token after 128 in the key-value cache

Random weights of the Pythia shapes, float32. The two sides take turns, so that whatever else
the machine does hits both; ``ratio`` is the median, over turns, of our time divided by the
other's. The first part needs transformer_lens and transformers and is left out without them.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import neox_lab as nl
from neox_lab.family.backbone import GPTNeoXModel
from neox_lab.model.attention import Attention, SplitInput
from neox_lab.model.block import MLP, Block
from neox_lab.model.hook_points import NO_TAP, Tap, Taps
from neox_lab.model.key_value_cache import LayerKeysValues
from neox_lab.model.masking import AttentionMask
from neox_lab.model.rotary import rotate

sys.path.insert(0, str(Path(__file__).parent))
from devices import Peak, add_device, header, seconds

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHAPES = {"pythia-70m": (6, 512, 8), "pythia-160m": (12, 768, 12)}  # layers, d_model, heads
VOCAB = 50304
SIDES = ("TransformerLens", "neox_lab")


class PlainMLP(MLP):
    """The MLP without hook points."""

    def forward(self, x: Tensor, tap: Tap = NO_TAP) -> Tensor:
        """See MLP."""
        return self.dense_4h_to_h(self.act(self.dense_h_to_4h(x)))


class PlainAttention(Attention):
    """Attention without hook points."""

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: AttentionMask,
        keys_values: LayerKeysValues | None = None,
        tap: Tap = NO_TAP,
        split_inputs: tuple[SplitInput | None, ...] | None = None,
    ) -> Tensor:
        """See Attention."""
        batch, pos, _ = x.shape
        q, k, v = self.project(x)
        q = rotate(q, *rotation).transpose(1, 2)
        k = rotate(k, *rotation).transpose(1, 2)
        v = v.transpose(1, 2)
        if keys_values is not None:
            k, v = keys_values.append(k, v)
        z = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask.bias,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask.causal,
            scale=self.scale,
        )
        return self.dense(z.transpose(1, 2).reshape(batch, pos, self.heads * self.d_head))


class PlainBlock(Block):
    """A parallel block without hook points."""

    def forward(
        self,
        resid_pre: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: AttentionMask,
        keys_values: LayerKeysValues | None = None,
        tap: Tap = NO_TAP,
    ) -> Tensor:
        """See Block."""
        attn_out = self.attention(self.input_layernorm(resid_pre), rotation, mask, keys_values)
        if self.training:
            attn_out = self.post_attention_dropout(attn_out)
        mlp_out = self.mlp(self.post_attention_layernorm(resid_pre))
        if self.training:
            mlp_out = self.post_mlp_dropout(mlp_out)
        return mlp_out + attn_out + resid_pre


class PlainModel(GPTNeoXModel):
    """The network without hook points."""

    def embed(self, input_ids: Tensor | None, embeds: Tensor | None, taps: Taps) -> Tensor:
        """See Network."""
        return self.emb_dropout(self.embed_in(input_ids))

    def normalize(self, residual: Tensor, taps: Taps | None = None) -> Tensor:
        """See Network."""
        return self.final_layer_norm(residual)


class PlainForCausalLM(nl.GPTNeoXForCausalLM):
    """The language model without hook points."""

    def _project(self, name: str, linear: Any, hidden: Tensor, taps: Taps) -> Tensor:
        return linear(hidden)


PLAIN = {
    MLP: PlainMLP,
    Attention: PlainAttention,
    Block: PlainBlock,
    GPTNeoXModel: PlainModel,
    nl.GPTNeoXForCausalLM: PlainForCausalLM,
}


def without_hook_points(model: Any) -> Any:
    """A twin on the same weights whose code passes no hook points."""
    with torch.no_grad():
        twin = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    for module in twin.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return twin


def interleaved(
    other: Callable[[], Any], ours: Callable[[], Any], turns: int, device: str
) -> tuple[float, float, float]:
    """Median seconds of the other side and of ours, and the median ratio of neighbouring runs."""
    timed = partial(seconds, device=device)
    for _ in range(2):
        other(), ours()
    times = []
    for turn in range(turns):
        if turn % 2:
            first, second = timed(other), timed(ours)
        else:
            second, first = timed(ours), timed(other)
        times.append((first, second))
    return (
        median(first for first, _ in times),
        median(second for _, second in times),
        median(second / first for first, second in times),
    )


def line(shape: str, work: str, other: float, ours: float, ratio: float, unit: str) -> None:
    """Print one comparison."""
    print(f"{shape:12} {work:22} {other:9.1f} {unit} {ours:9.1f} {unit} {ratio:7.3f}", flush=True)


def fresh(layers: int, d_model: int, heads: int) -> Any:
    """Our model of one shape with random weights."""
    config = nl.GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=d_model,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * d_model,
    )
    return nl.GPTNeoXForCausalLM(config).eval()


def write_checkpoint(model: Any, directory: str) -> None:
    """Save the model, and a tokenizer because the bridge will not boot without one."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model.save_pretrained(directory)
    words = Tokenizer(models.WordLevel({"<|endoftext|>": 0}, unk_token="<|endoftext|>"))
    end = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **end).save_pretrained(directory)


def load(side: str, directory: str, device: str) -> Any:
    """The checkpoint, on one side."""
    if side == "neox_lab":
        return nl.GPTNeoXForCausalLM.from_pretrained(directory).to(device)
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(directory, device=device, dtype=torch.float32)


def tokens() -> Tensor:
    """Random ids ``[4, 128]``."""
    return torch.randint(VOCAB, (4, 128), generator=torch.Generator().manual_seed(0))


def peak(side: str, directory: str, threads: str, device: str) -> dict[str, float]:
    """Bytes above the loaded model: what a full cache takes at its peak, and what it holds."""
    torch.set_num_threads(int(threads))
    model, ids = load(side, directory, device), tokens().to(device)
    model.run_with_cache(ids)  # buffers that PyTorch keeps are there from now on
    gc.collect()
    memory = Peak(device)
    _, cache = model.run_with_cache(ids)
    highest = memory.nbytes()
    tensors = [cache[name] for name in cache]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    held = cache.nbytes if side == "neox_lab" else sum(storages.values())
    return {"peak": highest, "held": held}


def compare_caching(
    shape: str, sizes: tuple[int, int, int], turns: int, options: argparse.Namespace
) -> None:
    """Time and memory of caching everything, beside TransformerLens."""
    device = options.device
    ids = tokens().to(device)
    with tempfile.TemporaryDirectory() as directory:
        write_checkpoint(fresh(*sizes), directory)
        models = [load(side, directory, device) for side in SIDES]
        logits = models[0].run_with_cache(ids)[0], models[1].run_with_cache(ids)[0].logits
        torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
        runs = (partial(model.run_with_cache, ids) for model in models)
        found = interleaved(*runs, turns, device)
        line(shape, "cache everything", found[0] * 1e3, found[1] * 1e3, found[2], "ms")
        del models, logits
        found = []
        for side in SIDES:
            command = [sys.executable, __file__, "peak", side, directory]
            command += [str(options.threads), device]
            # Large blocks go back to the system when freed, so that the peak is what was needed.
            environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=environment
            )
            found.append(json.loads(done.stdout.strip().rpartition("\n")[2]))
        for what, work in (("peak", "peak of its memory"), ("held", "memory it holds")):
            theirs, ours = (side[what] / 1e6 for side in found)
            line(shape, work, theirs, ours, ours / theirs, "MB")


def compare_hooks(shape: str, sizes: tuple[int, int, int], turns: int, device: str) -> None:
    """Time of a forward pass without hooks, beside the twin without hook points."""
    ours = fresh(*sizes).to(device)
    twin = without_hook_points(ours)
    ids = tokens().to(device)
    assert torch.equal(ours(ids).logits, twin(ids).logits)
    found = interleaved(lambda: twin(ids), lambda: ours(ids), turns, device)
    line(shape, "no hooks, 4 x 128", found[0] * 1e3, found[1] * 1e3, found[2], "ms")

    def step(model: Any) -> Callable[[], Any]:
        cache = model(ids[:1]).past_key_values

        def run() -> None:
            model(ids[1:2, :1], past_key_values=cache)
            cache.crop(-1)

        return run

    found = interleaved(step(twin), step(ours), 20 * turns, device)
    line(shape, "no hooks, 1 + 128", found[0] * 1e3, found[1] * 1e3, found[2], "ms")


def main() -> None:
    """Measure every shape and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the smaller shape, a few turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_device(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(header(options.device, "float32; medians") + "\n")
    torch.manual_seed(0)
    shapes = list(SHAPES.items())[: 1 if options.quick else None]
    turns = 6 if options.quick else 30
    columns = "{:12} {:22} {:>12} {:>12} {:>7}"
    if importlib.util.find_spec("transformer_lens"):
        print(columns.format("shape", "work", *SIDES, "ratio"))
        for shape, sizes in shapes:
            with torch.no_grad():
                compare_caching(shape, sizes, turns, options)
    else:
        print("transformer_lens is not installed: caching is not compared.")
    print("\n" + columns.format("shape", "work", "no points", "neox_lab", "ratio"))
    for shape, sizes in shapes:
        with torch.inference_mode():
            compare_hooks(shape, sizes, turns, options.device)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["peak", side, directory, threads, device]:
            with torch.no_grad():
                print(json.dumps(peak(side, directory, threads, device)))
        case _:
            main()
