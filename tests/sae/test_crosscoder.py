"""Crosscoders: the layout of science-of-finetuning's fork, and the formula written out densely."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import CheckpointError, ConfigError, HookError, InputError, NeoxLabError
from neox_lab.sae import Crosscoder, load
from neox_lab.sae.activations import ReLU
from neox_lab.sae.sample_texts import TEXTS

N, D, F = 2, 8, 40
IDS = {"CROSSCODER": 1, "SAE": 2, "MIXED": 3, "NONE": 4, "DECOUPLED": 5}


def randn(seed: int, *shape: int) -> Tensor:
    return 0.5 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tensors(n: int = N, read: int | None = None, **more: Tensor) -> dict[str, Tensor]:
    return {
        "encoder.weight": randn(1, n if read is None else read, D, F),
        "encoder.bias": randn(2, F),
        "decoder.weight": randn(3, n, F, D) * randn(9, F, 1).abs(),
        "decoder.bias": randn(4, n, D),
        **more,
    }


def write(folder: Path, held: dict[str, Tensor], **config: Any) -> Path:
    """As ``save_pretrained`` of the library's mixin does."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"activation_dim": D, "dict_size": F, "num_layers": N, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(held, folder / "model.safetensors")
    return folder


def inputs(n: int = N) -> list[Tensor]:
    return [2 * randn(50 + i, 3, 5, D) + 0.2 for i in range(n)]


def pre(held: dict[str, Tensor], x: list[Tensor]) -> Tensor:
    stacked = torch.stack(x, dim=-2)
    return torch.einsum("bpld,ldf->bpf", stacked, held["encoder.weight"]) + held["encoder.bias"]


def decoded(held: dict[str, Tensor], acts: Tensor) -> list[Tensor]:
    out = torch.einsum("bpf,lfd->bpld", acts, held["decoder.weight"]) + held["decoder.bias"]
    return list(out.unbind(-2))


def norm(held: dict[str, Tensor], name: str) -> Tensor:
    weight = held["decoder.weight"]
    alone, together = weight.norm(dim=2).sum(0), weight.norm(dim=(0, 2))
    return {
        "CROSSCODER": alone,
        "SAE": together,
        "MIXED": together + 0.1 * alone,
        "NONE": torch.ones(F),
    }[name]


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("sparse", [0, 8])
def test_relu(tmp_path: Path, sparse: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neox_lab.sae.bags.SPARSE", sparse)
    held, x = tensors(), inputs()
    coder = load(write(tmp_path, held), site=("resid_post", 3))
    assert isinstance(coder, Crosscoder)
    assert (coder.n, coder.d, coder.latents, coder.kind) == (N, D, F, "ReLU")
    assert coder.sites == ("blocks.3.hook_resid_post",) * N
    codes = coder.encode(x)
    close(codes.dense(), pre(held, x).relu())
    for ours, theirs in zip(coder.decode(codes, x), decoded(held, codes.dense()), strict=True):
        close(ours, theirs)
    close(coder.W_enc, held["encoder.weight"])
    close(coder.W_dec, held["decoder.weight"])


@pytest.mark.parametrize("name", ["CROSSCODER", "SAE", "MIXED", "NONE"])
@pytest.mark.parametrize("by_id", [True, False])
def test_penalties(tmp_path: Path, name: str, by_id: bool) -> None:
    """L1 weights of codes, by the number in the file or the name in the configuration."""
    held = tensors()
    if by_id:
        held["code_normalization_id"] = torch.tensor(IDS[name])
    config = {} if by_id else {"code_normalization": name}
    coder, x = load(write(tmp_path, held, **config), site=("resid_post", 0)), inputs()
    close(coder.penalty_weights, norm(held, name))
    codes = coder.encode(x)
    close(coder.penalty(codes), (pre(held, x).relu() * norm(held, name)).sum(-1))


def test_relative_norms() -> None:
    rows = randn(1, 2, F, D)
    rows[0, 0], rows[1, 1], rows[:, 2] = 0, 0, 1
    coder = Crosscoder(
        randn(2, 2, D, F), torch.zeros(F), rows, torch.zeros(2, D), ReLU(),
        sites=["hook_embed"] * 2, kind="ReLU",
    )  # fmt: skip
    shares = coder.specificity
    assert shares[1, :3].tolist() == [1, 0, 0.5]
    close(shares[1], rows[1].norm(dim=1) / (rows[0].norm(dim=1) + rows[1].norm(dim=1)))


@pytest.mark.parametrize("name", ["CROSSCODER", "SAE"])
@pytest.mark.parametrize("threshold", [1.5, 0.0, -1.0])
def test_batch_top_k(tmp_path: Path, name: str, threshold: float) -> None:
    """The threshold is one of activations times their penalty, not of activations."""
    held = tensors()
    held["decoder.weight"][:, 4] = 0  # never above a threshold
    more = {"k": torch.tensor(4, dtype=torch.int), "threshold": torch.tensor(threshold)}
    stored = {**held, **more, "code_normalization_id": torch.tensor(IDS[name])}
    coder, x = load(write(tmp_path, stored), site=("resid_post", 0)), inputs()
    acts, weights = pre(held, x).relu(), norm(held, name)
    if threshold >= 0:
        expected = acts * (acts * weights > threshold)
    else:
        best = (acts * weights).topk(4, dim=-1).indices
        expected = acts * torch.zeros_like(acts).scatter(-1, best, 1)
        assert "each token has its 4 largest" in coder.sources["threshold"]
    codes = coder.encode(x)
    close(codes.dense(), expected)
    assert codes.values.isfinite().all()
    for ours, theirs in zip(coder.decode(codes), decoded(held, expected), strict=True):
        close(ours, theirs)
    assert (coder.kind, coder.expected_l0) == ("BatchTopK", 4)


@pytest.mark.parametrize("stored_scale", [True, False])
def test_normalised_inputs(tmp_path: Path, stored_scale: bool) -> None:
    mean, std = randn(20, N, D), randn(21, N, D).abs() + 0.1
    rms = torch.tensor(3.0)
    scale = rms / (std.square().sum() + 1e-8).sqrt()
    held = tensors(activation_mean=mean, activation_std=std, target_rms=rms)
    if stored_scale:
        held["activation_global_scale"] = scale
    coder, x = load(write(tmp_path, held), site=("resid_post", 0)), inputs()
    read = [(each - mean[i]) * scale for i, each in enumerate(x)]
    acts = pre(held, read).relu()
    close(coder.encode(x).dense(), acts)
    for i, (ours, theirs) in enumerate(zip(coder(x), decoded(held, acts), strict=True)):
        torch.testing.assert_close(ours, theirs / scale + mean[i], rtol=1e-5, atol=1e-4)
    none = {**held, "activation_mean": mean * torch.nan, "activation_std": std * torch.nan}
    close(load(write(tmp_path, none), site=("resid_post", 0)).encode(x).dense(),
          pre(held, x).relu())  # fmt: skip
    del held["activation_std"]
    with pytest.raises(CheckpointError, match="without the other of mean and std"):
        load(write(tmp_path, held), site=("resid_post", 0))


def test_a_training_s_folder_and_bags(tmp_path: Path) -> None:
    """``ae.pt`` in a folder that names the site; decoders as embedding bags."""
    held, x = tensors(), inputs()
    place = tmp_path / "run" / "resid_out_layer1"
    place.mkdir(parents=True)
    bags = {name: tensor for name, tensor in held.items() if name != "decoder.weight"}
    bags |= {f"decoder.layers.{i}.weight": held["decoder.weight"][i] for i in range(N)}
    bags["code_normalization_id"] = torch.tensor(2)
    torch.save(bags, place / "ae.pt")
    coder = load(tmp_path)
    assert coder.sites == ("blocks.1.hook_resid_post",) * N
    close(coder.encode(x).dense(), pre(held, x).relu())
    close(coder.penalty_weights, norm(held, "SAE"))
    for ours, theirs in zip(coder(x), decoded(held, pre(held, x).relu()), strict=True):
        close(ours, theirs)


def test_an_encoder_that_reads_some(tmp_path: Path) -> None:
    held, x = tensors(3, read=2), inputs(3)
    place = write(tmp_path, held, num_layers=3, encoder_layers=[2, 0])
    coder = load(place, site=("resid_post", 0))
    close(coder.encode(x).dense(), pre(held, [x[2], x[0]]).relu())
    with pytest.raises(CheckpointError, match="reads 2 and the decoder writes 3"):
        load(write(tmp_path, held), site=("resid_post", 0))


def test_refusals(tmp_path: Path) -> None:
    held = tensors()
    site = {"site": ("resid_post", 0)}
    with pytest.raises(CheckpointError, match="give site="):
        load(write(tmp_path, held))
    for more, message in (
        ({"code_normalization_id": torch.tensor(5)}, "DECOUPLED"),
        ({"code_normalization_id": torch.tensor(9)}, "code_normalization 9 is not known"),
        ({"other": torch.zeros(1)}, "holds other"),
        ({"decoder.bias": torch.zeros(N, D + 1)}, r"b_dec is \[2, 9\]"),
        ({"encoder.bias": torch.full((F,), torch.nan)}, "b_enc holds NaN"),
        ({"decoder.weight": torch.zeros(N, F, D, 1)}, "must be"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load(write(tmp_path, {**held, **more}), **site)
    for config, message in (
        ({"code_normalization": []}, "code_normalization"),
        ({"code_normalization": "MIXED", "code_normalization_alpha_cc": "x"}, "alpha_cc"),
        ({"encoder_layers": {}}, "encoder_layers is"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load(write(tmp_path, held, **config), **site)
    with pytest.raises(CheckpointError, match="expected floating-point"):
        load(write(tmp_path, {**held, "decoder.weight": torch.ones(N, F, D).int()}), **site)
    del held["decoder.weight"]
    with pytest.raises(CheckpointError, match=r"lacks decoder.weight"):
        load(write(tmp_path, held), **site)


def test_inputs_that_are_refused(tmp_path: Path) -> None:
    coder, x = load(write(tmp_path, tensors()), site=("resid_post", 0)), inputs()
    for bad in (x[:1], x[0], [x[0], x[1][:, :2]], [x[0], x[1][..., :3]], "ab", [x[0], None]):
        with pytest.raises(InputError, match=r"expected 2 tensors \[\*tokens, 8\]"):
            coder.encode(bad)  # type: ignore[arg-type]
    model = nl.load()
    with pytest.raises(HookError, match="width 8"):
        coder.check([model, model], "text")
    with pytest.raises(InputError, match="give 2 models, or set"):
        coder.check(model, "text")
    with pytest.raises(InputError, match="3 models; expected 2"):
        coder.check([model] * 3, "text")
    coder.sites = ("blocks.0.hook_resid_post",)
    with pytest.raises(ConfigError, match="expected 2 hook points"):
        coder.check([model, model], "text")
    with pytest.raises(NeoxLabError, match="Crosscoder"), model.spliced(coder):  # type: ignore[arg-type]
        pass


def test_check_over_layers_and_models() -> None:
    """Features that pass one of two activations on: one is rebuilt, the other not."""
    model = nl.load()
    d = model.config.hidden_size
    identity = torch.cat([torch.eye(d), -torch.eye(d)])
    rows = torch.stack([identity, torch.zeros(2 * d, d)])
    coder = Crosscoder(
        torch.stack([identity.T, torch.zeros(d, 2 * d)]),
        torch.zeros(2 * d), rows, torch.zeros(2, d), ReLU(),
        sites=["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"], kind="ReLU",
    )  # fmt: skip
    frame = coder.check(model, list(TEXTS[:2])).frame
    assert list(frame["site_out"]) == list(coder.sites)
    assert frame["fvu"][0] < 1e-6 < 0.9 < frame["fvu"][1]
    assert frame["fvu_shuffled"][0] > 1
    other = nl.load()
    with torch.no_grad():
        other.gpt_neox.layers[1].mlp.dense_4h_to_h.weight.zero_()
        other.gpt_neox.layers[1].mlp.dense_4h_to_h.bias.zero_()
        coder.b_dec[1].fill_(0.0)
    both = coder.check([model, other], list(TEXTS[:2]))
    assert both.frame["fvu"][0] < 1e-6
    assert not both.frame["fvu"][1] < 1  # nothing varies there
    assert len(both.frame) == 2
    assert both.warnings
    assert (coder.specificity[0] == 1).all()
