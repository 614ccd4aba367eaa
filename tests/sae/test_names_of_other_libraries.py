"""What people type who come from SAELens, sparsify or dictionary_learning is told in our words."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from dictionaries import random_cross_layer, random_dictionary
from oracle import pair, tokens

import neox_lab as nl
from neox_lab import other_dictionary_names as names
from neox_lab import other_names
from neox_lab.errors import InputError, NoSuchNameError

TEXT = "The king went to the city"


@pytest.fixture(scope="module")
def model() -> Any:
    return nl.load()


def told(ask: Any, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        ask()
    return str(caught.value)


@pytest.mark.parametrize("table", names.SAE_ROOM, ids=lambda table: table.library)
def test_of_the_room(table: Any) -> None:
    for name, ours in table.items():
        message = told(lambda name=name: getattr(nl.sae, name), AttributeError)
        assert f"has no attribute {name!r}. " in message
        first = next(each for each in names.SAE_ROOM if name in each)
        assert f"{first.library}'s {name} is {first[name]}" in message
        assert ours
    assert "SAELens's SAE is nl.sae.load(source) here" in told(lambda: nl.SAE, AttributeError)
    message = told(lambda: nl.sae.SAE.from_pretrained("release", "id"), AttributeError)
    assert message.endswith("SAELens's SAE is nl.sae.load(source) here.")
    assert told(lambda: nl.sae.nonsense, AttributeError).endswith("no attribute 'nonsense'.")
    assert not hasattr(nl.sae, "SAE")


def test_of_a_dictionary() -> None:
    for made in (random_dictionary(64), random_cross_layer()):
        for table in names.DICTIONARY:
            for name in table:
                if name in ("W_gate", "from_pretrained") or hasattr(type(made), name):
                    continue
                message = told(lambda made=made, name=name: getattr(made, name), AttributeError)
                assert f"'s {name} is " in message
                assert not hasattr(made, name)
        assert "SAELens" not in told(lambda made=made: made.nonsense, AttributeError)
        for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            for name, tensor in made.state_dict().items():
                assert torch.equal(other.state_dict()[name], tensor)


def test_of_a_model(model: Any) -> None:
    for name, ours in names.WITH_DICTIONARIES.items():
        message = told(lambda name=name: getattr(model, name), AttributeError)
        assert f"SAELens's {name} is {ours}" in message
        assert "compat" not in message


CALLS: dict[str, Any] = {
    "load": lambda model, **more: nl.sae.load(**more),
    "available": lambda model, **more: nl.sae.available(**more),
    "train": lambda model, **more: nl.sae.train(model, **more),
    "spliced": lambda model, **more: model.spliced(random_dictionary(64), **more),
    "run_with_cache": lambda model, **more: model.run_with_cache(TEXT, **more),
    "run_with_hooks": lambda model, **more: model.run_with_hooks(TEXT, **more),
}


@pytest.mark.parametrize("call", CALLS)
def test_of_calls(model: Any, call: str) -> None:
    for table in names.DICTIONARY_ARGUMENTS:
        for name in table:
            message = told(lambda name=name: CALLS[call](model, **{name: None}), TypeError)
            assert message.startswith(f"{call}() has no argument {name!r}. ")
            first = next(each for each in names.DICTIONARY_ARGUMENTS if name in each)
            assert f"{first.library}'s {name} is {first[name]}" in message
    assert "SAELens" not in told(lambda: CALLS[call](model, attention_maskk=1), TypeError)
    assert not model.hook_stack.placements


def test_two_of_them_at_once() -> None:
    message = told(lambda: nl.sae.load(release="pythia", sae_id="x"), TypeError)  # type: ignore[call-arg]
    assert "SAELens's release is the first argument here, a folder or a repository" in message


def test_every_line_of_ours_runs(model: Any, tmp_path: Path) -> None:
    dictionary = random_dictionary(model.config.hidden_size, latents=20)
    dictionary.save_pretrained(tmp_path / "kept")
    given = {
        "nl": nl,
        "model": model,
        "name": None,
        "dictionary": dictionary,
        "source": tmp_path / "kept",
        "site": "blocks.1.hook_resid_post",
        "latents": 8,
        "k": 2,
        "texts": [TEXT] * 4,
        "text": TEXT,
        "x": torch.zeros(2, model.config.hidden_size),
        "dictionaries": list(nl.gym.dictionaries(model).values())[4:5],
        "metric": nl.patching.logit_difference(" king", " city"),
    }
    lines = {ours for table in names.SAE_ROOM + names.DICTIONARY for ours in table.values()}
    lines |= {*names.WITH_DICTIONARIES.values()}
    ran = 0
    for line in sorted(lines):
        if " here" in line or "=," in line:
            continue
        code = line.replace("k=k)", "k=k, steps=1)").replace("text, metric", "text, metric, top=2")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(
                code if "circuit" not in code else "nl.features.circuit",
                given | {"folder": tmp_path / str(ran)},
            )
        ran += 1
    assert ran >= 12


def test_without_a_source() -> None:
    for call in (nl.sae.load, nl.sae.available):
        message = told(call, InputError)
        for part in ("folder or a repository", "nl.sae.available(source)", "nl.gym.dictionaries()"):
            assert part in message


def test_the_gym_s_mapping_says_what_it_has(model: Any) -> None:
    held = nl.gym.dictionaries(model)
    message = told(lambda: held["resid_post"], NoSuchNameError)
    assert message.startswith("No dictionary is called 'resid_post'; there are resid_post_0, ")
    assert "mlp_3" in message
    assert "Did you mean 'resid_post_" in message
    for wrong in (3, None, ("mlp", 1)):
        told(lambda wrong=wrong: held[wrong], KeyError)
    assert held.get("resid_post") is None
    assert "resid_post" not in held
    assert list(pickle.loads(pickle.dumps(held))) == list(copy.copy(held)) == list(held)
    with model.spliced(held):
        pass


def test_what_encode_and_decode_are_given() -> None:
    model, dictionary = pair()[1], random_dictionary(64)
    _, cache = model.run_with_cache(tokens())
    message = told(lambda: dictionary.encode(cache), InputError)  # type: ignore[arg-type]
    assert "encode(cache['blocks.1.hook_mlp_out'])" in message
    assert dictionary.encode(cache["blocks.1.hook_mlp_out"]).count.shape == (3, 12)
    message = told(lambda: dictionary.encode(TEXT), InputError)  # type: ignore[arg-type]
    assert "run_with_cache(text)" in message
    assert "nl.features.active" in message
    z = torch.zeros(2, 4, 16)
    assert "x.flatten(-2)" in told(lambda: dictionary.encode(z), InputError)
    for wrong in (None, 3, [z], torch.zeros(()), torch.zeros(2, 5)):
        assert "[*tokens, 64]" in told(lambda w=wrong: dictionary.encode(w), InputError)
    dense = dictionary.encode(cache["blocks.1.hook_mlp_out"]).dense()
    assert "dense matrix" in told(lambda: dictionary.decode(dense), InputError)  # type: ignore[arg-type]
    codes = dictionary.encode(cache["blocks.1.hook_mlp_out"])
    for wrong in (3, cache, torch.zeros(3, 12, 5)):
        assert "[*tokens, 64]" in told(lambda w=wrong: dictionary.decode(codes, w), InputError)
    message = told(lambda: dictionary.decode(codes, torch.zeros(2, 12, 64)), InputError)
    assert message == "x is of tokens [2, 12], the codes are of [3, 12]."
    for wrong in (None, 3, cache, torch.zeros(2, 5)):
        assert "as encode gives" in told(lambda w=wrong: dictionary.decode(w), InputError)


def test_tables_of_both_kinds_say_whose_names_they_are() -> None:
    assert other_names.MODEL.library == "TransformerLens"
    assert other_names.ours("cfg", other_names.MODEL, names.WITH_DICTIONARIES).endswith(
        "nl.compat.transformer_lens(model) has it by that name."
    )
    assert other_names.ours("nonsense", other_names.MODEL, *names.DICTIONARY) == ""


def test_of_codes_that_are_taken_for_a_matrix(model: Any) -> None:
    with torch.no_grad():
        codes = random_dictionary(64).encode(torch.randn(2, 3, 64))
    for name in names.CODES:
        assert "codes." in told(lambda name=name: getattr(codes, name), AttributeError)
    assert "codes.dense().shape" in told(lambda: codes.shape, AttributeError)
    assert told(lambda: codes.nonsense, AttributeError).endswith("no attribute 'nonsense'.")
    assert torch.equal(copy.deepcopy(codes).values, codes.values)
    assert torch.equal(pickle.loads(pickle.dumps(codes)).indices, codes.indices)
