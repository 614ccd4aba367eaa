"""Cross-layer transcoders: two libraries' files, and the formula written out densely."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import CheckpointError, ConfigError, HookError, HookNameError, InputError
from neox_lab.sae import CrossLayerTranscoder, CrossLayerWeights, SitesCheck, available, load
from neox_lab.sae.activations import ReLU
from neox_lab.sae.sample_texts import TEXTS
from neox_lab.sae.shared_top_k import SharedTopK

FILES = Path(__file__).parent / "cross_layer_files"
L, D, F = 3, 8, 40
TRAIN = {"num_features": F, "num_layers": L, "d_model": D, "model_name": "pythia-70m"}


def randn(seed: int, *shape: int) -> Tensor:
    return 0.5 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(tokens: int = 7) -> list[Tensor]:
    return [2 * randn(900 + i, 2, tokens, D) + 0.3 for i in range(L)]


def close(ours: list[Tensor], theirs: Any) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["relu", "jumprelu"])
@pytest.mark.parametrize("dense", [False, True])
def test_circuit_tracer_s_own_files(
    name: str, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neox_lab.sae.bags.SPARSE", 8 if dense else 0)
    known = load_file(FILES / name / "expected.safetensors")
    clt = load(FILES / name)
    assert isinstance(clt, CrossLayerTranscoder)
    assert (clt.layers, clt.latents, clt.d_in, clt.d_out) == (3, 24, 8, 8)
    assert clt.sites_in == tuple(f"blocks.{i}.mlp.hook_in" for i in range(3))
    assert clt.sites_out == tuple(f"blocks.{i}.hook_mlp_out" for i in range(3))
    assert clt.kind == {"relu": "ReLU", "jumprelu": "JumpReLU"}[name]
    codes = clt.encode(list(known["x"]))
    close([each.dense() for each in codes], known["acts"])
    close(clt.decode(codes), known["out"])
    by_name = clt(dict(zip(clt.sites_in, known["x"], strict=True)))
    by_number = clt(dict(enumerate(known["x"])))
    close(by_name, known["out"])
    close(by_number, known["out"])
    assert (codes[0].dense() != 0).float().mean() < 0.7


def test_a_skip_path_of_circuit_tracer_is_not_transposed(tmp_path: Path) -> None:
    shutil.copytree(FILES / "relu", tmp_path / "set")
    skips = [randn(i, D, D) for i in range(3)]
    for i, skip in enumerate(skips):
        path = tmp_path / "set" / f"W_enc_{i}.safetensors"
        save_file({**load_file(path), f"W_skip_{i}": skip}, path)
    clt, known = load(tmp_path / "set"), load_file(FILES / "relu" / "expected.safetensors")
    x = list(known["x"])
    close(clt(x), [out + each @ w for out, each, w in zip(known["out"], x, skips, strict=True)])
    with pytest.raises(InputError, match="Give decode the inputs"):
        clt.decode(clt.encode(x))


def test_a_missing_file_and_wrong_shapes_are_named(tmp_path: Path) -> None:
    shutil.copytree(FILES / "jumprelu", tmp_path / "a")
    assert list(available(tmp_path)["subfolder"]) == ["a"]
    decoder = tmp_path / "a" / "W_dec_1.safetensors"
    wrong = load_file(decoder)["W_dec_1"][:, :1].contiguous()
    save_file({"W_dec_1": wrong}, decoder)
    with pytest.raises(CheckpointError, match=r"is \[24, 1, 8\]; expected \[latent, 2, d\]"):
        load(tmp_path)
    decoder.unlink()
    with pytest.raises(CheckpointError, match=r"of 3 layers and lacks W_dec_1.safetensors"):
        load(tmp_path)
    shutil.copytree(FILES / "relu", tmp_path / "b")
    path = tmp_path / "b" / "W_enc_2.safetensors"
    held = load_file(path)
    save_file({**held, "W_enc_2": held["W_enc_2"][:, :5].contiguous()}, path)
    with pytest.raises(CheckpointError, match=r"W_enc\[2\] is \[5, 24\]; expected \[8, 24\]"):
        load(tmp_path / "b")
    save_file({**held, "W_enc_2": held["W_enc_2"].int()}, path)
    with pytest.raises(CheckpointError, match=r"W_enc\[2\] is torch.int32"):
        load(tmp_path / "b")
    save_file({**held, "threshold_2": torch.zeros(24)}, path)
    with pytest.raises(CheckpointError, match="layers are ReLU, ReLU, JumpReLU"):
        load(tmp_path / "b")
    shutil.copytree(FILES / "jumprelu", tmp_path / "c")
    third = tmp_path / "c" / "W_enc_2.safetensors"
    jump = load_file(third)
    for bad in (torch.full((24,), torch.nan), torch.zeros(5)):
        save_file({**jump, "threshold_2": bad}, third)
        with pytest.raises(CheckpointError, match="threshold of layer 2 is"):
            load(tmp_path / "c")
    absurd = tmp_path / "b" / f"W_enc_{10**15}.safetensors"
    absurd.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"lacks W_enc_3.safetensors"):
        load(tmp_path / "b")
    absurd.unlink()
    held["b_enc_2"][3] = torch.nan
    save_file(held, path)
    with pytest.raises(CheckpointError, match=r"b_enc\[2\] holds NaN"):
        load(tmp_path / "b")
    with pytest.raises(InputError, match="leave site and layer out"):
        load(FILES / "relu", layer=1)


# crosslayer-coding


def coding(folder: Path, *, statistics: bool = False, modules: bool = True, **config: Any) -> Any:
    """A folder as crosslayer-coding writes it; the tensors, without names of modules."""
    settings = {**TRAIN, "activation_fn": "relu", "decoder_tying": "none", **config}
    tying, held = settings["decoder_tying"], {}
    names = [f"encoders.{i}" for i in range(L)]
    pairs = [(i, j) for i in range(L) for j in range(i, L)]
    decoders = [f"{i}->{j}" for i, j in pairs] if tying == "none" else [str(i) for i in range(L)]
    for seed, name in enumerate(names):
        held |= {f"{name}.weight": randn(seed, F, D), f"{name}.bias_param": randn(50 + seed, F)}
    for seed, name in enumerate(decoders):
        held[f"decoders.{name}.weight"] = randn(100 + seed, D, F)
        held[f"decoders.{name}.bias_param"] = randn(150 + seed, D)
        if settings.get("skip_connection"):
            held[f"skip_weights.{name}"] = randn(200 + seed, D, D)
    for i in range(L):
        if settings.get("enable_feature_offset"):
            held[f"feature_offset.{i}"] = randn(300 + i, F)
        if settings.get("enable_feature_scale"):
            held[f"feature_scale.{i}"] = randn(320 + i, F)
    if settings["activation_fn"] == "jumprelu":
        held["log_threshold"] = randn(400, L, F)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(settings))
    module = {"encoders": "encoder_module.", "log_threshold": "theta_manager."}
    stored = {
        module.get(name.partition(".")[0], "decoder_module.") * modules + name: tensor
        for name, tensor in held.items()
    }
    save_file(stored, folder / "clt.safetensors")
    if statistics:
        made = {
            str(i): {
                kind: {"mean": randn(500 + i + shift, D).tolist(),
                       "std": (randn(600 + i + shift, D).abs() + 0.2).tolist()}
                for kind, shift in (("inputs", 0), ("targets", 20))
            }
            for i in range(L)
        }  # fmt: skip
        (folder.parent / "norm_stats.json").write_text(json.dumps(made))
        return held, made
    return held, None


def formula(held: dict[str, Tensor], x: list[Tensor], acts: list[Tensor], tying: str) -> Any:
    """What the library's decoder computes, densely."""
    outputs = []
    for j in range(L):
        total = torch.zeros(D)
        summed = torch.zeros(F)
        for i in range(j + 1):
            a = acts[i]
            active = (a != 0).to(a.dtype)
            if f"feature_offset.{j}" in held:
                a = a + held[f"feature_offset.{j}"] * active
            if f"feature_scale.{j}" in held:
                a = a * held[f"feature_scale.{j}"]
            summed = summed + a
            name = f"{i}->{j}" if tying == "none" else str(i)
            if tying != "per_target":
                total = total + a @ held[f"decoders.{name}.weight"].T
                total = total + held[f"decoders.{name}.bias_param"]
            skip = held.get(f"skip_weights.{f'{i}->{j}' if tying == 'none' else j}")
            if skip is not None:
                total = total + x[i] @ skip.T
        if tying == "per_target":
            total = total + summed @ held[f"decoders.{j}.weight"].T
            total = total + held[f"decoders.{j}.bias_param"]
        outputs.append(total)
    return outputs


def pre(held: dict[str, Tensor], x: list[Tensor]) -> list[Tensor]:
    return [
        each @ held[f"encoders.{i}.weight"].T + held[f"encoders.{i}.bias_param"]
        for i, each in enumerate(x)
    ]


@pytest.mark.parametrize("tying", ["none", "per_source", "per_target"])
@pytest.mark.parametrize("more", [False, True])
def test_crosslayer_coding_s_decoders(tmp_path: Path, tying: str, more: bool) -> None:
    switches = ("skip_connection", "enable_feature_offset", "enable_feature_scale")
    config = dict.fromkeys(switches, more and tying != "none") | {"skip_connection": more}
    held, _ = coding(
        tmp_path, activation_fn="jumprelu", decoder_tying=tying, modules=not more, **config
    )
    clt, x = load(tmp_path), inputs()
    threshold = held["log_threshold"].exp()
    acts = [p * (p >= threshold[i]) for i, p in enumerate(pre(held, x))]
    codes = clt.encode(x)
    close([each.dense() for each in codes], acts)
    close(clt.decode(codes, x), formula(held, x, acts, tying))
    assert clt.kind == "JumpReLU"
    if not more:
        close(clt.decode(codes), formula(held, x, acts, tying))
    assert len(clt.decoders) == (6 if tying == "none" else 3)  # tied ones are held once


@pytest.mark.parametrize("method", ["mean_std", "auto", "sqrt_d_model"])
def test_statistics_of_the_data_set(tmp_path: Path, method: str) -> None:
    given = method != "sqrt_d_model"
    held, made = coding(
        tmp_path / "one", statistics=given, normalization_method=method, skip_connection=True
    )
    clt, x = load(tmp_path), inputs()

    def of(kind: str, what: str) -> list[Tensor]:
        if given:
            extra = 1e-6 if what == "std" else 0
            return [torch.tensor(made[str(i)][kind][what]) + extra for i in range(L)]
        return [torch.tensor(1 / math.sqrt(D) if what == "std" else 0.0)] * L

    read = [(x[i] - of("inputs", "mean")[i]) / of("inputs", "std")[i] for i in range(L)]
    acts = [p.relu() for p in pre(held, read)]
    out = formula(held, read, acts, "none")
    out = [o * of("targets", "std")[i] + of("targets", "mean")[i] for i, o in enumerate(out)]
    for ours, theirs in zip(clt(x), out, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(clt(x)[0], formula(held, x, acts, "none")[0], atol=0.1)


def test_statistics_that_are_missing_are_named(tmp_path: Path) -> None:
    coding(tmp_path / "a", normalization_method="mean_std")
    with pytest.raises(CheckpointError, match=r"norm_stats.json of the data set, which is not"):
        load(tmp_path)
    (tmp_path / "norm_stats.json").write_text(json.dumps({"0": {"inputs": {"mean": [0.0]}}}))
    with pytest.raises(CheckpointError, match="no mean and std of layer 0, inputs"):
        load(tmp_path)
    coding(tmp_path / "a", statistics=True, normalization_method="mean_std")
    stored = json.loads((tmp_path / "norm_stats.json").read_text())
    for value, message in ((10**400, "no mean and std"), (-1.0, "positive"), ("x", "no mean")):
        first = {**stored["0"]["inputs"], "std": [value] * D}
        changed = {**stored, "0": {**stored["0"], "inputs": first}}
        (tmp_path / "norm_stats.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path)
    stored["1"]["targets"]["std"].pop()
    (tmp_path / "norm_stats.json").write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match="layer 1, targets, have 8 and 7 numbers; expected 8"):
        load(tmp_path)


@pytest.mark.parametrize("mode", ["global", "per_layer"])
@pytest.mark.parametrize("k", [3, 0.07])
@pytest.mark.parametrize("step", [2**24, 1])
def test_top_k_across_layers(
    tmp_path: Path, mode: str, k: float, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The k largest of a token by rank, of all layers together or each."""
    monkeypatch.setattr("neox_lab.sae.shared_top_k._DENSE", step)
    held, _ = coding(tmp_path, activation_fn="topk", topk_k=k, topk_mode=mode)
    clt, x = load(tmp_path), inputs()
    flat = [p.flatten(0, 1) for p in pre(held, x)]
    groups = [torch.cat(flat, dim=1)] if mode == "global" else flat
    acts: list[Tensor] = []
    for group in groups:
        rank = (group - group.mean(0)) / (group.std(0) + 1e-6)
        count = math.ceil(k * group.shape[1]) if k < 1 else int(k)
        mask = torch.zeros_like(group).scatter(1, rank.topk(count).indices, 1)
        acts += (group * mask).split(F, dim=1)
    codes = clt.encode(x)
    close([each.dense().flatten(0, 1) for each in codes], acts)
    assert clt.kind == "TopK"
    with pytest.raises(InputError, match="at least two tokens"):
        clt.encode([each[0, :1] for each in x])


@pytest.mark.parametrize("mode", ["global", "per_layer"])
@pytest.mark.parametrize("step", [2**24, 1])
def test_batch_top_k_across_layers(
    tmp_path: Path, mode: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neox_lab.sae.shared_top_k._DENSE", step)
    held, _ = coding(tmp_path, activation_fn="batchtopk", batchtopk_k=4, topk_mode=mode)
    clt, x = load(tmp_path), inputs()
    flat = [p.flatten(0, 1) for p in pre(held, x)]
    acts: list[Tensor] = []
    for group in [torch.cat(flat, dim=1)] if mode == "global" else flat:
        rank = ((group - group.mean(0)) / (group.std(0) + 1e-6)).flatten()
        chosen = rank.topk(4 * len(group)).indices
        mask = torch.zeros_like(rank).scatter(0, chosen, 1).view_as(group)
        acts += (group * mask).split(F, dim=1)
    codes = clt.encode(x)
    close([each.dense().flatten(0, 1) for each in codes], acts)
    active = sum(int(each.count.sum()) for each in codes)
    assert active == 4 * 14 * (1 if mode == "global" else L)


@pytest.mark.parametrize(
    ("read", "written", "sites"),
    [
        ({}, {}, ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")),
        (
            {"mlp_input_template": "gpt_neox.layers.{}.mlp.input"},
            {"mlp_output_template": "gpt_neox.layers.{}.mlp.output"},
            ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"),
        ),
        (
            {"mlp_input_template": "gpt_neox.layers.{}.post_attention_layernorm"},
            {"tl_output_template": "blocks.{}.hook_mlp_out"},
            ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"),
        ),
        (
            {"tl_input_template": "blocks.{}.ln2.hook_normalized"},
            {"mlp_output_template": "gpt_neox.layers.{}.mlp"},
            ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"),
        ),
    ],
)
def test_sites_by_templates(tmp_path: Path, read: Any, written: Any, sites: Any) -> None:
    coding(tmp_path, **read, **written)
    clt = load(tmp_path)
    assert (clt.sites_in[1], clt.sites_out[1]) == sites
    coding(tmp_path, mlp_input_template="transformer.h.{}.ln_2.input")
    with pytest.raises(CheckpointError, match="is no place that GPT-NeoX networks have"):
        load(tmp_path)


def test_crosslayer_coding_s_refusals(tmp_path: Path) -> None:
    for config, message in (
        ({"activation_fn": "softmax"}, "activation_fn 'softmax' is not known"),
        ({"decoder_tying": "all"}, "decoder_tying 'all' is not known"),
        ({"normalization_method": "z"}, "normalization_method 'z' is not known"),
        ({"activation_fn": "topk"}, "topk_k"),
        ({"d_model": 9}, r"an encoder is \[40, 8\]; cfg.json says 40 features and d_model 9"),
        ({"num_layers": 4}, "lacks encoders.3.weight"),
        ({"num_layers": 10**9}, "lacks encoders.999999999.weight"),
        ({"activation_fn": []}, "activation_fn"),
        ({"decoder_tying": {}}, "decoder_tying"),
        ({"normalization_method": []}, "normalization_method"),
        ({"mlp_input_template": "{}{x}"}, "is no place"),
        ({"tl_output_template": 3}, "is no name with one"),
        ({"skip_connection": True, "num_layers": 2}, "and holds decoders.0->2.bias_param"),
    ):
        place = tmp_path / "x"
        coding(place)
        stored = json.loads((place / "cfg.json").read_text())
        (place / "cfg.json").write_text(json.dumps({**stored, **config}))
        with pytest.raises(CheckpointError, match=message):
            load(place)
    (tmp_path / "x" / "clt.safetensors").unlink()
    coded = {**TRAIN, "activation_fn": "relu"}
    (tmp_path / "x" / "cfg.json").write_text(json.dumps(coded))
    with pytest.raises(CheckpointError, match="no file of weights"):
        load(tmp_path / "x")


def test_a_training_s_pickle(tmp_path: Path) -> None:
    held, _ = coding(tmp_path)
    stored = load_file(tmp_path / "clt.safetensors")
    (tmp_path / "clt.safetensors").unlink()
    for name in ("clt_checkpoint_100.pt", "clt_checkpoint_latest.pt"):
        torch.save(stored, tmp_path / name)
    torch.save({"epoch": 1}, tmp_path / "activation_store_checkpoint_100.pt")
    clt, x = load(tmp_path), inputs()
    close([each.dense() for each in clt.encode(x)], [p.relu() for p in pre(held, x)])
    (tmp_path / "clt_checkpoint_latest.pt").rename(tmp_path / "clt_checkpoint_200.pt")
    with pytest.raises(CheckpointError, match="2 dictionaries fit"):
        load(tmp_path)
    assert load(tmp_path, subfolder="clt_checkpoint_200.pt").layers == L


# against a model


def of_bottleneck(model: Any) -> CrossLayerTranscoder:
    """Features that write just the mean: FVU is 1; layers can be given real ones."""
    layers, d = model.config.num_hidden_layers, model.config.hidden_size
    zeros = {(i, j): torch.zeros(2 * d, d) for i in range(layers) for j in range(i, layers)}
    for i in range(layers):  # pairs of features that pass every dimension of the input on
        zeros[i, i] = torch.cat([torch.eye(d), -torch.eye(d)])
    weights = CrossLayerWeights(
        [torch.cat([torch.eye(d), -torch.eye(d)], dim=1)] * layers,
        [torch.zeros(2 * d)] * layers,
        zeros,
        [torch.zeros(d)] * layers,
    )
    sites = [f"blocks.{i}.hook_mlp_out" for i in range(layers)]
    return CrossLayerTranscoder(
        weights, [ReLU()] * layers, sites_in=sites, sites_out=sites, kind="ReLU"
    )


def test_check_against_a_model() -> None:
    model = nl.load()
    clt = of_bottleneck(model)
    found = clt.check(model, list(TEXTS[:2]))
    assert isinstance(found, SitesCheck)
    frame, layers = found.frame, model.config.num_hidden_layers
    assert list(frame["site_out"]) == [f"blocks.{i}.hook_mlp_out" for i in range(layers)]
    assert (frame["fvu"] < 1e-6).all()
    assert (frame["fvu_shuffled"] > 1).all()
    assert (frame["l0"] - model.config.hidden_size).abs().max() < 1
    assert "not sparse" in found.warnings[0]
    assert "not sparse" in repr(found)
    assert "<svg" in found.view().to_html() or "<div" in found.view().to_html()
    with torch.no_grad():
        clt.decoders[clt.decoder_of[0, 1]].fill_(1.0)
    worse = clt.check(model, list(TEXTS[:2])).frame
    assert worse["fvu"][1] > 1  # what layer 0 writes to layer 1 counts there
    assert worse["fvu"][0] < 1e-6


def test_what_does_not_fit_a_model_is_refused() -> None:
    model = nl.load()
    clt = load(FILES / "relu")
    with pytest.raises(HookError, match="width 8"):
        clt.check(model, "text")
    with pytest.raises(HookError, match="width 8"):
        load(FILES / "relu", model=model)
    good = of_bottleneck(model)
    good.sites_in = ("blocks.99.mlp.hook_in", *good.sites_in[1:])
    with pytest.raises(HookNameError, match=r"blocks.99"):
        good.check(model, "text")
    with pytest.raises(Exception, match="CrossLayerTranscoder") as caught:
        with model.spliced(clt):  # type: ignore[arg-type]
            pass
    assert isinstance(caught.value, nl.errors.NeoxLabError)


def test_inputs_that_are_refused() -> None:
    clt, x = load(FILES / "relu"), [torch.randn(5, 8) for _ in range(3)]
    for bad, message in (
        (x[:2], "3 sites; got 2"),
        ({0: x[0], 1: x[1]}, "blocks.2.mlp.hook_in are missing"),
        ([*x[:2], x[2][:, :7]], r"\[5, 7\]; expected floating-point \[\*tokens, 8\]"),
        ([*x[:2], x[2][:4]], "expected one"),
        ("abc", "expected tensors by layer"),
        ([*x[:2], None], "missing"),
    ):
        with pytest.raises(InputError, match=message):
            clt.encode(bad)  # type: ignore[arg-type]
    codes = clt.encode(x)
    with pytest.raises(InputError, match="those of 3 layers"):
        clt.decode(codes[:2])
    with pytest.raises(InputError, match="do not write to layer 0"):
        clt.W_dec(1, 0)
    with pytest.raises(ConfigError, match="features of a token"):
        SharedTopK(0.5, batch=True)


def test_moves_and_gradients() -> None:
    """In float64 all of it is, thresholds too; gradients reach every decoder."""
    clt = load(FILES / "jumprelu", dtype=torch.float64)
    x = [torch.randn(5, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    sum(out.square().sum() for out in clt(x)).backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in x)
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in clt.decoders)
    assert {each.dtype for each in clt.state_dict().values()} == {torch.float64}
