"""One meaning for every config.json: against transformers 5, against version 4's rule, and back."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.gpt_neox import modeling_gpt_neox

from neox_lab.config import ACTIVATIONS, GENERATION_PARAMETERS, GPTNeoXConfig
from neox_lab.errors import CheckpointError, ConfigError
from neox_lab.hub import HubOptions
from neox_lab.model.rotary import RotaryTable

Values = dict[str, Any]

# What is known of published files (specification, table 1.4, and section 7.1 for the sizes).
GPT_NEOX_20B: Values = {  # form E: two dropout names that nothing reads, no use_parallel_residual
    "architectures": ["GPTNeoXForCausalLM"],
    "attention_probs_dropout_prob": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu_fast",
    "hidden_dropout_prob": 0,
    "hidden_size": 6144,
    "initializer_range": 0.02,
    "intermediate_size": 24576,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 64,
    "num_hidden_layers": 44,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 50432,
}
PYTHIA_70M: Values = {  # form A
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "torch_dtype": "float16",
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
REDPAJAMA_3B: Values = {  # form A, rotating the whole head, sequential residual
    **PYTHIA_70M,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rotary_pct": 1.0,
    "use_parallel_residual": False,
    "vocab_size": 50432,
}
RINNA_BILINGUAL_4B_8K: Values = {  # form B with linear scaling
    **PYTHIA_70M,
    "hidden_size": 2816,
    "intermediate_size": 11264,
    "num_attention_heads": 22,
    "num_hidden_layers": 36,
    "rope_scaling": {"type": "linear", "factor": 4.0},
    "rotary_pct": 1.0,
    "use_parallel_residual": False,
    "vocab_size": 65536,
}
FORM_C: Values = {  # a 4.45 re-save: everything twice
    **PYTHIA_70M,
    "attention_bias": True,
    "partial_rotary_factor": 0.25,
    "rope_scaling": None,
    "rope_theta": 10000,
}
YARN: Values = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
LLAMA3: Values = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
FORM_C_YARN: Values = {**FORM_C, "max_position_embeddings": 8192, "rope_scaling": YARN}
FORM_D: Values = {
    "architectures": ["GPTNeoXForCausalLM"],
    "dtype": "float16",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "rope_parameters": {
        "factor": 2.0,
        "partial_rotary_factor": 0.5,
        "rope_theta": 20000.0,
        "rope_type": "dynamic",
    },
    "vocab_size": 50304,
}
FORM_D_SHORT: Values = {**FORM_D, "rope_parameters": {"rope_type": "default"}}
FILES: dict[str, Values] = {
    "E gpt-neox-20b": GPT_NEOX_20B,
    "A pythia-70m": PYTHIA_70M,
    "A redpajama-3b": REDPAJAMA_3B,
    "B null": {**PYTHIA_70M, "rope_scaling": None},
    "B rinna-bilingual-4b-8k": RINNA_BILINGUAL_4B_8K,
    "B dynamic": {**PYTHIA_70M, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "C": FORM_C,
    "C yarn": FORM_C_YARN,
    "C yarn of unnamed length": {
        **FORM_C,
        "max_position_embeddings": 4096,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
    },
    "C llama3": {**FORM_C, "rope_scaling": LLAMA3},
    "D dynamic": FORM_D,
    "D without base and fraction": FORM_D_SHORT,
    "empty": {},
}
every_file = pytest.mark.parametrize("values", FILES.values(), ids=FILES.keys())


def meaning_in_transformers_5(values: Values) -> Values:
    """The rope_parameters of the installed transformers, without its leftover old spelling."""
    config = transformers.GPTNeoXConfig.from_dict(copy.deepcopy(values))
    rope = dict(config.rope_parameters or {})
    rope.pop("type", None)
    return rope


def meaning_in_transformers_4(values: Values) -> Values:
    """The same from the keys that version 4 reads, by its rule and with its strictness."""
    scaling = dict(values.get("rope_scaling") or {"rope_type": "default"})
    if scaling.get("type") in ("linear", "dynamic"):
        # 4.33 to 4.42 raise for anything but these two keys, and for a factor that is an int.
        assert set(scaling) <= {"type", "factor", "original_max_position_embeddings"}
        assert isinstance(scaling["factor"], float)
    kind = scaling.pop("rope_type", None) or scaling.pop("type")
    return {
        "rope_type": kind,
        "rope_theta": values.get("rotary_emb_base", 10000),
        "partial_rotary_factor": values.get("rotary_pct", 0.25),
        **scaling,
    }


def saved(config: Any, folder: Path) -> Values:
    config.save_pretrained(folder)
    return dict(json.loads((folder / "config.json").read_text()))


@every_file
def test_every_generation_means_what_transformers_says(values: Values) -> None:
    before = copy.deepcopy(values)
    ours = GPTNeoXConfig.from_dict(values)
    assert values == before  # the caller's dict is the caller's
    theirs = transformers.GPTNeoXConfig.from_dict(copy.deepcopy(values))
    assert ours.rope_parameters == meaning_in_transformers_5(values)
    for name, value in theirs.to_dict().items():
        if name not in ("rope_parameters", "transformers_version", "_name_or_path", "dtype"):
            assert getattr(ours, name, value) == value, name
    assert ours.dtype == theirs.dtype
    assert ours.rotary_ndims == int(ours.head_size * ours.rope_parameters["partial_rotary_factor"])


@every_file
def test_what_we_save_reads_the_same_in_version_4_and_5(values: Values, tmp_path: Path) -> None:
    ours = GPTNeoXConfig.from_dict(values)
    written = saved(ours, tmp_path)
    assert meaning_in_transformers_5(written) == ours.rope_parameters
    assert meaning_in_transformers_4(written) == ours.rope_parameters
    theirs = transformers.GPTNeoXConfig.from_pretrained(tmp_path)
    for name in ("vocab_size", "hidden_act", "eos_token_id", "use_parallel_residual", "dtype"):
        assert getattr(theirs, name) == getattr(ours, name)
    assert written.get("dtype") == written.get("torch_dtype")
    assert GPTNeoXConfig.from_pretrained(tmp_path) == ours


@every_file
def test_what_transformers_saves_reads_the_same_here(values: Values, tmp_path: Path) -> None:
    ours = GPTNeoXConfig.from_dict(values)
    transformers.GPTNeoXConfig.from_dict(copy.deepcopy(values)).save_pretrained(tmp_path / "theirs")
    reread = GPTNeoXConfig.from_pretrained(tmp_path / "theirs")
    # Ours, read and saved by transformers, comes back too.
    ours.save_pretrained(tmp_path / "ours")
    through = transformers.GPTNeoXConfig.from_pretrained(tmp_path / "ours")
    through.save_pretrained(tmp_path / "through")
    for config in (reread, GPTNeoXConfig.from_pretrained(tmp_path / "through")):
        assert config.rope_parameters == ours.rope_parameters
        assert config.dtype == ours.dtype
        assert config.hidden_size == ours.hidden_size


def test_published_models() -> None:
    neox = GPTNeoXConfig.from_dict(GPT_NEOX_20B)
    assert (neox.head_size, neox.rotary_ndims, neox.dtype) == (96, 24, torch.float16)
    assert neox.use_parallel_residual
    assert (neox.attention_dropout, neox.hidden_dropout) == (0.0, 0.0)
    assert neox.attention_probs_dropout_prob == 0  # kept, though nothing reads it
    assert neox.to_dict()["hidden_dropout_prob"] == 0
    assert GPTNeoXConfig.from_dict(PYTHIA_70M).rotary_ndims == 16
    assert GPTNeoXConfig.from_dict(REDPAJAMA_3B).rotary_ndims == 80
    rinna = GPTNeoXConfig.from_dict(RINNA_BILINGUAL_4B_8K)
    assert rinna.rope_scaling == {"type": "linear", "factor": 4.0}
    assert rinna.rope_parameters["rope_type"] == "linear"
    assert rinna.rotary_ndims == 128


# --- one truth -------------------------------------------------------------------------------


def test_the_spellings_are_views_of_one_truth() -> None:
    config = GPTNeoXConfig()
    config.rotary_pct = 0.5
    config.rotary_emb_base = 500
    assert config.rope_parameters == {
        "rope_type": "default",
        "rope_theta": 500,
        "partial_rotary_factor": 0.5,
    }
    assert config.rope_scaling is None
    config.rope_scaling = {"type": "linear", "factor": 2}
    assert config.rope_parameters["rope_type"] == "linear"
    assert (config.rotary_pct, config.rotary_emb_base) == (0.5, 500)  # not named, so kept
    config.rope_parameters = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 7000.0}
    assert (config.rotary_pct, config.rotary_emb_base) == (0.5, 7000.0)
    assert config.rope_scaling == {"type": "dynamic", "factor": 3.0}
    config.rope_scaling = None
    assert config.rope_parameters["rope_type"] == "default"
    config.rope_parameters["rope_theta"] = 800.0  # in place
    assert config.rotary_emb_base == config.rope_theta == 800.0


def test_top_level_rope_theta_and_partial_rotary_factor_are_honoured() -> None:
    config = GPTNeoXConfig(rope_theta=5000.0, partial_rotary_factor=0.5)
    assert (config.rotary_emb_base, config.rotary_pct) == (5000.0, 0.5)
    scaled = GPTNeoXConfig(rope_theta=5000.0, rope_scaling={"type": "linear", "factor": 2.0})
    assert scaled.rope_parameters["rope_theta"] == 5000.0


@pytest.mark.parametrize(
    "values",
    [
        {"rotary_pct": 0.25, "rope_parameters": {"partial_rotary_factor": 1.0}},
        {"rotary_pct": 0.25, "partial_rotary_factor": 0.5},
        {"rotary_emb_base": 10000, "rope_theta": 500},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": YARN},
        {"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 2.0}},
        {"dtype": "float16", "torch_dtype": "float32"},
    ],
)
def test_contradictions_are_refused_and_name_both_sides(values: Values) -> None:
    for make in (lambda: GPTNeoXConfig(**values), lambda: GPTNeoXConfig.from_dict(values)):
        with pytest.raises(ConfigError, match="contradicts") as caught:
            make()
        spellings = [name for name in values if name in str(caught.value)]
        assert len(spellings) == len(values)


def test_redundant_spellings_that_agree_are_accepted() -> None:
    config = GPTNeoXConfig(
        rotary_pct=0.5,
        partial_rotary_factor=0.5,
        rope_theta=10000,
        rope_scaling={"type": "linear", "rope_type": "linear", "factor": 4},
        rope_parameters={"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5},
        dtype=torch.float16,
        torch_dtype="torch.float16",
    )
    assert config.rotary_pct == 0.5
    assert config.dtype == config.torch_dtype == torch.float16


def test_the_callers_dicts_are_neither_changed_nor_kept() -> None:
    scaling = {"type": "linear", "factor": 4.0}
    labels = {0: "no", 1: "yes"}
    note = [1]
    config = GPTNeoXConfig(rope_scaling=scaling, id2label=labels, note=note)
    assert scaling == {"type": "linear", "factor": 4.0}
    note.append(2)
    assert config.note == [1]
    config.to_dict()["note"].append(3)
    assert config.note == [1]
    config.rope_parameters["factor"] = 8.0
    config.id2label[0] = "never"
    scaling["factor"] = 2.0
    assert (config.rope_parameters["factor"], labels[0]) == (8.0, "no")


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"rope_type": "linar", "factor": 2.0}, "'linear'"),
        ({"rope_type": "proportional"}, "rope_type='proportional'; expected one of"),
        ({"rope_type": "linear"}, "needs 'factor'"),
        ({"factor": 2.0}, "name a rope_type"),
        ({"rope_type": "linear", "factor": 0.5}, "at least 1"),
        ({"rope_type": "linear", "factor": "2"}, "at least 1"),
        ({"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 2 / 96}, "at least 4"),
        ({"rope_type": "yarn"}, "needs 'factor'"),
        ({**YARN, "beta_fsat": 3}, "'beta_fast'"),
        ({**YARN, "truncate": 1}, "True or False"),
        ({**LLAMA3, "low_freq_factor": 4.0}, "must exceed"),
        ({key: LLAMA3[key] for key in ("rope_type", "factor")}, "needs 'low_freq_factor'"),
        ({"rope_type": "longrope", "long_factor": [1.0] * 12}, "needs 'short_factor'"),
        ({"rope_type": "longrope", "long_factor": [1.0] * 12, "short_factor": [1.0] * 11}, "12"),
        ({"rope_type": "longrope", "long_factor": [0.0], "short_factor": [1.0]}, "numbers above 0"),
        (
            {
                "rope_type": "longrope",
                "long_factor": [1.0] * 12,
                "short_factor": [1.0] * 12,
                "original_max_position_embeddings": 1,
            },
            "attention_factor",
        ),
        ({"rope_theta": 0.0}, "number above 1"),
        ({"rope_type": ["linear"]}, r"rope_type=\['linear'\]; expected one of"),
        ("linear", "='linear'; expected a dict or None"),
    ],
)
def test_rope_parameters_are_checked_when_made_and_when_set(rope: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GPTNeoXConfig(rope_parameters=rope)
    config = GPTNeoXConfig(rotary_pct=0.5 if rope == "linear" else 0.25)
    before = config.to_dict()
    for name in ("rope_parameters", "rope_scaling"):
        with pytest.raises(ConfigError, match=words):
            setattr(config, name, rope)
    assert config.to_dict() == before


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_size": 100, "num_attention_heads": 3}, "divisible"),
        ({"hidden_size": 0}, "hidden_size=0; expected a whole number above 0"),
        ({"hidden_size": 512.0}, r"hidden_size=512\.0; expected a whole number above 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"vocab_size": True}, "vocab_size"),
        ({"attention_dropout": 1.5}, "from 0 to 1"),
        ({"hidden_dropout": -0.1}, "from 0 to 1"),
        ({"classifier_dropout": float("nan")}, "from 0 to 1"),
        ({"hidden_act": "geluu"}, "'gelu'"),
        ({"rotary_pct": 1.25}, "rotary_pct"),
        ({"hidden_size": 15, "num_attention_heads": 3, "rotary_pct": 1.0}, "turned in pairs"),
        ({"is_encoder_decoder": True}, "GPT-NeoX is a decoder"),
        ({"attn_implementation": "flash_attention_2"}, "expected one of sdpa, eager"),
        ({"use_cache": 1}, "True or False"),
        ({"eos_token_id": [1, "2"]}, "eos_token_id"),
        ({"problem_type": "regresion"}, "'regression'"),
        ({"problem_type": "single_label_classification", "num_labels": 1}, "at least 2"),
        ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, "num_labels=3"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 1, "b": 0}}, "contradict"),
        ({"id2label": {1: "a", 2: "b"}}, "0, 1, 2"),
        ({"id2label": {0: "a", 1: "a"}}, "0, 1, 2"),
        ({"id2label": {"zero": "a"}}, "whole numbers"),
        ({"id2label": {0.0: "a", 1.5: "b"}}, "whole numbers"),
        ({"label2id": {"a": 0, "b": True}}, "whole numbers"),
        ({"label2id": {"a": float("inf")}}, "whole numbers"),
        ({"num_labels": 10**8}, "from 1 to"),
        ({"num_labels": 0}, "num_labels"),
        ({"dtype": "float17"}, "'float16'"),
        ({"torch_dtype": "int8"}, "floating-point"),
        ({"dtype": 16}, "floating-point"),
        ({"hiden_size": 512}, "'hidden_size'"),
        ({"num_hidden_layer": 2}, "'num_hidden_layers'"),
        ({"head_size": 64}, "computes"),
    ],
)
def test_wrong_values_are_refused_in_plain_words(values: Values, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GPTNeoXConfig(**values)
    with pytest.raises(ValueError, match=words):  # as other libraries' users catch it
        GPTNeoXConfig().update(values)


@pytest.mark.parametrize(
    "model_type", ["gpt_neox_japanese", "gpt_neo", "gptj", "gpt2", "llama", "mamba", None]
)
def test_other_architectures_are_refused_by_name(model_type: str | None) -> None:
    with pytest.raises(ConfigError, match=f"model_type {model_type!r}"):
        GPTNeoXConfig.from_dict({**PYTHIA_70M, "model_type": model_type})


def test_setting_one_attribute_checks_it_and_leaves_relations_for_later(tmp_path: Path) -> None:
    config = GPTNeoXConfig()
    with pytest.raises(ConfigError, match="hidden_act"):
        config.hidden_act = "gelo"
    with pytest.raises(ConfigError, match="'hidden_size'"):
        config.hiden_size = 512
    config.hidden_size = 500  # between two assignments sizes may disagree
    with pytest.raises(ConfigError, match="divisible"):
        _ = config.head_size
    assert "500" in repr(config)
    with pytest.raises(ConfigError, match="divisible"):
        config.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
    config.num_attention_heads = 50
    config.rotary_pct = 0.8
    assert (config.head_size, config.rotary_ndims) == (10, 8)


def test_update_sets_all_or_nothing() -> None:
    config = GPTNeoXConfig()
    with pytest.raises(ConfigError, match="divisible"):
        config.update({"vocab_size": 100, "hidden_size": 500})
    assert config == GPTNeoXConfig()
    config.update({"hidden_size": 500, "num_attention_heads": 50, "rotary_pct": 0.8})
    assert config.rotary_ndims == 8


def test_validate_finds_what_was_changed_in_place() -> None:
    config = GPTNeoXConfig(rope_scaling={"type": "linear", "factor": 2.0})
    config.rope_parameters["rope_type"] = "liner"
    with pytest.raises(ConfigError, match="'linear'"):
        config.validate()


def test_rope_parameters_without_use_are_kept_and_told_of_once(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "mscale": 0.5, "kept_for_a_test": 1}
    for _ in range(2):
        config = GPTNeoXConfig(rope_parameters=rope)
    told = [record.getMessage() for record in caplog.records]
    assert [text for text in told if "kept_for_a_test" in text] == [
        "rope type 'linear' does not use 'kept_for_a_test', which is kept."
    ]
    config.save_pretrained(tmp_path)
    again = GPTNeoXConfig.from_pretrained(tmp_path).rope_parameters
    assert again["mscale"] == 0.5 and again["kept_for_a_test"] == 1
    assert config.rope_scaling == {"type": "linear", "factor": 2.0}  # for readers of version 4.33


@pytest.mark.parametrize(
    "edit",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_theta": 500.0, "partial_rotary_factor": 0.5},
    ],
    ids=lambda edit: edit.get("rope_type", "base"),
)
def test_a_rope_dictionary_edited_in_place_makes_the_model_it_says(edit: dict[str, Any]) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}
    theirs, ours = transformers.GPTNeoXConfig(**sizes), GPTNeoXConfig(**sizes)
    for config in (theirs, ours):
        config.rope_parameters.update(edit)
    module = modeling_gpt_neox.GPTNeoXRotaryEmbedding(theirs)
    positions = torch.arange(3000)[None]
    wanted = module(torch.zeros(1), positions)[0]
    torch.testing.assert_close(RotaryTable(ours).angles(positions)[0][:, :, 0], wanted)
    assert ours.rope_parameters == theirs.rope_parameters


def test_a_rope_dictionary_edited_wrongly_makes_no_model() -> None:
    config = GPTNeoXConfig(num_hidden_layers=1)
    config.rope_parameters.update({"rope_type": "linear"})
    with pytest.raises(ConfigError, match="needs 'factor'"):
        RotaryTable(config)


# --- labels, dtype, foreign keys, generation settings ---------------------------------------


def test_numbers_of_labels_stay_what_they_were(tmp_path: Path) -> None:
    written = {"no": "0", "yes": "1"}
    config = GPTNeoXConfig(label2id=written)
    config.save_pretrained(tmp_path)
    again = GPTNeoXConfig.from_pretrained(tmp_path)
    assert config.label2id == again.label2id == written
    assert again.id2label == {0: "no", 1: "yes"}
    again.id2label[0] = "never"
    assert again.label2id == {"never": 0, "yes": 1}
    config.num_labels = 3
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}


def test_code_for_any_model_finds_its_names() -> None:
    theirs, ours = transformers.GPTNeoXConfig(note=3), GPTNeoXConfig(note=3)
    for config in (theirs, ours):
        names = list(config)
        assert {"vocab_size", "rope_parameters", "id2label", "dtype", "note"} <= set(names)
        assert all(hasattr(config, name) for name in names)
    for name in ("sub_configs", "attribute_map", "base_config_key", "is_encoder_decoder"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("keys_to_ignore_at_inference", "chunk_size_feed_forward", "use_return_dict"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.get_text_config(decoder=True) is ours
    assert (ours.get("note"), ours.get("hidden_size"), ours.get("nothing", 5)) == (3, 6144, 5)
    read = GPTNeoXConfig(**theirs.to_dict())
    read.transformers_version = None
    assert read == ours


def test_settings_of_ones_own_can_be_deleted() -> None:
    config = GPTNeoXConfig(note=3)
    del config.note
    assert not hasattr(config, "note")
    with pytest.raises(AttributeError, match="cannot be deleted"):
        del config.hidden_size


def test_the_attention_path_is_chosen_for_a_session_and_not_saved(tmp_path: Path) -> None:
    config = GPTNeoXConfig(attn_implementation="eager")
    assert config._attn_implementation == "eager" == copy.deepcopy(config)._attn_implementation
    config.save_pretrained(tmp_path)
    assert GPTNeoXConfig.from_pretrained(tmp_path)._attn_implementation is None
    chosen = GPTNeoXConfig.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert chosen._attn_implementation == "sdpa"
    with pytest.raises(ConfigError, match="expected one of sdpa, eager"):
        config._attn_implementation = "foo"


def test_a_name_of_other_families_is_kept_and_told_of(caplog: pytest.LogCaptureFixture) -> None:
    config = GPTNeoXConfig()
    config.layer_norm_epsilon = 1.0
    assert (config.layer_norm_epsilon, config.layer_norm_eps) == (1.0, 1e-5)
    assert "see layer_norm_eps" in caplog.text


def test_labels_in_every_combination() -> None:
    assert GPTNeoXConfig().num_labels == 2
    three = GPTNeoXConfig(num_labels=3)
    assert three.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    named = GPTNeoXConfig(id2label={"0": "no", "1": "yes", "2": "maybe"}, num_labels=3)
    assert named.label2id == {"no": 0, "yes": 1, "maybe": 2}
    assert GPTNeoXConfig(label2id={"no": 0, "yes": "1"}).id2label == {0: "no", 1: "yes"}
    named.num_labels = 3
    assert named.id2label[2] == "maybe"  # the number fits, so the names stay
    named.num_labels = 2
    assert named.label2id == {"LABEL_0": 0, "LABEL_1": 1}
    named.id2label = {0: "a", 1: "b", 2: "c", 3: "d"}
    assert (named.num_labels, named.label2id["d"]) == (4, 3)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ("float16", torch.float16),
        ("torch.bfloat16", torch.bfloat16),
        (torch.float32, torch.float32),
        ("auto", None),
        (None, None),
    ],
)
def test_dtype_spellings(given: Any, dtype: torch.dtype | None) -> None:
    for name in ("dtype", "torch_dtype"):
        config = GPTNeoXConfig(**{name: given})
        assert config.dtype == config.torch_dtype == dtype
    config.torch_dtype = "float64"  # type: ignore[assignment]
    assert config.dtype == torch.float64
    written = GPTNeoXConfig(dtype=dtype).to_diff_dict()
    assert ("dtype" in written) == (dtype is not None)


def test_foreign_keys_survive_and_cannot_shadow_the_class(tmp_path: Path) -> None:
    values = {
        **PYTHIA_70M,
        "quantized_by": {"a": [1]},
        "to_dict": 5,
        "_private": 1,
        "hiden_size": 3,
    }
    config = GPTNeoXConfig.from_dict(values)
    assert config.quantized_by == {"a": [1]}
    assert config.hiden_size == 3  # a misspelling in a file is the file's business
    written = saved(config, tmp_path)
    for name in ("quantized_by", "to_dict", "_private", "hiden_size"):
        assert written[name] == values[name]
    config.quantized_by = None
    config.note = "set from Python"
    assert (config.quantized_by, config.to_dict()["note"]) == (None, "set from Python")
    assert GPTNeoXConfig(my_own_key=1).my_own_key == 1
    with pytest.raises(AttributeError, match="hidden_size"):
        _ = GPTNeoXConfig().hidden_sise
    assert not hasattr(config, "nothing_like_it")


def test_generation_settings_are_kept_apart_and_written_back(tmp_path: Path) -> None:
    config = GPTNeoXConfig.from_dict({**PYTHIA_70M, "max_length": 50, "temperature": 0.7})
    assert config.generation_defaults == {"max_length": 50, "temperature": 0.7}
    with pytest.raises(AttributeError, match="generation_defaults"):
        _ = config.temperature
    assert saved(config, tmp_path)["max_length"] == 50
    assert GPTNeoXConfig.from_pretrained(tmp_path).generation_defaults["temperature"] == 0.7
    theirs = transformers.GenerationConfig._get_default_generation_params()
    assert set(theirs) - {"use_cache"} <= GENERATION_PARAMETERS


# --- making, copying, files ------------------------------------------------------------------


def test_positional_arguments_follow_version_4() -> None:
    config = GPTNeoXConfig(
        *(100, 64, 3, 4, 128, "relu", 0.5, 5000, 0.1, 0.2, 0.3, 512, 0.05, 1e-6, False, 7, 8),
        *(True, False, {"type": "linear", "factor": 2.0}, False),
    )
    assert (config.vocab_size, config.hidden_act, config.layer_norm_eps) == (100, "relu", 1e-6)
    assert (config.rotary_pct, config.rotary_emb_base) == (0.5, 5000)
    assert (config.attention_dropout, config.hidden_dropout) == (0.1, 0.2)
    assert (config.classifier_dropout, config.max_position_embeddings) == (0.3, 512)
    assert (config.initializer_range, config.use_cache) == (0.05, False)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (7, 8, None)
    assert config.tie_word_embeddings
    assert not config.use_parallel_residual
    assert config.rope_scaling == {"type": "linear", "factor": 2.0}
    assert not config.attention_bias
    with pytest.raises(TypeError, match="vocab_size"):
        GPTNeoXConfig(100, vocab_size=100)
    with pytest.raises(TypeError, match="positional"):
        GPTNeoXConfig(*range(30))


def test_copies_are_independent_and_equal() -> None:
    config = GPTNeoXConfig(rope_scaling=YARN, note=[1], dtype="float16")
    for twin in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config
        twin.rope_parameters["factor"] = 16.0
        twin.note.append(2)
        assert twin != config
    assert config != "something else"


def test_from_pretrained_overrides_and_unused_names(tmp_path: Path) -> None:
    GPTNeoXConfig.from_dict({**REDPAJAMA_3B, "note": 1}).save_pretrained(tmp_path)
    config = GPTNeoXConfig.from_pretrained(tmp_path, rotary_pct=0.5, num_labels=7, note=2)
    assert (config.rotary_pct, config.num_labels, config.note) == (0.5, 7, 2)
    assert config.name_or_path == str(tmp_path)
    scaled = GPTNeoXConfig.from_pretrained(tmp_path, rope_scaling={"type": "linear", "factor": 2.0})
    assert scaled.rotary_pct == 1.0
    assert GPTNeoXConfig.from_pretrained(tmp_path, dtype="auto").dtype == torch.float16
    assert GPTNeoXConfig.from_pretrained(tmp_path, torch_dtype="float32").dtype == torch.float32
    config, unused = GPTNeoXConfig.from_pretrained(
        tmp_path, use_cache=False, foo=1, revision="main", return_unused_kwargs=True
    )
    assert (config.use_cache, unused) == (False, {"foo": 1})
    with pytest.raises(ConfigError, match="'use_cache'"):
        GPTNeoXConfig.from_pretrained(tmp_path, use_cach=False)


def test_a_hub_id_is_fetched_with_the_options_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    GPTNeoXConfig.from_dict(PYTHIA_70M).save_pretrained(tmp_path)
    asked: list[Any] = []

    def find_file(source: str, filename: str, options: HubOptions) -> Path:
        asked.extend((source, filename, options))
        return tmp_path / filename

    monkeypatch.setattr("neox_lab.config.gpt_neox.find_file", find_file)
    config = GPTNeoXConfig.from_pretrained("some/model", revision="step3000", use_cache=False)
    assert asked == ["some/model", "config.json", HubOptions(revision="step3000")]
    assert (config.name_or_path, config.use_cache) == ("some/model", False)


def test_a_file_may_be_named_itself(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    GPTNeoXConfig(vocab_size=77).to_json_file(path)
    assert GPTNeoXConfig.from_json_file(path).vocab_size == 77
    assert GPTNeoXConfig.from_pretrained(path).vocab_size == 77
    assert path.read_text() == GPTNeoXConfig(vocab_size=77).to_json_string()


@pytest.mark.parametrize("text", ["{", "[1]", '"gpt_neox"', "\xff", "[" * 100_000])
def test_damaged_files_are_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        GPTNeoXConfig.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"absent\.json"):
        GPTNeoXConfig.from_json_file(tmp_path / "absent.json")


def test_saving_replaces_the_file_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    GPTNeoXConfig().save_pretrained(tmp_path / "new" / "folder")
    path = tmp_path / "new" / "folder" / "config.json"
    before = path.read_text()
    with pytest.raises(TypeError):
        GPTNeoXConfig(note=object()).save_pretrained(path.parent)

    def interrupted(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            GPTNeoXConfig(vocab_size=7).save_pretrained(path.parent)
    assert path.read_text() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["config.json"]
    with pytest.raises(CheckpointError, match="is a file"):
        GPTNeoXConfig().save_pretrained(path)


def test_the_text_is_sorted_and_invents_nothing() -> None:
    text = GPTNeoXConfig().to_json_string()
    values = json.loads(text)
    assert text == json.dumps(values, indent=2, sort_keys=True) + "\n"
    assert not {"architectures", "dtype", "torch_dtype", "transformers_version"} & values.keys()
    assert json.loads(GPTNeoXConfig().to_json_string(use_diff=False)) == json.loads(
        json.dumps(GPTNeoXConfig().to_dict())
    )
    assert repr(GPTNeoXConfig()).startswith('GPTNeoXConfig {\n  "attention_bias": true,')


# --- any valid configuration -----------------------------------------------------------------

factors = st.floats(1.0, 64.0)


@st.composite
def rope_dicts(draw: st.DrawFn, pairs: int) -> Values:
    kinds = ["default", "linear", "yarn", "llama3", "longrope"] + ["dynamic"] * (pairs > 1)
    kind = draw(st.sampled_from(kinds))
    rope: Values = {} if kind == "default" else {"factor": draw(factors | st.integers(1, 9))}
    if kind == "llama3":
        rope |= {"low_freq_factor": draw(st.floats(0.5, 2)), "high_freq_factor": 4.0}
    if kind == "longrope":
        numbers = st.lists(factors, min_size=pairs, max_size=pairs)
        rope |= {"short_factor": draw(numbers), "long_factor": draw(numbers)}
    if kind in ("yarn", "llama3", "longrope") and draw(st.booleans()):
        rope["original_max_position_embeddings"] = draw(st.integers(16, 4096))
    if kind == "yarn" and draw(st.booleans()):
        rope |= {"beta_fast": 20, "truncate": draw(st.booleans()), "attention_factor": 1.25}
    return {draw(st.sampled_from(["rope_type", "type"])): kind, **rope}


@st.composite
def arguments(draw: st.DrawFn) -> Values:
    heads, pairs = draw(st.integers(1, 8)), draw(st.integers(1, 32))
    head_size = 2 * draw(st.integers(pairs, 64))
    token = st.none() | st.integers(0, 50000)
    return {
        "hidden_size": heads * head_size,
        "num_attention_heads": heads,
        # A hair above the fraction: int() must not fall to the number below.
        "rotary_pct": min(1.0, 2 * pairs / head_size * (1 + 1e-12)),
        "rotary_emb_base": draw(st.integers(2, 10**6) | st.floats(2, 1e6)),
        "max_position_embeddings": draw(st.integers(16, 10**6)),
        draw(st.sampled_from(["rope_scaling", "rope_parameters"])): draw(rope_dicts(pairs)),
        "hidden_act": draw(st.sampled_from(ACTIVATIONS)),
        "eos_token_id": draw(token | st.lists(st.integers(0, 9), min_size=1)),
        "pad_token_id": draw(token),
        "num_labels": draw(st.integers(1, 5)),
        "dtype": draw(st.sampled_from([None, "float16", "bfloat16", "float32"])),
        "use_parallel_residual": draw(st.booleans()),
        "top_k": draw(st.integers(1, 50)),
        "quite_foreign": draw(st.none() | st.lists(st.integers())),
    }


@settings(max_examples=150, deadline=None)
@given(arguments())
def test_dict_and_file_round_trips_are_the_identity(values: Values) -> None:
    config = GPTNeoXConfig(**values)
    assert GPTNeoXConfig.from_dict(config.to_dict()) == config
    assert GPTNeoXConfig.from_dict(json.loads(config.to_json_string())) == config
    assert GPTNeoXConfig.from_dict(config.to_diff_dict()).to_json_string() == (
        config.to_json_string()
    )


@settings(max_examples=100, deadline=None)
@given(arguments())
def test_any_configuration_means_the_same_to_old_and_new_readers(values: Values) -> None:
    config = GPTNeoXConfig(**values)
    written = json.loads(config.to_json_string())
    assert meaning_in_transformers_5(written) == config.rope_parameters
    assert meaning_in_transformers_4(written) == config.rope_parameters
    through = transformers.GPTNeoXConfig.from_dict(copy.deepcopy(written)).to_dict()
    assert GPTNeoXConfig.from_dict(through).rope_parameters == config.rope_parameters


def test_numbers_of_other_libraries_end_as_pythons(tmp_path: Path) -> None:
    config = GPTNeoXConfig(
        rotary_pct=np.float32(0.25),
        rope_scaling={"rope_type": "linear", "factor": np.float32(2)},
        hidden_size=np.int64(64),
        num_attention_heads=4,
    )
    config.save_pretrained(tmp_path)
    again = GPTNeoXConfig.from_pretrained(tmp_path)
    assert again.rope_parameters["factor"] == 2.0 and again.hidden_size == 64
    assert again.rotary_pct == 0.25


@pytest.mark.parametrize("extreme", [1e-320, 1e308, 2**64, 10**400])
def test_rotary_numbers_that_angles_cannot_hold(extreme: float) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    for name in ("factor", "low_freq_factor", "high_freq_factor"):
        with pytest.raises(ConfigError, match=name):
            GPTNeoXConfig(rope_scaling=scaling | {name: extreme})
    with pytest.raises(ConfigError, match="rotary_emb_base"):
        GPTNeoXConfig(rotary_emb_base=extreme)
