"""Settings, their priorities and files; prompts of every form; arguments that make no sense."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from oracle import pair, tokens

import neox_lab as nl
from neox_lab.errors import CheckpointError, GenerationError, TokenizerError
from neox_lab.generation import GenerationConfig
from neox_lab.generation.settings import SETTINGS


@pytest.fixture(scope="module")
def model() -> Any:
    return pair()[1]


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> Any:
    return nl.GPTNeoXTokenizerFast(
        tokenizer_file=str(shared / "data" / "gpt-neox-20b-tokenizer.json")
    )


@pytest.fixture(scope="module")
def speaker(tokenizer: Any) -> Any:
    """A small model with the real vocabulary."""
    torch.manual_seed(0)
    config = nl.GPTNeoXConfig(
        vocab_size=50304, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, eos_token_id=0,
    )  # fmt: skip
    made = nl.GPTNeoXForCausalLM(config).eval()
    made.tokenizer = tokenizer
    return made


def test_priorities(model: Any) -> None:
    ids = tokens(1, 4)
    own, given = model.generation_config, GenerationConfig(max_new_tokens=5)
    try:
        model.generation_config = GenerationConfig(max_new_tokens=3, pad_token_id=1)
        assert model.generate(ids).shape[1] == 4 + 3
        assert model.generate(ids, given).shape[1] == 4 + 5
        assert model.generate(ids, given, max_new_tokens=7).shape[1] == 4 + 7
        assert model.generate(ids, generation_config=GenerationConfig()).shape[1] == 4 + 3
    finally:
        model.generation_config = own
    assert model.generate(ids, eos_token_id=None).shape[1] == 4 + 20


def test_defaults_are_those_of_transformers() -> None:
    theirs = transformers.GenerationConfig()
    defaults = theirs._get_default_generation_params()
    for name, (default, _) in SETTINGS.items():
        expected = defaults.get(name, getattr(theirs, name))
        if name not in ("max_matching_ngram_size", "use_cache"):
            assert (default or None) == (expected or None), name


def test_none_in_a_call_switches_off() -> None:
    theirs, ours = pair(eos_token_id=list(range(2, 180)))
    ids = tokens(1, 4)
    for settings in (
        {"eos_token_id": None},
        {"do_sample": True, "top_k": None, "temperature": 3.0, "eos_token_id": None},
    ):
        texts = []
        for model in (theirs, ours):
            torch.manual_seed(0)
            texts.append(model.generate(ids, max_new_tokens=12, pad_token_id=1, **settings))
        assert texts[1].tolist() == texts[0].tolist()
        assert texts[1].shape[1] == 16
    ours.generation_config.max_new_tokens = 2
    assert ours.generate(ids, max_new_tokens=None, eos_token_id=None).shape[1] == 24
    ours.generation_config.max_length = 9
    assert ours.generate(ids, max_new_tokens=None, eos_token_id=None).shape[1] == 9
    everything_off = dict.fromkeys(("max_new_tokens", "max_length", "eos_token_id"))
    assert ours.generate(ids, **everything_off).shape[1] == 24


def test_a_call_leaves_the_configurations_alone(model: Any) -> None:
    given = GenerationConfig(max_new_tokens=2, stop_strings=None)
    before, own = given.to_dict(), model.generation_config.to_dict()
    model.generate(tokens(2, 4), given, do_sample=True, num_return_sequences=2)
    assert given.to_dict() == before
    assert model.generation_config.to_dict() == own


def test_settings_kept_in_a_model_configuration_hold() -> None:
    config = nl.GPTNeoXConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_length=9, do_sample=True,
    )  # fmt: skip
    model = nl.GPTNeoXForCausalLM(config)
    assert model.generation_config.max_length == 9
    assert model.generation_config.do_sample is True
    assert model.generate(torch.tensor([[3, 4]]), eos_token_id=None).shape == (1, 9)


def numbers() -> dict[str, tuple[Any, Any]]:
    """Settings as users compute them, and as they are meant."""
    return {
        "max_new_tokens": (np.int64(3), 3),
        "min_new_tokens": (torch.tensor(2), 2),
        "eos_token_id": (torch.tensor([5, 6]), [5, 6]),
        "suppress_tokens": (np.array([7, 8]), [7, 8]),
        "bad_words_ids": ([[np.int32(9)]], [[9]]),
        "temperature": (np.float32(0.5), 0.5),
        "forced_eos_token_id": ((np.int64(4),), (4,)),
        "do_sample": (np.bool_(True), True),
    }


@pytest.mark.parametrize("name", numbers())
def test_numbers_of_other_libraries_become_python_s(name: str, tmp_path: Path) -> None:
    given, meant = numbers()[name]
    kept = getattr(GenerationConfig(**{name: given}), name)
    assert kept == meant and type(kept) is type(meant)
    config = GenerationConfig(do_sample=True)
    setattr(config, name, given)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())[name] in (meant, [4])


def test_a_setting_without_an_effect_is_said_and_kept(model: Any) -> None:
    config = GenerationConfig()
    with pytest.warns(UserWarning, match="compile_config='x' has no effect"):
        config.compile_config = "x"
    assert config.to_dict() == {"compile_config": "x"} and config.max_cache_len is None
    assert copy.deepcopy(config) == config == pickle.loads(pickle.dumps(config))
    with pytest.warns(UserWarning, match="max_cache_len=9"):
        model.generate(tokens(1, 4), max_new_tokens=1, max_cache_len=9)


@pytest.mark.parametrize(
    "values",
    [{"num_return_sequences": 2}, {"num_return_sequences": 3, "num_beams": 2}],
    ids=["greedy", "beams"],
)
def test_impossible_settings_are_not_valid(values: dict[str, Any]) -> None:
    with pytest.raises(GenerationError, match="num_return_sequences"):
        GenerationConfig(**values).validate()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"top_k": 9}, "top_k=9 has no effect without do_sample=True"),
        ({"length_penalty": 2.0}, "length_penalty=2.0 has no effect without num_beams"),
        ({"output_scores": True}, "without return_dict_in_generate=True"),
    ],
)
def test_settings_without_an_effect_are_not_saved(
    values: dict[str, Any], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = GenerationConfig(**values)
    config.validate()
    assert words in caplog.text
    with pytest.raises(GenerationError, match=words):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_file(model: Any, tmp_path: Path) -> None:
    bias = {(5, 6): -1.0}
    saved = GenerationConfig(max_new_tokens=7, do_sample=True, temperature=0.5, sequence_bias=bias)
    saved.save_pretrained(tmp_path)
    loaded = GenerationConfig.from_pretrained(tmp_path, top_k=9)
    assert (loaded.max_new_tokens, loaded.temperature, loaded.top_k) == (7, 0.5, 9)
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (theirs.max_new_tokens, theirs.temperature) == (7, 0.5)
    model.generate(tokens(1, 4), loaded)


def test_a_file_of_transformers(tmp_path: Path) -> None:
    transformers.GenerationConfig(
        do_sample=True, top_p=0.7, eos_token_id=[2, 3], num_assistant_tokens=4
    ).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "generation_config.json").read_text())
    content |= {"of_a_later_version": {"a": 1}, "num_beam_groups": 1, "_from_model_config": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    loaded = GenerationConfig.from_pretrained(tmp_path)
    assert (loaded.top_p, loaded.eos_token_id) == (0.7, [2, 3])
    assert loaded.to_dict()["of_a_later_version"] == {"a": 1}
    assert "_from_model_config" not in loaded.to_dict()


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        GenerationConfig.from_pretrained(tmp_path)
    for text in ("{", "[1]"):
        (tmp_path / "generation_config.json").write_text(text)
        with pytest.raises(CheckpointError):
            GenerationConfig.from_pretrained(tmp_path)


def test_a_model_keeps_its_settings(tmp_path: Path) -> None:
    model = pair(num_hidden_layers=1)[1]
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path)
    again = nl.GPTNeoXForCausalLM.from_pretrained(tmp_path)
    assert again.generation_config == model.generation_config
    assert again.generate(tokens(1, 4), eos_token_id=None).shape[1] == 7
    theirs = transformers.GPTNeoXForCausalLM.from_pretrained(tmp_path)
    assert theirs.generation_config.max_new_tokens == 3
    (tmp_path / "generation_config.json").unlink()
    assert nl.GPTNeoXForCausalLM.from_pretrained(tmp_path).generation_config.pad_token_id == 1


def test_attributes() -> None:
    config = GenerationConfig(top_k=3)
    assert (config.top_k, config.top_p) == (3, None)
    config.top_k = None
    assert config == GenerationConfig()
    assert repr(GenerationConfig(top_k=3)) == "GenerationConfig(top_k=3)"
    with pytest.raises(AttributeError, match="'top_k'"):
        config.topk  # noqa: B018
    with pytest.raises(GenerationError, match="'temperature'"):
        config.temprature = 0.5
    assert "typical_p" in dir(config)


def test_texts(speaker: Any, tokenizer: Any) -> None:
    texts = ["Hello world", "The king went to the city of"]
    one = speaker.generate(texts[1], max_new_tokens=4)
    assert one[:, :-4].tolist() == [tokenizer(texts[1]).input_ids]
    batch = speaker.generate(texts, max_new_tokens=4)
    assert batch[1].tolist() == one[0].tolist()
    assert batch[0, :-4].tolist() == [1] * 5 + tokenizer(texts[0]).input_ids
    alone = speaker.generate(texts[0], max_new_tokens=4)
    assert batch[0, 5:].tolist() == alone[0].tolist()


def test_what_a_tokenizer_returns(speaker: Any, tokenizer: Any) -> None:
    encoded = tokenizer("Hello world", return_tensors="pt")
    assert speaker.generate(**encoded, max_new_tokens=2).shape == (1, 4)
    assert speaker.generate([12092, 1533], max_new_tokens=2).shape == (1, 4)
    assert speaker.generate(torch.tensor([12092, 1533]), max_new_tokens=2).shape == (1, 4)
    assert speaker.generate([[12092, 1533]], max_new_tokens=2).shape == (1, 4)


def test_stop_strings(speaker: Any, tokenizer: Any) -> None:
    def counting(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Writes `` one two three four five`` …, whatever the model says."""
        words = " one two three four five six seven eight nine ten".split(" ")[1:]
        ids = [tokenizer(f" {word}").input_ids[0] for word in words]
        place = input_ids.shape[1] - 1
        return torch.full_like(scores, -1e9).index_fill(1, torch.tensor(ids[place % 10]), 0.0)

    def text(**settings: Any) -> str:
        out = speaker.generate(
            tokenizer("x", return_tensors="pt").input_ids, logits_processor=[counting],
            max_new_tokens=10, **settings,
        )  # fmt: skip
        return str(tokenizer.decode(out[0]))

    assert text() == "x one two three four five six seven eight nine ten"
    assert text(stop_strings="three") == "x one two three"
    assert text(stop_strings=[" nine", "o t"]) == "x one two three"
    assert text(stop_strings="thr") == "x one two three"
    assert text(stop_strings="x one") == "x one"
    assert text(stop_strings=["x", "zzz"]) == "x one two three four five six"
    theirs = transformers.StopStringCriteria(
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer),
        [" fo", "e f"],
    )
    assert text(stop_strings=[" fo", "e f"]) == text(stopping_criteria=[theirs])


def case(*needles: str, **arguments: Any) -> Any:
    return pytest.param(arguments, needles, id=next(iter(arguments)) if arguments else "none")


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        case("'temperatur'", "'temperature'", temperatur=0.5),
        case("'stream'", "'streamer'", stream=True),
        case("token_type_ids", "return_token_type_ids=False", token_type_ids=torch.ones(1, 4)),
        case("Group beam", "num_beam_groups", num_beam_groups=2),
        case("Group beam", diversity_penalty=0.5),
        case("Contrastive", penalty_alpha=0.6),
        case("Constrained", constraints=[1]),
        case("Constrained", force_words_ids=[[5]]),
        case("DoLa", dola_layers="high"),
        case("Token healing", token_healing=True),
        case("temperature=0", "do_sample=False", temperature=0, do_sample=True),
        case("Drafting with extra heads", use_mtp=True),
        case("position_ids", "[1, 4]", position_ids=torch.zeros(1, 3)),
        case("assistant_tokenizer", assistant_tokenizer=object()),
        case("attention_mask", "[1, 6]", attention_mask=torch.tensor([[1, 1, 1, 1, 0, 1]])),
        case("custom_generate", "function", custom_generate="some/repository"),
        case("temperature=-1.0", temperature=-1.0),
        case("top_p=1.5", top_p=1.5),
        case("top_k=-1", top_k=-1),
        case("top_k=2.5", top_k=2.5),
        case("typical_p", typical_p=0.0),
        case("repetition_penalty", repetition_penalty=0.0),
        case("max_new_tokens=0", "1 or more", max_new_tokens=0),
        case("max_new_tokens", max_new_tokens=-3),
        case("max_new_tokens=True", max_new_tokens=True),
        case("max_length=4", "max_new_tokens", max_length=4),
        case("num_return_sequences=2", "do_sample=True", num_return_sequences=2),
        case("num_return_sequences=3", "num_beams=2", num_return_sequences=3, num_beams=2),
        case("early_stopping", "'never'", early_stopping="always"),
        case("bad_words_ids", bad_words_ids=[5, 6]),
        case("bad_words_ids", bad_words_ids=[[]]),
        case("token 999", "211", bad_words_ids=[[999]]),
        case("sequence_bias", sequence_bias={5: 1.0}),
        case("watermarking_config", watermarking_config={"ratio": 1}),
        case("greenlist_ratio", watermarking_config={"greenlist_ratio": 1.5}),
        case("stop_strings", "tokenizer", stop_strings="x"),
        case("attention_mask", "[1, 4]", attention_mask=torch.ones(1, 3)),
        case("past_key_values", "tuple", past_key_values=((1, 2),)),
        case("input_ids", input_ids=torch.ones(1, 4, dtype=torch.long)),
        case("prompt_lookup", "use_cache", prompt_lookup_num_tokens=3, use_cache=False),
        case("prompt_lookup", "num_beams", prompt_lookup_num_tokens=3, num_beams=2),
        case("cache_implementation", cache_implementation="quantized"),
        case("eos_token_id", exponential_decay_length_penalty=(1, 1.5), eos_token_id=[]),
        case("output_scores", output_scores="yes"),
    ],
)
def test_arguments_that_make_no_sense(
    model: Any, arguments: dict[str, Any], needles: tuple[str, ...]
) -> None:
    with pytest.raises(GenerationError) as caught:
        model.generate(tokens(1, 4), **arguments)
    for needle in needles:
        assert needle in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "needle"),
    [
        (torch.ones(1, 4), "inputs_embeds"),
        (torch.ones(1, 0, dtype=torch.long), "[1, 0]"),
        (torch.ones(1, 2, 2, dtype=torch.long), "[1, 2, 2]"),
    ],
)
def test_prompts_that_make_no_sense(model: Any, prompt: Any, needle: str) -> None:
    with pytest.raises(GenerationError, match=needle.replace("[", r"\[")):
        model.generate(prompt)


def test_text_without_a_tokenizer(model: Any) -> None:
    with pytest.raises(TokenizerError, match="tokenizer"):
        model.generate("Hello")


def test_empty_texts(speaker: Any) -> None:
    with pytest.raises(GenerationError, match="empty"):
        speaker.generate(["Hello", ""])


def test_a_streamer_does_not_go_with_beams(model: Any, speaker: Any, tokenizer: Any) -> None:
    from neox_lab.generation import TextStreamer

    with pytest.raises(GenerationError, match="streamer"):
        speaker.generate("Hello", num_beams=2, streamer=TextStreamer(tokenizer))
    with pytest.raises(GenerationError, match="one text"):
        model.generate(tokens(2, 4), prompt_lookup_num_tokens=3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_length": 9, "max_new_tokens": 2}, "max_new_tokens counts"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 0]])}, "padded on the right"),
        ({"pad_token_id": -1}, "pad_token_id=-1 is no token"),
    ],
)
def test_warnings(
    model: Any, arguments: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model.generate(tokens(1, 4), **arguments)
    assert words in caplog.text


def test_neutral_values_of_removed_strategies_are_fine(model: Any) -> None:
    neutral: dict[str, Any] = {"num_beam_groups": 1, "diversity_penalty": 0.0, "low_memory": None}
    plain: Callable[..., torch.Tensor] = model.generate
    assert plain(tokens(1, 4), **neutral).tolist() == plain(tokens(1, 4)).tolist()
