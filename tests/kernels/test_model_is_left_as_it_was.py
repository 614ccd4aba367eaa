"""Using a model changes nothing about it that anybody can observe, on no kind of processor."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from oracle import SIZES, randomize
from torch import Tensor

import neox_lab as nl
from neox_lab.kernels import decoding_layout as layout
from neox_lab.kernels.decoding_layout import Columns, DecodingCopy, Packed

CLEAN, CORRUPTED = "The king lives in", "The dog lives in"


@pytest.fixture(scope="module")
def small() -> Any:
    """A small model that reads text."""
    tokenizer = nl.load().tokenizer
    sizes = SIZES | {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "hidden_size": 32}
    model = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**sizes)).eval()
    randomize(model, std=0.1)
    model.tokenizer = tokenizer
    return model


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KINDS: list[tuple[type[DecodingCopy] | None, torch.dtype]] = [
    (kind, dtype)
    for kind, dtype in itertools.product((Columns, Packed, None), DTYPES)
    if (kind, dtype) != (Packed, torch.float16)  # oneDNN has no such product
]


@pytest.fixture(params=KINDS, ids=lambda case: f"{getattr(case[0], '__name__', 'plain')}-{case[1]}")
def model(request: pytest.FixtureRequest, small: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model, as on a processor that reads weights fastest in this layout."""
    kind, dtype = request.param
    if kind is Packed and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch comes without oneDNN")
    if kind is Packed and dtype == torch.bfloat16 and not layout._bfloat16_works():
        pytest.skip("this processor or PyTorch has no products with packed bfloat16 weights")
    monkeypatch.setattr(layout, "fastest_layout", lambda dtype: kind)
    monkeypatch.setattr(Columns, "pays_from", 1)
    return copy.deepcopy(small).to(dtype)


def arrangement(tensor: Tensor) -> dict[str, Any]:
    """What can be told of a tensor without its numbers."""
    storage = tensor.untyped_storage()
    return {
        "object": id(tensor),
        "type": type(tensor),
        "dtype": tensor.dtype,
        "device": tensor.device,
        "shape": tensor.shape,
        "strides": tensor.stride(),
        "contiguous": tensor.is_contiguous(),
        "offset": tensor.storage_offset(),
        "address": tensor.data_ptr(),
        "storage": (storage.data_ptr(), storage.nbytes()),
        "inference": tensor.is_inference(),
        "requires_grad": tensor.requires_grad,
        "leaf": tensor.is_leaf,
        "attributes": sorted(vars(tensor)) if hasattr(tensor, "__dict__") else [],
    }


def numbers(tensor: Tensor) -> dict[str, Any]:
    """The rest: what training changes."""
    return {
        "version": None if tensor.is_inference() else tensor._version,
        "gradient": tensor.grad,
        "bits": tensor.detach().clone().contiguous().view(torch.uint8).numpy().tobytes(),
    }


def observed(model: Any, look: Callable[[Tensor], dict[str, Any]]) -> dict[str, Any]:
    """Everything ``look`` sees in parameters and buffers, and the state of the modules."""
    tensors = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
    return {
        "tensors": {name: look(tensor) for name, tensor in tensors.items()},
        "state": list(model.state_dict()),
        "training": [module.training for module in model.modules()],
        "hooks": [
            (len(module._forward_hooks), len(module._backward_hooks)) for module in model.modules()
        ],
        "placements": list(model.hook_stack.placements),
    }


def stream(model: Any) -> None:
    for _ in model.stream(CLEAN, max_new_tokens=3, names_filter="*hook_resid_post"):
        pass


def sweep(model: Any, site: str = "z") -> None:
    metric = nl.patching.logit_difference(" the", " a")
    nl.patching.sweep(model, CLEAN, CORRUPTED, metric, site=site)


def probe(model: Any) -> None:
    texts = [start + text for start in "abcde" for text in (CLEAN, CORRUPTED)]
    nl.probing.probe(model, texts, [0, 1] * 5, sites="resid_post", pos=-1)


CALLS: dict[str, Callable[[Any], Any]] = {
    "forward": lambda m: m(m.to_tokens([CLEAN, CORRUPTED])),
    "generate": lambda m: m.generate(CLEAN, max_new_tokens=3),
    "a batch": lambda m: m.generate([CLEAN, "The"], max_new_tokens=3, do_sample=True),
    "beams": lambda m: m.generate(CLEAN, max_new_tokens=3, num_beams=2),
    "assisted": lambda m: m.generate(CLEAN, max_new_tokens=3, assistant_model=m),
    "without a cache": lambda m: m.generate(CLEAN, max_new_tokens=3, use_cache=False),
    "stream": stream,
    "generate_with_cache": lambda m: m.generate_with_cache(CLEAN, max_new_tokens=3),
    "run_with_cache": lambda m: m.run_with_cache(CLEAN),
    "run_with_hooks": lambda m: m.run_with_hooks(CLEAN, [("*hook_z", lambda z, hook: 0 * z)]),
    "sweep": sweep,
    "sweep of mlp_out": lambda m: sweep(m, "mlp_out"),
    "logit lens": lambda m: nl.lens.logit_lens(m, CLEAN),
    "probe": probe,
    "attribution": lambda m: nl.attribution.direct_logit_attribution(m, CLEAN, " the", " a"),
}
MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "normal": torch.enable_grad,
    "inference": torch.inference_mode,
}


@pytest.mark.parametrize("mode", MODES)
def test_every_call(mode: str, model: Any, tmp_path: Path) -> None:
    before = observed(model, arrangement), observed(model, numbers)
    calls = CALLS | {"save_pretrained": lambda m: m.save_pretrained(tmp_path)}
    for name, call in calls.items():
        with MODES[mode]():
            call(model)
        assert observed(model, arrangement) == before[0], name
    assert observed(model, numbers) == before[1]


@pytest.mark.parametrize("mode", MODES)
def test_what_others_do_with_a_model_after_it_has_generated(
    mode: str, model: Any, tmp_path: Path
) -> None:
    fresh = copy.deepcopy(model)
    ids = model.to_tokens(CLEAN)
    with MODES[mode]():
        model.generate(ids, max_new_tokens=3)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    torch.nn.utils.parameters_to_vector(model.parameters())
    assert all(weight.view(-1).shape[0] == weight.numel() for weight in model.parameters())
    expected = fresh.generate(ids, max_new_tokens=8)  # copies made in one mode serve in the other
    assert model.generate(ids, max_new_tokens=8).tolist() == expected.tolist()
    for one in (model, fresh):
        one(ids, labels=ids).loss.backward()
    gradients = {name: weight.grad for name, weight in fresh.named_parameters()}
    for name, weight in model.named_parameters():
        assert torch.equal(weight.grad, gradients[name]), name


def test_a_step_of_training_after_generating(model: Any) -> None:
    ids = model.to_tokens(CLEAN)
    model.generate(ids, max_new_tokens=3)
    before, fixed = observed(model, numbers)["tensors"], observed(model, arrangement)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model.train()
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    model.eval()
    assert observed(model, arrangement) == fixed
    after = observed(model, numbers)["tensors"]
    assert all(after[name]["version"] > before[name]["version"] for name in after)
    # The copies, if there are any, follow.
    fresh = copy.deepcopy(model)
    expected = fresh.generate(ids, max_new_tokens=8)
    assert model.generate(ids, max_new_tokens=8).tolist() == expected.tolist()


def test_a_model_loaded_in_inference_mode_generates() -> None:
    with torch.inference_mode():
        model = nl.load()
        before = observed(model, arrangement)
        found = model.generate(CLEAN, max_new_tokens=5)
        assert observed(model, arrangement) == before
    assert found.tolist() == nl.load().generate(CLEAN, max_new_tokens=5).tolist()
