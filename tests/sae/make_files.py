"""How the small dictionaries under ``files/`` were made: by the libraries themselves.

Run in an environment with sae-lens 6.54.12, eai-sparsify 1.3.3, dictionary-learning 0.1.0 and
circuit-tracer 0.5.0:

    python tests/sae/make_files.py

and, to see that the libraries load what ``Dictionary.export`` writes, with ``neox_lab`` at hand:

    python tests/sae/make_files.py exports

Beside each dictionary lies ``expected.safetensors`` with ``x``, what the library's own ``encode``
makes of it (``acts``, dense) and what its own ``decode`` makes of that (``out``).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).parent / "files"
D, LATENTS, K = 8, 24, 3


def randomise(module: Any, seed: int) -> None:
    """Large weights, and biases that are not 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
        if "threshold" in name:
            parameter.data = parameter.data.abs()


def inputs(*shape: int) -> Tensor:
    return 2 * torch.randn(*(shape or (6, D)), generator=torch.Generator().manual_seed(0)) + 0.5


def expect(folder: Path, x: Tensor, acts: Tensor, out: Tensor) -> None:
    tensors = {"x": x, "acts": acts.detach(), "out": out.detach()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "expected.safetensors")


def sparsify() -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    kinds = {
        "autoencoder/layers.2": {},
        "group_max/layers.2.attention": {"activation": "groupmax"},
        "transcoder/layers.2.mlp": {"transcode": True},
        "skip/seed1/layers.2.mlp": {"transcode": True, "skip_connection": True},
    }
    for seed, (name, more) in enumerate(kinds.items()):
        config = SparseCoderConfig(expansion_factor=LATENTS // D, k=K, **more)
        coder = SparseCoder(D, config)
        randomise(coder, seed)
        coder.save_to_disk(HERE / "sparsify" / name)
        x = inputs()
        acts, indices, _ = coder.encode(x)
        dense = torch.zeros(len(x), LATENTS).scatter(1, indices, acts)
        out = coder.decode(acts, indices)
        if coder.W_skip is not None:
            out = out + x @ coder.W_skip.mT
        expect(HERE / "sparsify" / name, x, dense, out)


def dictionary_learning() -> None:
    from dictionary_learning import dictionary as kinds
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    suite = "saebench_pythia-160m-deduped/{}_EleutherAI_pythia-160m-deduped_ctx1024_0108"
    folder = suite + "/resid_post_layer_8/trainer_{}"
    made: dict[str, tuple[Any, dict[str, Any]]] = {
        "pythia-70m-deduped/mlp_out_layer1/10_32768": (kinds.AutoEncoder(D, LATENTS), {}),
        "pythia-70m-deduped/embed/10_32768": (kinds.AutoEncoder(D, LATENTS), {}),
        folder.format("StandardTrainerAprilUpdate", 0): (
            kinds.AutoEncoder(D, LATENTS),
            {"trainer_class": "StandardTrainerAprilUpdate", "dict_class": "AutoEncoder"},
        ),
        folder.format("New", 0): (
            kinds.AutoEncoderNew(D, LATENTS),
            {"trainer_class": "StandardTrainerNew", "dict_class": "AutoEncoderNew"},
        ),
        folder.format("GatedSAETrainer", 1): (
            kinds.GatedAutoEncoder(D, LATENTS),
            {"trainer_class": "GatedSAETrainer", "dict_class": "GatedAutoEncoder"},
        ),
        folder.format("JumpReluTrainer", 2): (
            kinds.JumpReluAutoEncoder(D, LATENTS),
            {"trainer_class": "JumpReluTrainer", "target_l0": 40},
        ),
        folder.format("TopKTrainer", 3): (
            AutoEncoderTopK(D, LATENTS, K),
            {"trainer_class": "TopKTrainer", "dict_class": "AutoEncoderTopK", "k": K},
        ),
        folder.format("BatchTopKTrainer", 4): (
            BatchTopKSAE(D, LATENTS, K),
            {"trainer_class": "BatchTopKTrainer", "dict_class": "BatchTopKSAE", "k": K},
        ),
        folder.format("MatryoshkaBatchTopKTrainer", 5): (
            MatryoshkaBatchTopKSAE(D, LATENTS, K, [8, 16]),
            {"trainer_class": "MatryoshkaBatchTopKTrainer", "k": K},
        ),
    }
    for seed, (name, (module, trainer)) in enumerate(made.items()):
        randomise(module, seed)
        if hasattr(module, "k"):
            module.threshold.fill_(0.8)
        place = HERE / "dictionary_learning" / name
        place.mkdir(parents=True, exist_ok=True)
        torch.save(module.state_dict(), place / "ae.pt")
        if trainer:
            config = {"trainer": {**trainer, "layer": 8, "activation_dim": D, "dict_size": LATENTS}}
            config["buffer"] = {"ctx_len": 1024}
            (place / "config.json").write_text(json.dumps(config))
        if type(module) is kinds.AutoEncoder:
            module.normalize_decoder()  # as from_pretrained does
        x = inputs()
        acts = module.encode(x)
        expect(place, x, acts, module.decode(acts))


def sae_lens() -> None:
    import sae_lens as lens

    post = "blocks.2.hook_resid_post"
    meta = {"hook_name": post, "model_name": "pythia-70m", "prepend_bos": True}
    out = {"hook_name": "blocks.2.mlp.hook_in", "hook_name_out": "blocks.2.hook_mlp_out"}
    made: dict[str, tuple[Any, Any, dict[str, Any], dict[str, Any]]] = {
        "standard": (lens.StandardSAE, lens.StandardSAEConfig, {}, {}),
        "standard_not_subtracted": (
            lens.StandardSAE, lens.StandardSAEConfig, {"apply_b_dec_to_input": False}, {},
        ),
        "layer_norm": (
            lens.StandardSAE, lens.StandardSAEConfig, {"normalize_activations": "layer_norm"}, {},
        ),
        "constant_norm": (
            lens.StandardSAE,
            lens.StandardSAEConfig,
            {"normalize_activations": "constant_norm_rescale"},
            {},
        ),
        "hook_z": (
            lens.StandardSAE,
            lens.StandardSAEConfig,
            {"reshape_activations": "hook_z"},
            {"hook_name": "blocks.2.attn.hook_z"},
        ),
        "gated": (lens.GatedSAE, lens.GatedSAEConfig, {}, {}),
        "jumprelu": (lens.JumpReLUSAE, lens.JumpReLUSAEConfig, {}, {}),
        "topk": (lens.TopKSAE, lens.TopKSAEConfig, {"k": K}, {}),
        "topk_rescaled": (
            lens.TopKSAE, lens.TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True}, {},
        ),
        "abstopk": (lens.saes.AbsTopKSAE, lens.saes.AbsTopKSAEConfig, {"k": K}, {}),
        "transcoder": (lens.Transcoder, lens.TranscoderConfig, {"d_out": D}, out),
        "skip_transcoder": (
            lens.SkipTranscoder,
            lens.SkipTranscoderConfig,
            {"d_out": D, "normalize_activations": "layer_norm"},
            out,
        ),
        "jumprelu_transcoder": (
            lens.JumpReLUTranscoder, lens.JumpReLUTranscoderConfig, {"d_out": D}, out,
        ),
    }  # fmt: skip
    for seed, (name, (kind, config, settings, metadata)) in enumerate(made.items()):
        if "transcoder" in name:
            settings = {"apply_b_dec_to_input": False, **settings}
        cfg = config(d_in=D, d_sae=LATENTS, **settings)
        cfg.metadata = type(cfg.metadata)(**{**meta, **metadata})
        sae = kind(cfg)
        randomise(sae, seed)
        sae.save_model(HERE / "sae_lens" / name)
        x = inputs(6, 2, D // 2) if name == "hook_z" else inputs()
        acts = sae.encode(x)
        expect(HERE / "sae_lens" / name, x, acts, sae(x))


def circuit_tracer() -> None:
    from circuit_tracer.transcoder import activation_functions
    from circuit_tracer.transcoder.single_layer_transcoder import (
        SingleLayerTranscoder,
        TranscoderSet,
    )

    kinds: dict[str, Any] = {
        "relu": torch.relu,
        "jumprelu": activation_functions.JumpReLU(torch.rand(LATENTS), 0.1),
        "topk": activation_functions.TopK(K * 6),
    }
    for seed, (name, activation) in enumerate(kinds.items()):
        made = {}
        for layer in range(2):
            made[layer] = SingleLayerTranscoder(
                D, LATENTS, activation, layer, name == "relu", device="cpu", dtype=torch.float32
            )
            randomise(made[layer], 10 * seed + layer)
        place = HERE / "circuit_tracer" / name
        sets = TranscoderSet(made, "mlp.hook_in", "hook_mlp_out", "test")
        sets.to_safetensors(str(place))
        lines = ["model_kind: transcoder_set", 'model_name: "EleutherAI/pythia-70m-deduped"']
        lines += ['feature_input_hook: "mlp.hook_in"', 'feature_output_hook: "hook_mlp_out"']
        lines += ["activation: topk", f"k: {K * 6}"] if name == "topk" else []
        (place / "config.yaml").write_text("\n".join([*lines, ""]))
        x = inputs()
        acts = made[1].encode(x)
        expect(place, x, acts, made[1].decode(acts, x))


def circuit_tracer_cross_layer() -> None:
    from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder

    for seed, (name, activation) in enumerate({"relu": "relu", "jumprelu": "jump_relu"}.items()):
        made = CrossLayerTranscoder(
            3, LATENTS, D, activation, lazy_decoder=False, feature_input_hook="mlp.hook_in",
            device=torch.device("cpu"), dtype=torch.float32,
        )  # fmt: skip
        randomise(made, 100 + seed)
        place = HERE.parent / "cross_layer_files" / name
        made.to_safetensors(str(place))
        lines = ["model_kind: cross_layer_transcoder", 'model_name: "EleutherAI/pythia-70m"']
        lines += ['feature_input_hook: "mlp.hook_in"', 'feature_output_hook: "hook_mlp_out"']
        (place / "config.yaml").write_text("\n".join([*lines, ""]))
        x = inputs(3, 6, D)
        acts = made.encode(x)
        expect(place, x, acts, made.decode(acts.detach()))


def exports() -> None:
    """Every file made above that the layouts can hold, written by us and read by the libraries."""
    import sae_lens as lens
    from safetensors.torch import load_file
    from sparsify import SparseCoder

    from neox_lab.errors import ConfigError
    from neox_lab.sae import load

    for expected in sorted(HERE.rglob("expected.safetensors")):
        name, known = expected.parent.relative_to(HERE).as_posix(), load_file(expected)
        dictionary = load(expected.parent, layer=1 if name.startswith("circuit") else None)
        flat = known["x"].flatten(-2) if known["x"].dim() == 3 else known["x"]
        for layout in ("sae_lens", "sparsify"):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    place = dictionary.export(folder, layout)
                except ConfigError as error:
                    print(f"{name}: not to {layout}: {error}")
                    continue
                if layout == "sae_lens":
                    sae = lens.SAE.load_from_disk(str(place))
                    out = sae(known["x"])
                else:
                    coder = SparseCoder.load_from_disk(place)
                    out = coder(flat, flat).sae_out
            torch.testing.assert_close(
                out.view_as(known["out"]), known["out"], atol=2e-5, rtol=1e-5
            )
            print(f"{name}: {layout} loads it")


if __name__ == "__main__":
    if sys.argv[1:] == ["exports"]:
        exports()
    else:
        for make in (sparsify, dictionary_learning, sae_lens, circuit_tracer):
            make()
        circuit_tracer_cross_layer()
