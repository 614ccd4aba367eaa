"""A model that is called with a text, and what is said to those who come from TransformerLens."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from oracle import CLASSES, SIZES, randomize
from torch import Tensor

import neox_lab as nl
from neox_lab import other_names
from neox_lab.errors import GenerationError, InputError, TokenizerError

TEXTS = ["The king went to the city", "Mary"]


@pytest.fixture(scope="module")
def built_in() -> Any:
    return nl.load()


def same(one: Any, other: Any) -> None:
    assert list(one) == list(other)
    for name, value in one.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("name", CLASSES)
def test_a_text_may_stand_for_the_ids(built_in: Any, name: str) -> None:
    """As run_with_cache reads it: one text as it is, several padded and masked."""
    sizes = SIZES | {"vocab_size": built_in.config.vocab_size, "pad_token_id": 0}
    model = getattr(nl, name)(nl.GPTNeoXConfig(**sizes)).eval()
    randomize(model)
    with pytest.raises(TokenizerError):
        model("The king")
    model.tokenizer = built_in.tokenizer
    with torch.no_grad():
        for inputs in (TEXTS[0], [TEXTS[0]], TEXTS, tuple(TEXTS)):
            output, _ = model.run_with_cache(inputs, [])
            same(model(inputs), output)
        same(model(model.to_tokens(TEXTS[0])), model(TEXTS[0]))
        prepared = model.prepare_inputs(TEXTS)
        assert 0 in prepared["attention_mask"]
        same(model(TEXTS), model(**prepared))
        same(model(prepared["input_ids"], attention_mask=prepared["attention_mask"]), model(TEXTS))
        ones = torch.ones_like(prepared["attention_mask"])
        same(model(TEXTS, attention_mask=ones), model(prepared["input_ids"], attention_mask=ones))
        assert isinstance(model(TEXTS[0], return_dict=False), tuple)
    for wrong in ("", [], [1, 2], ["a", 3]):
        with pytest.raises(InputError):
            model(wrong)
    assert not model.hook_stack.placements


def test_hooks_and_labels_with_a_text(built_in: Any) -> None:
    ids = built_in.to_tokens(TEXTS[0])
    assert torch.equal(built_in(TEXTS[0], labels=ids).loss, built_in(ids, labels=ids).loss)
    seen: list[str] = []
    with built_in.hooks([("embed", lambda tensor, hook: seen.append(hook.name))]):
        built_in(TEXTS[0])
    assert seen == ["hook_embed"]


def test_compiled_and_copied(built_in: Any) -> None:
    ids = built_in.to_tokens(TEXTS[0])
    with torch.no_grad():
        wanted = built_in(ids).logits
        compiled = torch.compile(built_in, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(ids).logits, wanted)
        for other in (copy.deepcopy(built_in), pickle.loads(pickle.dumps(built_in))):
            assert torch.equal(other(TEXTS[0]).logits, wanted)


def test_a_warning_stands_at_the_line_of_the_user(built_in: Any) -> None:
    ids = built_in.to_tokens(TEXTS[0])
    for call in (lambda: built_in(ids, head_mask=None), lambda: built_in.forward(ids, length=3)):
        with pytest.warns(UserWarning, match="makes nothing of") as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]


# ------------------------------------------------------------------ other names: what is said


def said(table: dict[str, str], name: str) -> str:
    """What a message must hold."""
    assert name in table
    return table[name]


def test_an_output_is_no_tensor(built_in: Any) -> None:
    output = built_in(TEXTS)
    ids = built_in.to_tokens(TEXTS)
    for ask, written in {
        lambda: output[0, -1]: "output.logits[0, -1]",
        lambda: output[:, -1]: "output.logits[:, -1]",
        lambda: output[..., 1:3]: "output.logits[..., 1:3]",
        lambda: output[0, ::2, None]: "output.logits[0, ::2, None]",
    }.items():
        with pytest.raises(TypeError) as caught:
            ask()
        assert written in str(caught.value)
    for ask in (lambda: output.shape, lambda: output.softmax(-1), lambda: output.argmax()):
        with pytest.raises(AttributeError, match=r"output\.logits\."):
            ask()
    with pytest.raises(AttributeError, match="no field 'lgits'"):
        output.lgits  # noqa: B018
    assert not hasattr(output, "shape")
    with pytest.raises(TypeError, match=r"output\.loss|output\.logits"):
        built_in(ids, labels=ids)[0, 1]
    base = nl.load(head="base")
    with pytest.raises(TypeError, match=r"output\.last_hidden_state\[0\, 1\]"):
        base(ids)[0, 1]
    with pytest.raises(TypeError, match=r"output\.start_logits"):
        nl.load(head="question-answering")(ids)[0, 1]
    assert torch.equal(output[0], output.logits)


@pytest.mark.parametrize("name", other_names.MODEL)
def test_what_a_model_has_by_another_name(built_in: Any, name: str) -> None:
    if name in ("embed", "unembed", "ln_final") and hasattr(built_in, name):
        return
    with pytest.raises(AttributeError) as caught:
        getattr(built_in, name)
    message = str(caught.value)
    assert said(other_names.MODEL, name) in message
    assert "nl.compat.transformer_lens(model)" in message
    assert not hasattr(built_in, name)


def test_unknown_attributes_stay_unknown(built_in: Any) -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'nonsense'$"):
        built_in.nonsense  # noqa: B018
    _, cache = built_in.run_with_cache(TEXTS[0], "embed")
    for table, thing in (
        (other_names.CACHE, cache),
        (other_names.CONFIG, built_in.config),
        (other_names.HOOK, built_in.hook_points["hook_embed"]),
        (other_names.BLOCK, built_in.blocks[0]),
        (other_names.PACKAGE, nl),
    ):
        for name in table:
            with pytest.raises(AttributeError) as caught:
                getattr(thing, name)
            assert said(table, name) in str(caught.value)
            assert not hasattr(thing, name)
        with pytest.raises(AttributeError, match="nonsense"):
            thing.nonsense  # noqa: B018
    assert pickle.loads(pickle.dumps(built_in.hook_points["hook_embed"])).name == "hook_embed"


CALLS: dict[str, Any] = {
    "to_tokens": lambda model, **more: model.to_tokens("a", **more),
    "to_str_tokens": lambda model, **more: model.to_str_tokens("a", **more),
    "run_with_cache": lambda model, **more: model.run_with_cache("a", **more),
    "run_with_hooks": lambda model, **more: model.run_with_hooks("a", **more),
    "hooks": lambda model, **more: model.hooks([], **more),
    "forward": lambda model, **more: model("a", **more),
    "load": lambda model, **more: nl.load(**more),
    "generate": lambda model, **more: model.generate("a", max_new_tokens=1, **more),
}
OURS_TOO = {("generate", "tokenizer")}


@pytest.mark.parametrize("call", CALLS)
def test_what_calls_take_by_another_name(built_in: Any, call: str) -> None:
    for name, ours in other_names.ARGUMENTS.items():
        if (call, name) in OURS_TOO:
            continue
        with pytest.raises((TypeError, GenerationError)) as caught:
            CALLS[call](built_in, **{name: None})
        assert ours in str(caught.value), name
        assert "nl.compat.transformer_lens(model)" in str(caught.value)
    with pytest.raises((TypeError, GenerationError)) as caught:
        CALLS[call](built_in, attention_maskk=None)
    assert "TransformerLens" not in str(caught.value)


TABLES = ("MODEL", "BLOCK", "CACHE", "CONFIG", "PACKAGE", "ARGUMENTS")
WORDS = (
    " here",
    "the first argument",
    "methods of",
    ", or ",
    "=,",
    ", which are",
    ", wherever",
    ", whose",
)


@pytest.mark.parametrize("table", TABLES)
def test_every_line_of_ours_runs(built_in: Any, table: str) -> None:
    """What messages give as code can be run as it stands."""
    ids = built_in.to_tokens(TEXTS[0])
    names = {
        "nl": nl,
        "model": built_in,
        "cache": built_in.run_with_cache(TEXTS[0])[1],
        "tokens": ids,
        "text": TEXTS[0],
        "piece": built_in.to_str_tokens(TEXTS[0])[1],
        "token": int(ids[0, 1]),
        "layer": 1,
        "name": "blocks.0.hook_resid_pre",
        "function": lambda *given: given[0].logits.sum() if len(given) == 1 else None,
        "weights": built_in.state_dict(),
        "tokenizer": built_in.tokenizer,
    }
    ran = 0
    for ours in getattr(other_names, table).values():
        if any(word in ours for word in WORDS) or ours.endswith("=") or "from_transformers" in ours:
            continue
        code = ours.replace("nl.load(name)", "nl.load()")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before = built_in.tokenizer.padding_side
            exec(code, dict(names))
            built_in.tokenizer.padding_side = before
        ran += 1
    assert ran >= 3


def test_an_empty_text_in_a_batch_is_refused_as_one_alone_is() -> None:
    """Its row would be padding, and every number of it a number about nothing."""
    model = nl.load()
    for ask in (model, model.run_with_cache, lambda texts: nl.lens.logit_lens(model, texts)):
        with pytest.raises(InputError, match="The text is empty"):
            ask("")
        with pytest.raises(InputError, match=r"Texts \[1, 3\] of this batch are empty"):
            ask(["The man", "", "A cat", ""])


@pytest.mark.parametrize("column", [np.array, lambda texts: pd.Series(texts, index=[7, 3])])
def test_a_column_of_texts_is_read_as_the_list(built_in: Any, column: Any) -> None:
    given, other = column(TEXTS), column(["The king came to the city", "John"])
    model, metric = built_in, nl.patching.logit_difference(" he", " she")
    assert torch.equal(model.to_tokens(given), model.to_tokens(TEXTS))
    assert model.to_str_tokens(given) == model.to_str_tokens(TEXTS)
    assert torch.equal(model(given).logits, model(TEXTS).logits)
    written = (model.generate(texts, max_new_tokens=3, do_sample=False) for texts in (given, TEXTS))
    assert torch.equal(*written)
    swept = [
        nl.patching.sweep(model, clean, corrupted, metric)
        for clean, corrupted in ((given, other), (TEXTS, list(other)))
    ]
    assert torch.equal(swept[0].values, swept[1].values)


def test_a_column_with_an_empty_cell_says_what_is_in_it(built_in: Any) -> None:
    column = pd.Series(["The king", float("nan")], dtype=object)
    metric = nl.patching.logit_difference(" he", " she")
    for ask in (
        built_in,
        lambda texts: built_in.generate(texts, max_new_tokens=1),
        lambda texts: nl.patching.sweep(built_in, texts, texts, metric),
        lambda texts: nl.lens.logit_lens(built_in, texts),
    ):
        with pytest.raises((InputError, GenerationError), match=r"\['The king', nan\]"):
            ask(column)
