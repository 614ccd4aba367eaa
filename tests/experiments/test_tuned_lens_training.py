"""Training of tuned lenses: gradients, resuming, and that they beat the logit lens."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from oracle import pair, tokens

import neox_lab as nl
from neox_lab.errors import CheckpointError, DataError, InputError, NeoxLabWarning
from neox_lab.experiments.lens import divergence as divergences
from neox_lab.experiments.lens import tuned_training
from neox_lab.experiments.lens.streams import End, streams
from neox_lab.experiments.lens.tuned_training import Recipe, Translators, gradients
from neox_lab.gym.training_texts import sentence

TunedLens = nl.lens.TunedLens
RECIPE = Recipe(3, 30, None, 0.1, 1e-3, 0.3, 2, 0)


@pytest.fixture(params=[True, False], ids=["parallel", "sequential"])
def model(request: pytest.FixtureRequest) -> Any:
    return pair(use_parallel_residual=request.param)[1]


def left_padded() -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[0, :5], mask[2, :1] = 0, 0
    return tokens(), mask


def random_translators(end: End) -> Translators:
    made = Translators(3, end, RECIPE)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in made.parameters:
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return made


def by_autograd(model: Any, made: Translators, ids: torch.Tensor, mask: torch.Tensor) -> Any:
    """Losses and gradients with whole tensors over the vocabulary."""
    with torch.no_grad():
        output, cache = model.run_with_cache(ids, attention_mask=mask)
    own = mask.bool()
    final = output.logits[own].log_softmax(-1)
    losses = []
    for layer in range(3):
        stream = cache["resid_pre", layer][own]
        moved = stream + stream @ made.weights[layer].T + made.biases[layer]
        read = model.embed_out(model.gpt_neox.final_layer_norm(moved)).log_softmax(-1)
        losses.append((final.exp() * (final - read)).sum(-1).mean())
    return [float(loss.detach()) for loss in losses], torch.autograd.grad(
        sum(losses), made.parameters
    )


@pytest.mark.parametrize("rows", [1, 7, 10**6])
def test_the_gradient_in_pieces_is_autograds(
    model: Any, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model.double()
    monkeypatch.setattr(divergences, "PIECE", rows * 211)
    monkeypatch.setattr(divergences, "LEAST", 1)
    ids, mask = left_padded()
    end = End.of(model)
    made = random_translators(end)
    texts = [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]
    sums = np.zeros(3)
    count = int(mask.sum())
    for found, _ in streams(model, texts, 2):
        sums += gradients(made, end, found, 1 / count)
    losses, expected = by_autograd(model, made, ids, mask)
    np.testing.assert_allclose(sums / count, losses, rtol=1e-7)
    for p, gradient in zip(made.parameters, expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-6, atol=1e-8)


def test_the_gradient_in_float32(model: Any) -> None:
    ids, mask = left_padded()
    end = End.of(model)
    made = random_translators(end)
    texts = [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]
    for found, _ in streams(model, texts, 3):
        gradients(made, end, found, 1 / int(mask.sum()))
    exact = model.double()
    wide = random_translators(End.of(exact))
    with torch.no_grad():
        for p, q in zip(wide.parameters, made.parameters, strict=True):
            p.copy_(q)
    _, expected = by_autograd(exact, wide, ids, mask)
    for p, gradient in zip(made.parameters, expected, strict=True):
        assert p.grad is not None
        assert (p.grad - gradient).norm() < 1e-5 * gradient.norm()


def test_products_in_bfloat16_lead_to_the_same_lens(model: Any) -> None:
    """Large logits, so rounding counts; still the gradient points where the exact one does."""
    ids, mask = left_padded()
    texts = [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]
    found = []
    for precision in ("float32", "bfloat16"):
        made = random_translators(End.of(model))
        for each, _ in streams(model, texts, 3):
            losses = gradients(made, End.of(model, precision), each, 1 / int(mask.sum()))
        found.append(torch.cat([p.grad.flatten() for p in made.parameters if p.grad is not None]))
        assert found[0].dtype == torch.float32 and np.isfinite(losses).all()
    assert (found[0] - found[1]).norm() < 0.02 * found[0].norm()
    assert not torch.equal(*found)


def test_a_bias_of_the_unembedding_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, unembed = (torch.randn(n, 8, generator=generator).double() for n in (5, 5, 30))
    bias = torch.randn(30, generator=generator).double()
    final, read = (divergences.said(each, unembed, bias) for each in (x, y))
    p, q = ((each @ unembed.T + bias).log_softmax(-1) for each in (x, y))
    torch.testing.assert_close(
        divergences.divergence(final, read), (p.exp() * (p - q)).sum(-1), rtol=1e-9, atol=1e-12
    )


def test_padding_changes_nothing(model: Any) -> None:
    ids, mask = left_padded()
    right = torch.ones_like(ids)
    right_mask = torch.zeros_like(mask)
    for row in range(3):
        own = ids[row][mask[row].bool()]
        right[row, : len(own)], right_mask[row, : len(own)] = own, 1
    results = [
        TunedLens.train(
            model,
            {"input_ids": each, "attention_mask": each_mask},
            steps=3,
            tokens_per_step=20,
            batch_size=2,
        )
        for each, each_mask in ((ids, mask), (right, right_mask))
    ]
    assert torch.equal(results[0].lens.weight, results[1].lens.weight)
    assert results[0] == results[1] and results[0].tokens < 12 * 3


def test_the_published_recipe_step_by_step(model: Any) -> None:
    """The same parameters as PyTorch's own parts give when put together by hand."""
    ids = tokens(6, 10)
    trained = TunedLens.train(model, ids, steps=4, tokens_per_step=50, held_out=0.17, seed=1)
    made = Translators(3, End.of(model), RECIPE)
    optimiser = torch.optim.SGD(
        made.parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / 4)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1)).tolist()
    kept = ids[sorted(order[1:])]  # five documents of ten tokens: every step reads them all
    for _ in range(4):
        _, found = by_autograd(model, made, kept, torch.ones_like(kept))
        for p, gradient in zip(made.parameters, found, strict=True):
            p.grad = gradient
        torch.nn.utils.clip_grad_norm_(made.parameters, 1.0)
        optimiser.step()
        schedule.step()
    expected = torch.stack([w.detach() for w in made.weights])
    torch.testing.assert_close(trained.lens.weight, expected, rtol=1e-3, atol=1e-5)
    assert expected.abs().max() > 0.01


def test_the_result_measures_held_out_documents(model: Any) -> None:
    ids = tokens(8, 9)
    before = torch.random.get_rng_state()
    with torch.inference_mode():
        result = TunedLens.train(model, ids, steps=2, tokens_per_step=30, held_out=0.25, seed=4)
    assert torch.equal(before, torch.random.get_rng_state())
    order = torch.randperm(8, generator=torch.Generator().manual_seed(4)).tolist()
    held = ids[sorted(order[:2])]
    tuned, logit = (
        each.kl[:-1].mean(dim=(1, 2)) / math.log(2)
        for each in (
            nl.lens.tuned_lens(model, held, result.lens),
            nl.lens.logit_lens(model, held),
        )
    )
    np.testing.assert_allclose(result.frame["kl_bits"], tuned, rtol=1e-4)
    np.testing.assert_allclose(result.frame["logit_lens_kl_bits"], logit, rtol=1e-4)
    assert result.documents == 2 and result.tokens == 18 and len(result.losses) == 2
    assert list(result.frame["layer"]) == ["0_pre", "1_pre", "2_pre"]
    assert (result.frame["kl_bits_low"] <= result.frame["kl_bits"]).all()
    assert (result.frame["kl_bits_high"] >= result.frame["kl_bits"]).all()
    again = result.lens.evaluate(model, held, seed=4)
    assert again.frame.equals(result.frame) and not again.losses
    assert result.view().to_png().startswith(b"\x89PNG")
    assert "Training" in repr(result.view("training"))
    with pytest.raises(InputError, match="not trained"):
        again.view("training")


def test_documents_that_a_step_reads_again_are_told_of() -> None:
    made = pair()[1]
    with pytest.warns(NeoxLabWarning, match="have 54 tokens together.* 2.0 times over"):
        TunedLens.train(made, tokens(8, 9), steps=1, tokens_per_step=108, held_out=0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TunedLens.train(made, tokens(8, 9), steps=1, tokens_per_step=54, held_out=0.25)
        TunedLens.train(made, tokens(8, 9), steps=0, held_out=0.25)


def test_it_comes_closer_than_the_logit_lens_at_every_layer() -> None:
    model, random = nl.load(), Random(0)
    documents = [" ".join(sentence(random) for _ in range(6)) for _ in range(60)]
    result = TunedLens.train(model, documents, steps=20, tokens_per_step=512, progress=False)
    assert (result.frame["kl_bits_high"] < result.frame["logit_lens_kl_bits_low"]).all()
    assert result.losses[-1] < 0.5 * result.losses[0]


SCRIPT = """
import sys
from pathlib import Path
import torch
import neox_lab as nl
from neox_lab.experiments.lens import tuned_training
tuned_training.EVERY = 3
folder, stop = Path(sys.argv[1]), int(sys.argv[2])
made, step = [0], tuned_training._step
def slow(*arguments):
    made[0] += 1
    if made[0] > stop:
        print("stopped", flush=True)
        sys.stdin.read()
    return step(*arguments)
tuned_training._step = slow
ids = torch.arange(400).reshape(10, 40) % 300 + 5
result = nl.lens.TunedLens.train(nl.load(), ids, to=folder, steps=8, tokens_per_step=100)
torch.save([result.lens.weight, result.lens.bias, result.losses], folder.with_suffix(".pt"))
"""


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same(tmp_path: Path) -> None:
    def run(name: str, stop: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / name), str(stop)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(nl.__file__).parent.parent)},
        )

    assert run("whole", 99).wait() == 0
    process = run("killed", 5)
    assert process.stdout is not None and process.stdout.readline() == "stopped\n"
    model, ids = nl.load(), torch.arange(400).reshape(10, 40) % 300 + 5
    with pytest.raises(CheckpointError, match="Another training"):
        TunedLens.train(model, ids, to=tmp_path / "killed", steps=8, tokens_per_step=100)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed.pt").exists()
    assert run("killed", 99).wait() == 0
    whole, killed = (torch.load(tmp_path / f"{name}.pt") for name in ("whole", "killed"))
    assert torch.equal(whole[0], killed[0]) and torch.equal(whole[1], killed[1])
    assert whole[2] == killed[2] and len(whole[2]) == 8
    lens = TunedLens.from_pretrained(tmp_path / "killed", model)
    assert torch.equal(lens.weight, whole[0])
    with pytest.raises(CheckpointError, match="another recipe"):
        TunedLens.train(model, ids, to=tmp_path / "killed", steps=9, tokens_per_step=100)


def test_interrupted_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = pair()[1], tokens(6, 10)
    monkeypatch.setattr(tuned_training, "EVERY", 2)
    whole = TunedLens.train(model, ids, steps=5, tokens_per_step=30)
    step, done = tuned_training._step, list[int]()

    def interrupted(*arguments: Any) -> float:
        done.append(1)
        if len(done) == 4:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(tuned_training, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        TunedLens.train(model, ids, steps=5, tokens_per_step=30, to=tmp_path)
    again = TunedLens.train(model, ids, steps=5, tokens_per_step=30, to=tmp_path)
    assert len(done) == 4 + 3  # two steps were kept
    assert torch.equal(again.lens.weight, whole.lens.weight) and again == whole
    assert TunedLens.train(model, ids, steps=5, tokens_per_step=30, to=tmp_path) == whole
    assert len(done) == 7


def test_over_training() -> None:
    """A lens of one step, tested at others through the one call."""
    ids = torch.arange(200).reshape(5, 40) % 300 + 5
    model = nl.load()
    lens = TunedLens.train(model, ids, steps=2, tokens_per_step=100).lens
    lens.any_revision = True
    result = nl.dynamics.run(
        lambda other: lens.evaluate(other, ids), steps=[1000, 18000], progress=False
    )
    assert not any(result.frame["error"])
    assert len(result.frame) == 8 and "kl_bits" in result.columns
    last = result.frame[result.frame["step"] == 18000]["kl_bits"]
    assert last.tolist() == pytest.approx(lens.evaluate(model, ids).frame["kl_bits"].tolist())


@pytest.mark.parametrize(
    ("texts", "arguments", "error", "words"),
    [
        (tokens(), {"steps": -1}, InputError, "steps=-1"),
        (tokens(), {"tokens_per_step": 0}, InputError, "tokens_per_step=0"),
        (tokens(), {"held_out": 1.0}, InputError, "held_out=1.0"),
        (tokens(), {"learning_rate": 0}, InputError, "learning_rate=0"),
        (tokens(), {"precision": "float16"}, InputError, "precision='float16'"),
        (tokens(), {"batch_size": "8"}, InputError, "batch_size='8'"),
        (tokens(1), {}, DataError, "1 documents"),
        (tokens().float(), {}, InputError, "Vectors"),
        (tokens() + 500, {}, DataError, "vocabulary of 211"),
        ([1, 2], {}, InputError, "expected a list of texts"),
        ({"input_ids": tokens(), "attention_mask": tokens(2)}, {}, InputError, "attention_mask"),
    ],
)
def test_what_cannot_be_trained(texts: Any, arguments: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        TunedLens.train(pair()[1], texts, **arguments)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=f"^'{tmp_path}' holds other things"):
        TunedLens.train(pair()[1], tokens(), to=tmp_path)
    assert json.dumps([p.name for p in tmp_path.iterdir()]) == '["notes.txt"]'
    with pytest.raises(InputError, match="unembedding"):
        TunedLens.train(pair("GPTNeoXModel")[1], tokens())


def test_training_goes_on_under_the_same_hooks_alone(tmp_path: Path) -> None:
    model, ids = pair()[1], tokens(6, 12)
    options: dict[str, Any] = {"to": tmp_path, "steps": 3, "tokens_per_step": 24}
    hooks = [("blocks.0.hook_resid_post", lambda x, hook: x / 2)]
    with model.hooks(hooks):
        first = nl.lens.TunedLens.train(model, ids, progress=False, **options)
        again = nl.lens.TunedLens.train(model, ids, progress=False, **options)
    assert first.losses == again.losses
    with pytest.raises(CheckpointError, match="recipe, model, hooks or documents"):
        nl.lens.TunedLens.train(model, ids, progress=False, **options)
