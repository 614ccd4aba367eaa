"""torch.export, torch.compile and ONNX of both libraries' models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets", reason="needs what `pip install -e '.[interop]'` brings")

import numpy as np
import torch
from oracle import same
from torch import Tensor, nn
from torch.export import Dim
from upstream.library import BASE, CAUSAL, SEQUENCE, TOKEN, WITH_LOSS, Library, ids

from interop.surroundings import model_of

EXPORTED = (BASE, *WITH_LOSS)


def named(output: Any) -> dict[str, Tensor]:
    """The tensors of an output, by name."""
    return {name: value for name, value in output.items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", EXPORTED)
def test_an_exported_model_gives_the_same_outputs(
    library: Library, kind: str, masked: bool
) -> None:
    model, inputs = model_of(library, kind, use_cache=False), ids(2, 6)
    arguments = {"attention_mask": torch.ones_like(inputs)} if masked else {}
    expected = named(model(inputs, **arguments))
    program = torch.export.export(model, (inputs,), arguments, strict=False)
    got = named(program.module()(inputs, **arguments))
    assert list(got) == list(expected)
    for name, value in expected.items():
        same(got[name], value)
    for name, value in named(model(inputs, **arguments)).items():  # the model is as it was
        same(value, expected[name])


def test_an_exported_model_takes_other_sizes(library: Library) -> None:
    model, inputs = model_of(library, use_cache=False), ids(2, 6)
    mask = torch.ones_like(inputs)
    sizes = {0: Dim.AUTO, 1: Dim.AUTO}
    program = torch.export.export(
        model,
        (),
        {"input_ids": inputs, "attention_mask": mask},
        dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
        strict=False,
    )
    longer = ids(3, 11, seed=1)
    mask = torch.ones_like(longer)
    mask[0, :4] = 0
    got = program.module()(input_ids=longer, attention_mask=mask).logits
    expected = model(longer, attention_mask=mask).logits
    same(got[mask.bool()], expected[mask.bool()])


def test_an_exported_model_can_be_saved(library: Library, tmp_path: Path) -> None:
    model, inputs = model_of(library, use_cache=False), ids(2, 6)
    program = torch.export.export(model, (inputs,), {"return_dict": False}, strict=False)
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    same(again(inputs, return_dict=False)[0], model(inputs).logits)


@pytest.mark.parametrize("kind", [CAUSAL, SEQUENCE])
def test_a_compiled_model_gives_the_same_outputs(library: Library, kind: str) -> None:
    torch._dynamo.reset()
    model = model_of(library, kind, use_cache=False)
    compiled = torch.compile(model, backend="aot_eager")
    for batch, pos in ((2, 6), (2, 6), (3, 9)):
        inputs = ids(batch, pos)
        mask = torch.ones_like(inputs)
        expected = model(inputs, attention_mask=mask).logits
        same(compiled(inputs, attention_mask=mask).logits, expected)


def test_a_compiled_model_can_be_trained(library: Library) -> None:
    torch._dynamo.reset()
    plain, model, inputs = model_of(library), model_of(library), ids(2, 6)
    plain(inputs, labels=inputs, use_cache=False).loss.backward()
    compiled = torch.compile(model, backend="aot_eager")
    compiled(inputs, labels=inputs, use_cache=False).loss.backward()
    for got, expected in zip(model.parameters(), plain.parameters(), strict=True):
        same(got.grad, expected.grad)


class Logits(nn.Module):
    """What an ONNX file is made of: ids and a mask in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


@pytest.mark.parametrize("kind", [CAUSAL, TOKEN])
def test_onnx(library: Library, kind: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, inputs = model_of(library, kind, use_cache=False), ids(2, 6)
    mask = torch.ones_like(inputs)
    sizes = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    path = tmp_path / "model.onnx"
    program = torch.onnx.export(
        Logits(model).eval(),
        (inputs, mask),
        dynamo=True,
        dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
    )
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    longer = ids(3, 9, seed=1)
    mask = torch.ones_like(longer)
    mask[1, :3] = 0
    feeds = {"input_ids": longer.numpy(), "attention_mask": mask.numpy()}
    (got,) = session.run(None, feeds)
    expected = model(longer, attention_mask=mask).logits.detach().numpy()
    kept = mask.bool().numpy()
    np.testing.assert_allclose(got[kept], expected[kept], rtol=1e-4, atol=1e-5)
