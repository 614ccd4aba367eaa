"""Seconds of an attribution graph, beside rows taken by autograd through copies of the prompt.

Run: python benchmarks/attribution_graphs.py [--tokens N] [--features N] [--rows N] [--device cuda]

A network of Pythia-160m's shape with random weights, and a transcoder of 32,768 features, 32 active
at a token, for each of its 12 MLPs. Encoding, interventions and all are in the time of the graph.

    graph       nl.circuits.attribution_graph with --features rows, as a user calls it
    a row       the part of it that a row takes, measured apart on --rows of them
    by autograd the published way: the prompt in as many copies as rows are asked at a time, one run
                forward with attention and norms held, and for each batch of rows one back; its
                products with what the sources write are not counted
    ratio       by autograd / a row
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import neox_lab as nl
from neox_lab.circuits.attribution_graphs.replacement import LocalReplacement
from neox_lab.circuits.attribution_graphs.transcoders import Transcoders
from neox_lab.sae.activations import TopK

sys.path.insert(0, str(Path(__file__).parent))
from devices import add_device, header, seconds

LAYERS, D_MODEL, LATENTS, K, AT_ONCE = 12, 768, 32_768, 32, 64


def network(device: str) -> nl.GPTNeoXForCausalLM:
    """Pythia-160m's shape."""
    torch.manual_seed(0)
    config = nl.GPTNeoXConfig(
        vocab_size=50_304,
        hidden_size=D_MODEL,
        num_hidden_layers=LAYERS,
        num_attention_heads=12,
        intermediate_size=4 * D_MODEL,
    )
    return nl.GPTNeoXForCausalLM(config).eval().to(device)


def transcoder(layer: int, device: str) -> nl.sae.Dictionary:
    """A transcoder of one MLP."""
    encoder = torch.randn(D_MODEL, LATENTS) * D_MODEL**-0.5
    weights = nl.sae.Weights(
        encoder, torch.zeros(LATENTS), 0.02 * encoder.T.contiguous(), torch.zeros(D_MODEL)
    )
    return nl.sae.Dictionary(
        weights,
        TopK(K),
        site_in=f"blocks.{layer}.mlp.hook_in",
        site_out=f"blocks.{layer}.hook_mlp_out",
        kind="TopK",
    ).to(device)


class ByAutograd:
    """Rows of the local replacement model, a batch of them from one run back."""

    def __init__(self, model: nl.GPTNeoXForCausalLM, run: LocalReplacement) -> None:
        self.run, self.read, self.written = run, {}, []

        def hold(tensor, point):
            return run.run[point.name].expand_as(tensor).detach()

        def begin(tensor, point):
            self.written.append(tensor.detach().requires_grad_())
            return self.written[-1]

        def keep(tensor, point):
            self.read[point.layer] = tensor

        hooks = [(f"blocks.*.{name}", hold) for name in ("attn.hook_pattern", "ln?.hook_scale")]
        hooks += [("hook_embed", begin), ("blocks.*.hook_mlp_out", begin)]
        hooks += [("blocks.*.mlp.hook_in", nl.reads_only(keep))]
        model.run_with_hooks(run.ids.expand(AT_ONCE, -1), hooks)

    def rows(self, numbers: torch.Tensor) -> list[torch.Tensor | None]:
        """Gradients at what everybody writes, of the activations of some features."""
        found, total = self.run.features, 0.0
        for copy, number in enumerate(numbers.tolist()):
            layer, pos = int(found.layer[number]), int(found.pos[number])
            row, _ = self.run.transcoders.reading(layer, found.latent[number, None])
            total = total + self.read[layer][copy, pos] @ row[0]
        return list(torch.autograd.grad(total, self.written, retain_graph=True, allow_unused=True))


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--features", type=int, default=2_000)
    parser.add_argument("--rows", type=int, default=256)
    add_device(parser)
    given = parser.parse_args()
    print(header(given.device))
    model = network(given.device)
    transcoders = [transcoder(layer, given.device) for layer in range(LAYERS)]
    ids = torch.randint(1, 50_000, (1, given.tokens), device=given.device)
    graphs = []

    def ask():
        graphs.append(
            nl.circuits.attribution_graph(
                model, transcoders, ids, max_features=given.features, progress=False
            )
        )

    whole = seconds(ask, given.device)
    held = torch.zeros_like(ids[0], dtype=torch.bool)
    run = LocalReplacement(model, ids[0], Transcoders(model, transcoders), held)
    peer = ByAutograd(model, run)
    chosen = torch.randperm(len(run.features), device=given.device)[: given.rows]
    chosen = chosen[run.features.layer[chosen].argsort(descending=True)]
    ours, theirs = [], []
    from neox_lab.circuits.attribution_graphs.building import _traced

    for part in chosen.split(AT_ONCE):
        ours.append(seconds(lambda part=part: _traced(run, part), given.device) / len(part))
        theirs.append(seconds(lambda part=part: peer.rows(part), given.device) / len(part))
    row, slow = (sorted(side)[len(side) // 2] for side in (ours, theirs))
    sys.stdout.write(
        f"graph: {whole:.1f} s, {len(run.features):,} active features, {given.features:,} traced, "
        f"{len(graphs[0].links):,} edges, conservation {graphs[0].conservation:.1e}\n"
        f"a row: {1000 * row:.1f} ms; by autograd {1000 * slow:.1f} ms; ratio {slow / row:.2f}\n"
    )


if __name__ == "__main__":
    main()
