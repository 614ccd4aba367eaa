"""Memory and time of looking for the top examples of every feature of a dictionary.

Run: python benchmarks/features.py [--tokens N] [--latents N] [--d-model N] [--turns N]
     [--device cuda]

Random weights and random tokens, made as they are read: every feature is active now and then, so
that all tables fill. Each way is a process of its own, after its imports:

    bare        seconds of the same forward passes and of encoding, and nothing else
    top         seconds of nl.features.top_examples, top 20
    ratio       bare / top; here 1 would mean that the examples cost nothing
    peak        largest memory above what it was when the model had read one batch
    tables      of these, what is kept of every feature, whatever is read
    a token     bytes that each further token takes; they are there twice when all are joined
    10M tokens  peak + (10,000,000 - tokens read) * 2 * bytes of a token
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from devices import Peak, add_device, header, timed

VOCAB, LENGTH, BATCH, K, TOP = 50_304, 256, 16, 32, 20
MANY = 10_000_000


def measured(way: str, tokens: int, latents: int, d_model: int, device: str) -> dict[str, float]:
    """Seconds and bytes of one way."""
    import torch

    import neox_lab as nl
    from neox_lab.features.sources import source_of
    from neox_lab.features.texts_to_codes import codes_of
    from neox_lab.sae.activations import TopK

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = nl.GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=d_model,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=4 * d_model,
    )
    model = nl.GPTNeoXForCausalLM(config).eval().to(device)
    site = "blocks.1.hook_resid_post"
    weights = nl.sae.Weights(
        torch.randn(d_model, latents),
        torch.zeros(latents),
        torch.randn(latents, d_model),
        torch.zeros(d_model),
    )
    dictionary = nl.sae.Dictionary(weights, TopK(K), site_in=site, kind="TopK").to(device)

    def documents() -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(1)
        for _ in range(tokens // LENGTH):
            yield torch.randint(VOCAB, (LENGTH,), generator=generator).tolist()

    def top() -> nl.features.TopExamples:
        return nl.features.top_examples(
            model, dictionary, documents(), top=TOP, context=LENGTH, progress=False
        )

    def bare() -> None:
        source = source_of(model, dictionary)
        batch: list[list[int]] = []
        for ids in documents():
            batch.append(ids)
            if len(batch) == BATCH:
                codes_of(model, source, batch)
                batch = []

    ids = torch.zeros(BATCH, LENGTH, dtype=torch.long, device=device)
    model.run_with_cache(ids, site, logits_to_keep=1)
    memory = Peak(device)
    seconds, found = timed(top if way == "top" else bare, device, time.process_time)
    answer = {"seconds": seconds, "peak": memory.nbytes()}
    if way == "top":
        kept = [found.active, found.mean, found.highest, found.histogram]
        kept += [each for split in found.splits.values() for each in split]
        answer["tables"] = sum(each.nbytes for each in kept)
        answer["a token"] = found.corpus.bytes / len(found.corpus.tokens)
        answer["found"] = float((found.splits["train"].top_place >= 0).float().mean())
    return answer


def main() -> None:
    """Print a line for each way, and what 10 million tokens would take."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--latents", type=int, default=32_768)
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    add_device(parser)
    given = parser.parse_args()
    if given.way:
        found = measured(given.way, given.tokens, given.latents, given.d_model, given.device)
        sys.stdout.write(json.dumps(found))
        return
    print(header(given.device), flush=True)
    best: dict[str, dict[str, float]] = {}
    for _ in range(given.turns):
        for way in ("bare", "top"):
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            if way not in best or said["seconds"] < best[way]["seconds"]:
                best[way] = said
    for way, said in best.items():
        rate, peak = given.tokens / said["seconds"], said["peak"] / 1e6
        sys.stdout.write(
            f"{way:5} {said['seconds']:7.1f} s, {rate:7.0f} tokens/s, peak {peak:.0f} MB\n"
        )
    top = best["top"]
    extra = (MANY - given.tokens) * 2 * top["a token"]
    sys.stdout.write(
        f"ratio {best['bare']['seconds'] / top['seconds']:.2f}\n"
        f"tables {top['tables'] / 1e6:.0f} MB (of one split), {100 * top['found']:.0f} % of them "
        f"filled; a token {top['a token']:.2f} bytes\n"
        f"10M tokens: {top['peak'] / 1e6:.0f} MB + {extra / 1e6:.0f} MB = "
        f"{(top['peak'] + extra) / 1e6:.0f} MB beyond the model\n"
    )


if __name__ == "__main__":
    main()
