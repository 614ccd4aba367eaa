"""Every question on a model with adapters answers as on the same model with them merged."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import LM, MATRICES, METRIC, build, close, ids, merged, with_lora
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from small_hub import MAIN, Repository, SmallHub
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import CheckpointError, HookError, InputError
from neox_lab.experiments.detection import copying_scores
from neox_lab.experiments.lens import logit_lens
from neox_lab.experiments.metrics import class_logit, span_logit, tag_logit
from neox_lab.experiments.patching.sites import SITES
from neox_lab.experiments.paths.path_patching import edge_sweep, path_patch
from neox_lab.family.folded import folded

Question = Callable[[Any], Tensor]


def sweep(site: str) -> Question:
    return lambda model: (
        nl.patching.sweep(model, ids(1), ids(0), METRIC, site, progress=False).values
    )


def cached(name: str) -> Question:
    return lambda model: torch.stack(
        [model.run_with_cache(ids())[1][name, layer] for layer in range(3)]
    )


def of_cache(method: str, *arguments: Any, **named: Any) -> Question:
    def question(model: Any) -> Tensor:
        answer = getattr(model.run_with_cache(ids())[1], method)(*arguments, **named)
        assert isinstance(answer, Tensor)
        return answer

    return question


def logit_shares(model: Any) -> Tensor:
    cache = model.run_with_cache(ids())[1]
    stack = cache.get_full_resid_decomposition()
    return cache.logit_attrs(stack, 3, 7).sum(dim=0) + cache.logit_bias(3, 7)


def written_results(model: Any) -> Tensor:
    """Logits of a run in which a hook halves what one head writes."""

    def halve(tensor: Tensor, hook: Any) -> None:
        tensor[:, :, 1] *= 0.5

    return model.run_with_hooks(ids(), [("blocks.1.attn.hook_result", halve)]).logits


def split_inputs(model: Any) -> Tensor:
    """Logits of a run in which two heads read something else."""

    def change(tensor: Tensor, hook: Any) -> None:
        tensor[:, :, 2] *= 0.5

    hooks = [(f"blocks.1.hook_{part}_input", change) for part in "qkv"]
    return model.run_with_hooks(ids(), hooks).logits


def shares(by: str) -> Question:
    def question(model: Any) -> Tensor:
        result = nl.attribution.direct_logit_attribution(model, ids(), METRIC, by=by, top_k=9)
        return torch.cat((result.values.flatten(), torch.tensor([result.total])))

    return question


QUESTIONS: dict[str, Question] = {
    **{site: sweep(site) for site in SITES if site != "resid_mid"},
    "ablate": lambda model: nl.patching.ablate(model, ids(), METRIC, progress=False).values,
    "function of logits": lambda model: (
        nl.patching.sweep(
            model, ids(1), ids(0), lambda logits: logits[:, -1, 3].sum(), "z", progress=False
        ).values
    ),
    "edge_sweep": lambda model: edge_sweep(model, ids(1), ids(0), METRIC, progress=False).values,
    "path_patch": lambda model: (
        path_patch(model, ids(1), ids(0), METRIC, through="mlps", progress=False).values
    ),
    "edges": lambda model: (
        nl.attribution.attribution_patch(model, ids(1), ids(0), METRIC, "edges").values
    ),
    "nodes": lambda model: (
        nl.attribution.attribution_patch(model, ids(1), ids(0), METRIC, "z").values
    ),
    "integrated gradients": lambda model: (
        nl.attribution.integrated_gradients(model, ids(), METRIC, steps=4).values
    ),
    "occlusion": lambda model: nl.attribution.occlusion(model, ids(), METRIC).values,
    "direct by component": shares("component"),
    "direct by neuron": shares("neuron"),
    "hook_result": cached("result"),
    "written hook_result": written_results,
    "split inputs": split_inputs,
    "stack_head_results": of_cache("stack_head_results", apply_ln=True),
    "stack_neuron_results": of_cache("stack_neuron_results", 2),
    "logit shares": logit_shares,
    **{
        name: lambda model, name=name: getattr(model, name)
        for name in ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "b_Q", "b_V", "b_O", "b_out")
    },
    "W_U": lambda model: model.W_U,
    "W_E": lambda model: model.W_E,
    "OV": lambda model: model.OV.AB,
    "folded": lambda model: folded(model).QK.AB,
    "copying scores": copying_scores,
    "lens": lambda model: logit_lens(model, ids()).entropy,
}


@pytest.fixture(scope="module", params=[True, False], ids=["parallel", "sequential"])
def models(request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    """Without adapters, with adapters, and with adapters merged."""
    plain = build(use_parallel_residual=request.param)
    targets = [*MATRICES, "embed_out", "embed_in"]
    adapted = with_lora(build(use_parallel_residual=request.param), targets)
    return plain, adapted, merged(adapted)


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers_are_those_of_merged_weights(models: tuple[Any, Any, Any], name: str) -> None:
    plain, adapted, merged_model = models
    expected = QUESTIONS[name](merged_model)
    close(QUESTIONS[name](adapted), expected)
    if not name.startswith("b_"):
        assert not torch.allclose(QUESTIONS[name](plain), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("GPTNeoXForSequenceClassification", class_logit(0, 1)),
        ("GPTNeoXForTokenClassification", tag_logit(4, 2, 0)),
        ("GPTNeoXForQuestionAnswering", span_logit(1, -2)),
    ],
)
def test_other_heads_too(name: str, metric: Any) -> None:
    head = {
        "GPTNeoXForSequenceClassification": "score",
        "GPTNeoXForQuestionAnswering": "qa_outputs",
    }
    adapted = with_lora(build(name), [*MATRICES, head.get(name, "classifier")])
    plain = merged(adapted)
    for model in (adapted, plain):
        model.config.pad_token_id = 1
    for question in (
        lambda model: nl.patching.sweep(model, ids(1), ids(0), metric, "z", progress=False).values,
        lambda model: nl.attribution.direct_logit_attribution(model, ids(), metric).values,
    ):
        close(question(adapted), question(plain))


KINDS: dict[str, Callable[[Any], Any]] = {
    "DoRA": lambda peft: peft.LoraConfig(r=4, target_modules=MATRICES, use_dora=True),
    "rsLoRA": lambda peft: peft.LoraConfig(r=4, target_modules=MATRICES, use_rslora=True),
    "with biases": lambda peft: peft.LoraConfig(r=4, target_modules=MATRICES, lora_bias=True),
    "a head of its own": lambda peft: peft.LoraConfig(
        r=4, target_modules=MATRICES, modules_to_save=["embed_out"]
    ),
    "IA3": lambda peft: peft.IA3Config(
        target_modules=MATRICES, feedforward_modules=["dense_4h_to_h"]
    ),
    "LoHa": lambda peft: peft.LoHaConfig(r=4, target_modules=MATRICES),
    "OFT": lambda peft: peft.OFTConfig(r=0, oft_block_size=8, target_modules=MATRICES),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_adapters(kind: str) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    wrapped = peft.get_peft_model(build(), KINDS[kind](peft)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    plain = copy.deepcopy(wrapped).merge_and_unload()
    for name in ("z", "edges", "direct by component", "hook_result", "W_Q", "lens"):
        close(QUESTIONS[name](wrapped.get_base_model()), QUESTIONS[name](plain), 1e-4)
    close(QUESTIONS["z"](wrapped), QUESTIONS["z"](plain), 1e-4)


def test_an_adapter_can_be_turned_off() -> None:
    plain, adapted = build(), with_lora(build())
    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(False)
    for name in ("z", "W_O", "hook_result", "edges"):
        close(QUESTIONS[name](adapted), QUESTIONS[name](plain))


def test_half_precision() -> None:
    adapted = with_lora(build()).bfloat16()
    close(adapted.W_O.float(), merged(adapted).W_O.float(), 0.02)
    merged_values = QUESTIONS["z"](merged(adapted).float())
    close(QUESTIONS["z"](adapted).float(), merged_values.float(), 0.1)


def test_results_made_later_are_those_of_the_run() -> None:
    adapted = with_lora(build())
    cache = adapted.run_with_cache(ids())[1]
    cache["result", 0]
    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(False)
    with pytest.raises(HookError, match="changed since this run"):
        cache["result", 0]


def test_gradients_reach_an_adapter_through_the_weights_it_makes() -> None:
    adapted = with_lora(build())
    adapted.W_O.square().sum().backward()
    learning = [p for n, p in adapted.named_parameters() if "attention.dense.lora_" in n]
    assert learning and all(p.grad is not None and p.grad.any() for p in learning)


def test_dropout_of_an_adapter_is_refused_in_training() -> None:
    adapted = with_lora(build(), lora_dropout=0.5).train()
    state = torch.get_rng_state()
    with pytest.raises(HookError, match="dropout"):
        _ = adapted.W_O
    with pytest.raises(InputError, match="dropout"):
        QUESTIONS["z"](adapted)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_are_found_without_drawing_numbers() -> None:
    adapted = with_lora(build())
    state = torch.get_rng_state()
    for name in ("W_Q", "z", "hook_result"):
        QUESTIONS[name](adapted)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_of_a_plain_model_are_views() -> None:
    model = build()
    block = model.gpt_neox.layers[1]
    assert model.blocks[1].W_O.data_ptr() == block.attention.dense.weight.data_ptr()
    assert model.blocks[1].W_Q.data_ptr() == block.attention.query_key_value.weight.data_ptr()
    assert model.W_E is model.gpt_neox.embed_in.weight


def test_saving_refuses_names_that_would_not_load(tmp_path: Path) -> None:
    adapted = with_lora(build())
    with pytest.raises(CheckpointError, match="merge_and_unload"):
        adapted.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    plain = merged(adapted)
    plain.save_pretrained(tmp_path / "model")
    again = getattr(nl, LM).from_pretrained(tmp_path / "model")
    close(again(ids()).logits, adapted(ids()).logits)
    adapted.save_pretrained(tmp_path / "model", state_dict=plain.state_dict())
    again = getattr(nl, LM).from_pretrained(tmp_path / "model")
    close(again(ids()).logits, adapted(ids()).logits)


FROM_THE_HUB = """
import neox_lab as nl
from neox_lab.errors import CheckpointError
model = nl.load()
try:
    model.load_adapter("lab/adapter")
    print("loaded", len(model.active_adapters()))
except CheckpointError as error:
    print("refused", error)
"""


@pytest.mark.parametrize("header", ["", "../../../../escaped"])
def test_an_adapter_from_the_hub_passes_its_checks(
    tmp_path: Path, server: SmallHub, header: str
) -> None:
    made = nl.load()
    made.add_adapter(LoraConfig(r=2, target_modules=["dense"]))
    made.save_pretrained(tmp_path / "adapter")
    repository = Repository()
    repository.commits[MAIN] = {
        path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()
    }
    repository.headers = {"ETag": f'"{header}"', "X_Linked_Etag": f'"{header}"'} if header else {}
    server.repositories["lab/adapter"] = repository
    home = tmp_path / "a" / "b" / "c" / "d" / "home"
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    told = subprocess.run(
        [sys.executable, "-c", FROM_THE_HUB], env=environment, capture_output=True, text=True
    )
    assert told.stdout.startswith("refused" if header else "loaded 1"), told
    assert not list(tmp_path.rglob("escaped*"))
