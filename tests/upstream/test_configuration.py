"""What upstream's tests say about configurations, of models and of generation."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from upstream.library import (
    BASE,
    CAUSAL,
    SIZES,
    Library,
    refuses,
)

# --- of the model -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"]
)
def test_sizes_can_be_read_without_being_given(library: Library, name: str) -> None:
    assert getattr(library.GPTNeoXConfig(hidden_size=64), name) > 0


def test_what_was_given_stands_in_the_json_text(library: Library) -> None:
    written = json.loads(library.GPTNeoXConfig(**SIZES).to_json_string())
    assert {name: written[name] for name in SIZES} == SIZES


def test_a_json_file_gives_the_same_configuration(library: Library, tmp_path: Path) -> None:
    config = library.GPTNeoXConfig(**SIZES)
    config.to_json_file(tmp_path / "config.json")
    again = library.GPTNeoXConfig.from_json_file(tmp_path / "config.json")
    assert again.to_dict() == config.to_dict()


def test_a_saved_folder_gives_the_same_configuration(library: Library, tmp_path: Path) -> None:
    config = library.GPTNeoXConfig(**SIZES)
    config.save_pretrained(tmp_path)
    assert library.GPTNeoXConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_a_folder_that_does_not_exist_is_an_os_error(library: Library, tmp_path: Path) -> None:
    with refuses(OSError):
        library.GPTNeoXConfig.from_pretrained(str(tmp_path / "nothing" / "here"))


def test_a_folder_inside_a_folder_is_found(library: Library, tmp_path: Path) -> None:
    config = library.GPTNeoXConfig(**SIZES)
    config.save_pretrained(tmp_path / "inner")
    again = library.GPTNeoXConfig.from_pretrained(tmp_path, subfolder="inner")
    assert again.to_dict() == config.to_dict()


def test_labels_follow_their_number(library: Library) -> None:
    config = library.GPTNeoXConfig(num_labels=5)
    assert len(config.id2label) == len(config.label2id) == 5
    config.num_labels = 3
    assert len(config.id2label) == len(config.label2id) == 3


@pytest.mark.parametrize("values", [{}, SIZES])
def test_making_one_logs_nothing(
    library: Library, values: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        library.GPTNeoXConfig(**values)
    assert not caplog.records


COMMON = {
    "return_dict": False,
    "output_hidden_states": True,
    "architectures": ["GPTNeoXForCausalLM"],
    "id2label": {0: "no", 1: "yes"},
    "label2id": {"no": 0, "yes": 1},
    "problem_type": "regression",
    "chunk_size_feed_forward": 5,
    "bos_token_id": 6,
    "pad_token_id": 7,
    "eos_token_id": 8,
}


@pytest.mark.parametrize("name", sorted(COMMON))
def test_arguments_common_to_all_models_are_kept(library: Library, name: str) -> None:
    config = library.GPTNeoXConfig(**COMMON)
    assert getattr(config, name) == COMMON[name]


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_dtype_may_be_a_word(library: Library, name: str) -> None:
    assert library.GPTNeoXConfig(**{name: "float16"}).dtype == torch.float16


def test_values_of_a_call_replace_those_of_the_file(library: Library, tmp_path: Path) -> None:
    library.GPTNeoXConfig(**SIZES).save_pretrained(tmp_path)
    config = library.GPTNeoXConfig.from_pretrained(tmp_path, num_hidden_layers=7)
    assert config.num_hidden_layers == 7 and config.hidden_size == SIZES["hidden_size"]


def test_names_it_does_not_know_can_be_handed_back(library: Library, tmp_path: Path) -> None:
    library.GPTNeoXConfig(**SIZES).save_pretrained(tmp_path)
    config, rest = library.GPTNeoXConfig.from_pretrained(
        tmp_path, return_unused_kwargs=True, something_else=3
    )
    assert config.hidden_size == SIZES["hidden_size"] and rest == {"something_else": 3}


def test_foreign_attributes_are_kept(library: Library, tmp_path: Path) -> None:
    library.GPTNeoXConfig(**SIZES, type_vocab_size=16).save_pretrained(tmp_path)
    assert library.GPTNeoXConfig.from_pretrained(tmp_path).type_vocab_size == 16


def test_foreign_attributes_may_be_set_later(library: Library) -> None:
    config = library.config()
    config.first_k_dense = 1.0
    assert config.first_k_dense == 1.0


def test_numbers_of_labels_stay_as_they_were_written(library: Library) -> None:
    config = library.GPTNeoXConfig(id2label={0: "no"}, label2id={"no": "0"})
    assert config.label2id == {"no": "0"}


def test_rope_parameters_without_use_are_kept(library: Library) -> None:
    rope = {"rope_type": "default", "rope_theta": 500.0, "original_max_position_embeddings": 64}
    config = library.config(rope_parameters=rope)
    assert config.rope_parameters["original_max_position_embeddings"] == 64


def test_old_names_of_the_rotary_embedding_mean_the_new_ones(library: Library) -> None:
    config = library.GPTNeoXConfig(**SIZES, rotary_pct=0.5, rotary_emb_base=500.0)
    assert config.rope_parameters["partial_rotary_factor"] == 0.5
    assert config.rope_parameters["rope_theta"] == 500.0


def test_a_configuration_without_special_tokens_runs(library: Library) -> None:
    special = ("pad_token_id", "eos_token_id", "bos_token_id")
    values = {name: value for name, value in SIZES.items() if name not in special}
    config = library.GPTNeoXConfig(**values)
    for name in special:
        setattr(config, name, 0)
    model = library.classes[BASE](config).eval()
    assert model(torch.arange(5)[None]).last_hidden_state.shape == (1, 5, 64)


def test_the_text_part_is_the_whole(library: Library) -> None:
    config = library.config()
    assert config.get_text_config() is config
    assert config.get_text_config(decoder=True) is config


def test_a_class_without_parts_says_so(library: Library) -> None:
    assert library.GPTNeoXConfig.sub_configs == {}


def test_iterating_gives_the_names_of_attributes(library: Library) -> None:
    assert "vocab_size" in list(library.config())


def test_it_says_that_it_is_no_encoder_decoder(library: Library) -> None:
    assert library.config().is_encoder_decoder is False


def test_attention_can_be_chosen_when_it_is_made(library: Library) -> None:
    config = library.GPTNeoXConfig(**SIZES, attn_implementation="eager")
    assert config._attn_implementation == "eager"


def test_attention_can_be_chosen_afterwards(library: Library) -> None:
    config = library.GPTNeoXConfig(**SIZES)
    for name in ("eager", "sdpa", "eager"):
        config._attn_implementation = name
        assert config._attn_implementation == name


def test_a_rope_dictionary_can_be_edited_in_place(library: Library) -> None:
    config = library.config()
    config.rope_parameters.update({"rope_type": "linear", "factor": 2.0})
    assert config.rope_parameters["rope_type"] == "linear"
    library.classes[BASE](config)


def test_a_line_of_text_sets_numbers_switches_and_words(library: Library) -> None:
    config = library.config()
    config.update_from_string("hidden_size=96,use_cache=false,layer_norm_eps=0.5,hidden_act=relu")
    assert (config.hidden_size, config.use_cache) == (96, False)
    assert (config.layer_norm_eps, config.hidden_act) == (0.5, "relu")


@pytest.mark.parametrize("text", ["colour=3", "use_cache=perhaps", "hidden_size=wide", "hidden"])
def test_a_line_of_text_that_says_nothing_is_a_value_error(library: Library, text: str) -> None:
    config = library.config()
    with refuses():
        config.update_from_string(text)
    assert config.use_cache is True and config.hidden_size == SIZES["hidden_size"]


@pytest.mark.parametrize("inside", ["", "config.json"])
def test_what_a_file_says_can_be_read_as_it_is(
    library: Library, tmp_path: Path, inside: str
) -> None:
    written = {"model_type": "gpt_neox", "hidden_size": 96, "num_attention_heads": 4, "note": "x"}
    (tmp_path / "config.json").write_text(json.dumps(written))
    where = tmp_path / inside
    read, rest = library.GPTNeoXConfig.get_config_dict(
        pretrained_model_name_or_path=where, local_files_only=True, hidden_size=32
    )
    assert {name: read[name] for name in written} == written
    assert rest["hidden_size"] == 32 and "local_files_only" not in rest
    config = library.GPTNeoXConfig.from_pretrained(pretrained_model_name_or_path=tmp_path)
    assert config.hidden_size == 96 and config.note == "x"


# --- of generation ----------------------------------------------------------------------------


@pytest.mark.parametrize("file_name", [None, "own.json"])
def test_generation_settings_survive_a_folder(
    library: Library, tmp_path: Path, file_name: str | None
) -> None:
    config = library.GenerationConfig(do_sample=True, temperature=0.7, bad_words_ids=[[1, 2], [3]])
    named = {} if file_name is None else {"config_file_name": file_name}
    config.save_pretrained(tmp_path, **named)
    again = library.GenerationConfig.from_pretrained(tmp_path, **named)
    assert again.do_sample is True and again.temperature == 0.7
    assert again.bad_words_ids == [[1, 2], [3]] and again.top_k == config.top_k


def test_generation_settings_can_be_read_off_a_model_configuration(library: Library) -> None:
    made = library.GenerationConfig.from_model_config(library.config())
    assert made.eos_token_id == SIZES["eos_token_id"] != library.GenerationConfig().eos_token_id


def test_update_takes_what_it_knows_and_hands_back_the_rest(library: Library) -> None:
    config = library.GenerationConfig()
    given = {"max_new_tokens": 31, "colour": "blue"}
    before = dict(given)
    rest = config.update(**given)
    assert given == before and config.max_new_tokens == 31 and rest == {"colour": "blue"}


def test_settings_nobody_knows_are_kept_and_read_back(library: Library, tmp_path: Path) -> None:
    config = library.GenerationConfig()
    config.colour = "blue"
    config.save_pretrained(tmp_path)
    assert library.GenerationConfig.from_pretrained(tmp_path).colour == "blue"


def test_a_model_configuration_adds_nothing_unknown(library: Library) -> None:
    assert not hasattr(library.GenerationConfig.from_model_config(library.config()), "colour")


def test_arguments_replace_what_the_file_says(library: Library, tmp_path: Path) -> None:
    library.GenerationConfig(do_sample=True, temperature=0.7, top_k=9).save_pretrained(tmp_path)
    config = library.GenerationConfig.from_pretrained(tmp_path, temperature=1.0)
    assert config.temperature == 1.0 and config.do_sample is True and config.top_k == 9


@pytest.mark.parametrize(
    "values",
    [{"early_stopping": "whenever"}, {"max_new_tokens": -1}],
    ids=lambda values: next(iter(values)),
)
def test_values_without_a_meaning_are_a_value_error(
    library: Library, values: dict[str, Any]
) -> None:
    with refuses():
        library.GenerationConfig(**values)


@pytest.mark.parametrize(
    "values", [{"temperature": 0.5}, {"num_return_sequences": 2}], ids=lambda v: next(iter(v))
)
def test_an_inconsistent_setting_is_not_saved(
    library: Library, tmp_path: Path, values: dict[str, Any]
) -> None:
    config = library.GenerationConfig(do_sample=False, num_beams=1)
    for name, value in values.items():
        setattr(config, name, value)
    with refuses():
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "mode"),
    [({}, "greedy_search"), ({"do_sample": True}, "sample"), ({"num_beams": 2}, "beam_search")],
)
def test_settings_know_their_strategy(library: Library, values: dict[str, Any], mode: str) -> None:
    assert library.GenerationConfig(**values).get_generation_mode() == mode


def test_a_watermark_stays_what_it_was(library: Library, tmp_path: Path) -> None:
    settings = {"bias": 3.0, "seeding_scheme": "selfhash", "context_width": 2}
    library.GenerationConfig(watermarking_config=settings).save_pretrained(tmp_path)
    again = library.GenerationConfig.from_pretrained(tmp_path).watermarking_config
    again = again if isinstance(again, dict) else again.to_dict()
    assert {name: again[name] for name in settings} == settings


def test_equal_settings_are_equal(library: Library) -> None:
    assert library.GenerationConfig(top_k=3) == library.GenerationConfig(top_k=3)
    assert library.GenerationConfig(top_k=3) != library.GenerationConfig(top_k=4)


def test_a_model_s_settings_can_be_changed_on_the_model(library: Library) -> None:
    model = library.model(CAUSAL)
    model.generation_config.max_new_tokens = 2
    model.generation_config.eos_token_id = None
    assert model.generate(torch.tensor([[5, 6]])).shape == (1, 4)


def test_a_model_s_settings_can_be_replaced(library: Library) -> None:
    model = library.model(CAUSAL)
    model.generation_config = library.GenerationConfig(max_new_tokens=3)
    assert model.generate(torch.tensor([[5, 6]])).shape == (1, 5)
