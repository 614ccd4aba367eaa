"""Tuned lenses: what they read against the definition, their files, and whom they refuse."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import pair, randomize, tokens
from small_hub import MAIN, Repository, SmallHub
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import CheckpointError, HookError, InputError, NeoxLabWarning
from neox_lab.model.identity import identity

TunedLens = nl.lens.TunedLens


@pytest.fixture(params=[True, False], ids=["parallel", "sequential"])
def model(request: pytest.FixtureRequest) -> Any:
    return pair(use_parallel_residual=request.param)[1]


def translators(layers: int = 3, width: int = 64) -> OrderedDict[str, Tensor]:
    """Large random translators, by the published names."""
    generator = torch.Generator().manual_seed(5)
    made: OrderedDict[str, Tensor] = OrderedDict()
    for layer in range(layers):
        made[f"{layer}.weight"] = torch.randn(width, width, generator=generator) * 0.2
        made[f"{layer}.bias"] = torch.randn(width, generator=generator)
    return made


def published(folder: Path, tensors: OrderedDict[str, Tensor] | None = None, **told: Any) -> Path:
    """A folder as tuned-lens 0.2.0 writes it."""
    config = {
        "base_model_name_or_path": "EleutherAI/pythia-70m-deduped",
        "d_model": 64,
        "num_hidden_layers": 3,
        "bias": True,
        "base_model_revision": None,
        "unembed_hash": None,
        "lens_type": "linear_tuned_lens",
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config | told))
    torch.save(translators() if tensors is None else tensors, folder / "params.pt")
    return folder


@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_published_files_give_the_formula(
    model: Any, tmp_path: Path, site: str, dtype: torch.dtype
) -> None:
    tensors = OrderedDict((name, tensor.to(dtype)) for name, tensor in translators().items())
    lens = TunedLens.from_pretrained(published(tmp_path / "lens", tensors), model)
    assert lens.weight.dtype == lens.bias.dtype == torch.float32
    ids = tokens()
    result = nl.lens.tuned_lens(model, ids, lens, site, watch=[3, 8], top_k=211)
    assert (result.name, result.site) == ("Tuned lens", site)
    _, cache = model.run_with_cache(ids)
    first = 1 if site == "resid_post" else 0
    for row, layer in enumerate(range(first, 4)):
        stream = cache["resid_pre", layer] if layer < 3 else cache["resid_post", 2]
        if layer < 3:
            weight, bias = tensors[f"{layer}.weight"].float(), tensors[f"{layer}.bias"].float()
            stream = stream + torch.einsum("bpi,oi->bpo", stream, weight) + bias
        probs = model.embed_out(model.gpt_neox.final_layer_norm(stream)).softmax(-1)
        by_id = torch.zeros_like(probs).scatter(-1, result.top[row], result.top_probability[row])
        torch.testing.assert_close(by_id, probs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(result.watched_probability[row], probs[..., [3, 8]])
    assert result.kl[-1].abs().max() < 1e-4


def test_a_lens_without_biases(model: Any, tmp_path: Path) -> None:
    tensors = OrderedDict((n, t) for n, t in translators().items() if n.endswith("weight"))
    lens = TunedLens.from_pretrained(published(tmp_path / "lens", tensors, bias=False), model)
    assert not lens.bias.any()


def test_zero_translators_are_the_logit_lens(model: Any) -> None:
    lens = TunedLens(torch.zeros(3, 64, 64), torch.zeros(3, 64))
    ids = tokens()
    for site in ("resid_pre", "resid_post"):
        tuned = nl.lens.tuned_lens(model, ids, lens, site)
        assert torch.equal(tuned.kl, nl.lens.logit_lens(model, ids, site).kl)


def test_under_hooks_and_with_padding(model: Any) -> None:
    made = translators()
    lens = TunedLens(
        torch.stack([made[f"{n}.weight"] for n in range(3)]),
        torch.stack([made[f"{n}.bias"] for n in range(3)]),
    )
    ids = tokens()
    plain = nl.lens.tuned_lens(model, ids, lens)
    with model.hooks([("blocks.1.hook_resid_pre", lambda value, hook: value * 0)]):
        ablated = nl.lens.tuned_lens(model, ids, lens)
    assert torch.equal(plain.top[0], ablated.top[0])
    expected = model.embed_out(model.gpt_neox.final_layer_norm(lens.bias[1])).softmax(-1)
    torch.testing.assert_close(
        ablated.top_probability[1], expected.topk(5).values.expand_as(ablated.top_probability[1])
    )
    assert not torch.allclose(plain.top_probability[2], ablated.top_probability[2])


@pytest.mark.parametrize("layout", ["safetensors", "published"])
def test_what_is_saved_is_read(model: Any, tmp_path: Path, layout: Any) -> None:
    made = translators()
    lens = TunedLens(
        torch.stack([made[f"{n}.weight"] for n in range(3)]),
        torch.stack([made[f"{n}.bias"] for n in range(3)]),
        identity(model),
        base_model="a model",
        base_revision="step3",
    )
    for _ in range(2):  # over what is there
        lens.save_pretrained(tmp_path / "lens", format=layout)
    again = TunedLens.from_pretrained(tmp_path / "lens", model)
    assert torch.equal(again.weight, lens.weight) and torch.equal(again.bias, lens.bias)
    assert (again.base_model, again.base_revision) == ("a model", "step3")
    if layout == "safetensors":
        assert again.identity == lens.identity
        return
    content = torch.load(tmp_path / "lens" / "params.pt", weights_only=True)
    assert type(content) is OrderedDict and list(content) == list(made)
    assert all(torch.equal(content[name], made[name]) for name in made)
    assert json.loads((tmp_path / "lens" / "config.json").read_text()) == {
        "base_model_name_or_path": "a model",
        "d_model": 64,
        "num_hidden_layers": 3,
        "bias": True,
        "base_model_revision": "step3",
        "unembed_hash": None,
        "lens_type": "linear_tuned_lens",
    }


def test_another_revision_on_purpose_only(model: Any, tmp_path: Path) -> None:
    lens = TunedLens(torch.zeros(3, 64, 64), torch.zeros(3, 64), identity(model))
    lens.save_pretrained(tmp_path / "lens")
    assert nl.lens.tuned_lens(model, tokens(), lens).name == "Tuned lens"
    randomize(model, seed=9)
    with pytest.raises(CheckpointError, match="any_revision"):
        nl.lens.tuned_lens(model, tokens(), lens)
    with pytest.raises(CheckpointError, match="any_revision"):
        TunedLens.from_pretrained(tmp_path / "lens", model)
    lens = TunedLens.from_pretrained(tmp_path / "lens", model, any_revision=True)
    assert nl.lens.tuned_lens(model, tokens(), lens).name == "Tuned lens of other weights"
    other = pair(use_parallel_residual=not model.config.use_parallel_residual)[1]
    with pytest.raises(CheckpointError, match="structure"):
        nl.lens.tuned_lens(other, tokens(), lens)


def test_another_unembedding_is_a_warning_only(model: Any, tmp_path: Path) -> None:
    array = model.embed_out.weight.detach().float().numpy()
    right = hashlib.sha256(str.encode(np.array_str(array, precision=1))).hexdigest()
    TunedLens.from_pretrained(published(tmp_path / "right", unembed_hash=right), model)
    with pytest.warns(NeoxLabWarning, match="another unembedding"):
        TunedLens.from_pretrained(published(tmp_path / "wrong", unembed_hash="0" * 64), model)


class Evil:
    def __reduce__(self) -> Any:
        return print, ("run",)


def changed(**tensors: Tensor) -> OrderedDict[str, Tensor]:
    made = translators()
    for name, tensor in tensors.items():
        made[name.removeprefix("at_").replace("_", ".")] = tensor
    return made


@pytest.mark.parametrize(
    ("tensors", "told", "words"),
    [
        (None, {"d_model": 32}, r"0.weight is .* \[64, 64\]; expected numbers \[32, 32\]"),
        (None, {"num_hidden_layers": 4}, "3.bias, 3.weight are missing"),
        (None, {"num_hidden_layers": 2}, "2.bias, 2.weight are missing or too many"),
        (None, {"num_hidden_layers": "3"}, "num_hidden_layers is '3'"),
        (None, {"lens_type": "another"}, "lens_type is 'another'"),
        (None, {"bias": False}, "0.bias"),
        (translators(3, 32), {"d_model": 32}, "width 32; this model has 3 of width 64"),
        (translators(2), {"num_hidden_layers": 2}, "2 layers of width 64"),
        (changed(at_1_bias=torch.full((64,), torch.nan)), {}, "1.bias holds NaN"),
        (changed(at_1_bias=torch.ones(64).long()), {}, "1.bias is torch.int64"),
        (OrderedDict(evil=Evil()), {}, "would run"),
        ([1, 2], {}, "state dict"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, tensors: Any, told: Any, words: str) -> None:
    folder = published(tmp_path / "lens", tensors, **told)
    with pytest.raises(CheckpointError, match=words):
        TunedLens.from_pretrained(folder, pair()[1])


@pytest.mark.parametrize("missing", ["config.json", "params.pt"])
def test_missing_files_are_named(tmp_path: Path, missing: str) -> None:
    folder = published(tmp_path / "lens")
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=missing):
        TunedLens.from_pretrained(folder, pair()[1])
    with pytest.raises(CheckpointError, match="no directory"):
        TunedLens.from_pretrained(tmp_path / "nowhere", pair()[1])


def test_what_cannot_be_asked(model: Any, tmp_path: Path) -> None:
    lens = TunedLens(torch.zeros(3, 64, 64), torch.zeros(3, 64))
    for site in ("attn_out", "mlp_out", "resid_mid", "nothing"):
        with pytest.raises(InputError, match="between blocks"):
            nl.lens.tuned_lens(model, tokens(), lens, site)
    trained = types.SimpleNamespace(lens=lens)  # as what TunedLens.train returns
    with pytest.raises(InputError, match=r"has it as \.lens"):
        nl.lens.tuned_lens(model, tokens(), trained)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected a TunedLens"):
        nl.lens.tuned_lens(model, tokens(), "lens")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="repo_type"):
        TunedLens.from_pretrained(tmp_path, model, repo_type="spaces")
    with pytest.raises(InputError, match="format"):
        lens.save_pretrained(tmp_path, format="pickle")  # type: ignore[arg-type]


def test_saving_loses_nothing_that_was_there(tmp_path: Path) -> None:
    lens = TunedLens(torch.zeros(3, 64, 64), torch.zeros(3, 64))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gpt_neox"}')
    with pytest.raises(CheckpointError, match="something else than a lens"):
        lens.save_pretrained(tmp_path / "model", format="published")
    assert "gpt_neox" in (tmp_path / "model" / "config.json").read_text()
    lens.save_pretrained(tmp_path / "ours")
    with pytest.raises(CheckpointError, match="another layout"):
        lens.save_pretrained(tmp_path / "ours", format="published")
    (tmp_path / "file").write_text("")
    for layout in ("safetensors", "published"):
        with pytest.raises(CheckpointError, match="Cannot write"):
            lens.save_pretrained(tmp_path / "file" / "below", format=layout)  # type: ignore[arg-type]


FETCH = """
import sys
import torch
import neox_lab as nl
from oracle import pair
for more in ({"revision": "main"}, {"local_files_only": True}):
    lens = nl.lens.TunedLens.from_pretrained(
        "owner/lenses", pair()[1], repo_type="space", subfolder="lens/owner/model", **more)
    print(float(lens.weight.sum()), flush=True)
"""


def test_a_space_of_the_hub(server: SmallHub, tmp_path: Path) -> None:
    folder = published(tmp_path / "lens")
    space = Repository()
    space.commits[MAIN] = {
        f"lens/owner/model/{path.name}": path.read_bytes() for path in folder.iterdir()
    }
    server.repositories["space:owner/lenses"] = space
    told = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    paths = os.pathsep.join(
        [str(Path(nl.__file__).parent.parent), str(Path(__file__).parent.parent)]
    )
    told |= {"NO_PROXY": "127.0.0.1", "PYTHONPATH": paths}
    process = subprocess.run(
        [sys.executable, "-c", FETCH], env=os.environ | told, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    expected = sum(float(t.sum()) for n, t in translators().items() if n.endswith("weight"))
    assert [float(x) for x in process.stdout.split()] == pytest.approx([expected] * 2, rel=1e-4)
    assert (tmp_path / "home" / "hub" / "spaces--owner--lenses").is_dir()


@pytest.mark.parametrize(
    "name",
    ["ln_final.hook_scale", "ln_final.hook_normalized", "unembed.hook_in", "unembed.hook_out"],
)
def test_a_hook_above_the_last_block_is_not_passed_by(model: Any, name: str) -> None:
    """The last row would no longer be what the model says, nor the divergence from it."""
    ids, lens = tokens(), TunedLens(torch.zeros(3, 64, 64), torch.zeros(3, 64))
    asked: list[Callable[[], object]] = [
        lambda: nl.lens.logit_lens(model, ids),
        lambda: nl.lens.tuned_lens(model, ids, lens),
        lambda: lens.evaluate(model, ids),
        lambda: TunedLens.train(model, ids, steps=1, progress=False),
    ]
    for ask in asked:
        with model.hooks([(name, lambda x, hook: 2 * x)], must_fire=False):
            with pytest.raises(HookError, match=f"{name}.*pass by"):
                ask()
        with model.hooks([(name, nl.reads_only(lambda x, hook: None))], must_fire=False):
            ask()


def test_a_pytorch_hook_on_the_whole_is_not_passed_by(model: Any) -> None:
    ids, lens = tokens(), TunedLens(torch.zeros(3, 64, 64), torch.zeros(3, 64))
    for module in (model, model.gpt_neox):
        handle = module.register_forward_hook(lambda module, inputs, output: None)
        with pytest.raises(HookError, match="PyTorch hook"):
            lens.evaluate(model, ids)
        handle.remove()
    lens.evaluate(model, ids)
