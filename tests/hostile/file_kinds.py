"""Every kind of file the package reads: a good one, how it is damaged, and who reads it."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from damage import damage_of_bytes, damage_of_json, damaged_bytes, damaged_json
from hypothesis.strategies import SearchStrategy
from patching_oracle import small
from safetensors.torch import save

import neox_lab as nl
from neox_lab.checkpoint.files import read_index
from neox_lab.checkpoint.reading import SafetensorsFile, TorchFile
from neox_lab.checkpoint.saving import save as save_checkpoint
from neox_lab.data.conll import read_conll
from neox_lab.data.squad import read_squad
from neox_lab.data.tables import read_table
from neox_lab.generation import GenerationConfig
from neox_lab.gym import planting
from neox_lab.hooks.cache import ActivationCache
from neox_lab.model.rotary import inverse_frequencies
from neox_lab.tasks import checkpoints

SHARES = {
    "config": 120,
    "generation config": 110,
    "tokenizer": 15,
    "tokenizer bytes": 15,
    "checkpoint's config": 10,
    "index": 100,
    "safetensors": 80,
    "bin": 40,
    "old bin": 40,
    "cache": 20,
    "cache bytes": 20,
    "cache of a model": 20,
    "patch result": 20,
    "attribution result": 20,
    "result bytes": 20,
    "dictionary": 20,
    "dictionary bytes": 20,
    "sparsify's cfg.json": 20,
    "SAELens's cfg.json": 20,
    "SAELens's cfg.json of a TopK": 20,
    "circuit-tracer's config.yaml": 20,
    "ae.pt": 20,
    "notebook": 80,
    "SQuAD": 30,
    "json table": 30,
    "jsonl table": 30,
    "csv table": 30,
    "tsv table": 30,
    "CoNLL": 60,
    "training state": 40,
    "config, linear": 20,
    "config, dynamic": 20,
    "config, yarn": 20,
    "config, llama3": 20,
    "config, longrope": 20,
    "tokenizer_config.json": 10,
    "special_tokens_map.json": 10,
    "added_tokens.json": 10,
}
"""Every kind of file, and how many of 1000 inputs are for it: the cheap ones get most."""


@dataclasses.dataclass(frozen=True)
class FileKind:
    """A kind of file.

    Attributes:
        name: of the file; files beside it are in ``folder``.
        damages: what can be done to it.
        damaged: the bytes of the file after that.
        read: reads the file and looks at everything that was read.
        folder: what stands beside it.
        writes: reading changes the file.
    """

    name: str
    damages: SearchStrategy[list[tuple[str, int, Any]]]
    damaged: Callable[[list[tuple[str, int, Any]]], bytes]
    read: Callable[[Path], object]
    folder: Path | None = None
    writes: bool = False


def _json(name: str, document: object, read: Callable[[Path], object], **more: Any) -> FileKind:
    def damaged(damages: list[tuple[str, int, Any]]) -> bytes:
        return damaged_json(document, damages).encode()

    return FileKind(name, damage_of_json, damaged, read, **more)


def _bytes(name: str, content: bytes, read: Callable[[Path], object], **more: Any) -> FileKind:
    def damaged(damages: list[tuple[str, int, Any]]) -> bytes:
        return damaged_bytes(content, damages)

    return FileKind(name, damage_of_bytes, damaged, read, **more)


def _described(name: str, content: bytes, read: Callable[[Path], object], **more: Any) -> FileKind:
    """A safetensors file whose description, JSON in the header, is damaged."""
    length = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    description = json.loads(header["__metadata__"]["description"])

    def damaged(damages: list[tuple[str, int, Any]]) -> bytes:
        metadata = header["__metadata__"] | {"description": damaged_json(description, damages)}
        text = json.dumps(header | {"__metadata__": metadata}).encode()
        return len(text).to_bytes(8, "little") + text + rest

    return FileKind(name, damage_of_json, damaged, read, **more)


# How each is read, and what is looked at then.

ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 16,
        "attention_factor": 1.5,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.5,
        "mscale_all_dim": 0.5,
        "truncate": True,
    },
    {
        "rope_type": "llama3",
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.0],
        "long_factor": [2.0, 2.0],
        "factor": 2.0,
        "original_max_position_embeddings": 16,
    },
)


def _config(path: Path) -> None:
    config = nl.GPTNeoXConfig.from_json_file(path)
    assert nl.GPTNeoXConfig.from_dict(json.loads(config.to_json_string())) == config
    repr(config)
    if config.head_size < 1000:
        for length in (None, 3, 10**6):
            frequencies, scaling = inverse_frequencies(config, length)
            assert frequencies.isfinite().all() and 0 <= scaling < float("inf")


def _generation_config(path: Path) -> None:
    settings = GenerationConfig.from_json_file(path)
    settings.validate()
    settings.get_generation_mode()
    again = GenerationConfig.from_dict(json.loads(settings.to_json_string()))
    assert again.to_json_string() == settings.to_json_string()


def _tokenizer(path: Path) -> None:
    tokenizer = nl.GPTNeoXTokenizerFast.from_pretrained(path)
    tokenizer.decode(tokenizer("A b.")["input_ids"])
    repr(tokenizer)


def _tokenizer_folder(path: Path) -> None:
    _tokenizer(path.parent)


def _checkpoint(path: Path) -> None:
    model = nl.GPTNeoXForSequenceClassification.from_pretrained(
        path.parent, ignore_mismatched_sizes=False
    )
    model(torch.tensor([[3, 4]]))


def _cache(path: Path) -> None:
    cache = ActivationCache.load(path)
    repr(cache)
    for name in cache:
        assert cache[name].shape is not None


def _spilled(path: Path) -> None:
    cache = ActivationCache.load(path, model=MODEL)
    for name in cache:
        assert cache[name].shape is not None


def _result(kind: Any) -> Callable[[Path], object]:
    def read(path: Path) -> None:
        result = kind.load(path)
        _ = result.frame
        result.top(3)
        repr(result)

    return read


def _dictionary(path: Path) -> None:
    found = nl.sae.available(path.parent)
    site = None if found["site"].notna().all() else "blocks.2.hook_resid_post"
    dictionary = nl.sae.load(path.parent, site=site, subfolder=str(found["subfolder"][0]))
    repr(dictionary), dictionary(torch.ones(2, dictionary.d_in))


def _training(path: Path) -> None:
    state = checkpoints.latest(path.parent, "run", MODEL, WEIGHTS)
    assert state is not None and state["fingerprint"] == "run"


def _torch_file(path: Path) -> None:
    file = TorchFile(path)
    for name in file.tensors:
        file.read(name).sum()


def _safetensors_file(path: Path) -> None:
    file = SafetensorsFile(path)
    for name in file.tensors:
        file.read(name).sum()


def _notebook(path: Path) -> None:
    nl.views.notebook_faults(path)
    nl.views.clean_notebook(path)
    assert not nl.views.clean_notebook(path), "what is clean is cleaned again"


# A good file of each kind.


def _content(write: Callable[[Path], object]) -> bytes:
    """The bytes of what ``write`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        write(path)
        return path.read_bytes()


def _patch_result() -> Any:
    return nl.patching.PatchResult(
        values=torch.tensor([[0.5, -1.0], [2.0, float("nan")]]),
        axes=("layer", "pos"),
        labels={"layer": ["0", "1"], "pos": ["a", "b"]},
        clean=1.0,
        corrupted=0.0,
        site=("resid_pre",),
        metric="logit difference",
        direction="denoising",
        samples=torch.ones(3, 2, 2),
        base_samples=torch.ones(3),
    )


def _attribution_result() -> Any:
    return nl.attribution.AttributionResult(
        values=torch.tensor([0.5, -1.0]),
        axes=("pos",),
        labels={"pos": ["a", "b"]},
        total=1.0,
        per_row=None,
        title="shares",
        value_name="share",
        facts={"clean": 1.0},
    )


def _notebook_document() -> dict[str, Any]:
    output = {"output_type": "stream", "name": "stdout", "text": ["a\n", "/home/x/y"]}
    shown = {"output_type": "display_data", "data": {"text/plain": "b"}, "metadata": {}}
    failed = {"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["t"]}
    return {
        "cells": [
            {"cell_type": "markdown", "metadata": {}, "source": ["text"]},
            {
                "cell_type": "code",
                "execution_count": 1,
                "metadata": {"execution": {"iopub.execute_input": "2026"}},
                "outputs": [output, shown, failed],
                "source": "1 + 1",
            },
        ],
        "metadata": {"widgets": {"state": {}}, "kernelspec": {"name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


_ANSWER = {"text": "king", "answer_start": 4}
_QUESTION = {"id": "1", "question": "Who?", "answers": [_ANSWER], "is_impossible": False}
SQUAD = {"version": "2.0", "data": [{"paragraphs": [{"context": "The king.", "qas": [_QUESTION]}]}]}
ROWS = [{"text": "good film", "label": "pos"}, {"text": "bad film", "label": "neg"}]
GENERATION: dict[str, Any] = {
    "max_new_tokens": 5,
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 3,
    "num_beams": 1,
    "eos_token_id": [0, 2],
    "pad_token_id": 0,
    "bad_words_ids": [[3, 4]],
    "sequence_bias": [[[3], -1.0]],
    "stop_strings": ["."],
    "watermarking_config": {"greenlist_ratio": 0.25, "bias": 2.0},
    "suppress_tokens": [1],
    "exponential_decay_length_penalty": [3, 1.1],
    "transformers_version": "4.40.0",
}

MODEL = small(num_hidden_layers=1, hidden_size=12, intermediate_size=8)
WEIGHTS = {"gpt_neox.final_layer_norm.bias": torch.ones(12)}
CLASSIFIER = small("sequence-classification", num_hidden_layers=1, hidden_size=12)
CONFIG = json.loads(CLASSIFIER.config.to_json_string()) | {"eos_token_id": 0}
SHORT = {"model_type": "gpt_neox", "hidden_size": 24, "num_attention_heads": 3}
BASE = {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}


DICTIONARIES = Path(__file__).parents[1] / "sae" / "files"


def _dictionaries(base: Path) -> dict[str, FileKind]:
    """A file of each layout of dictionaries, with what belongs to it beside."""
    kinds = {}
    for name, place in (
        ("sparsify's cfg.json", "sparsify/autoencoder/layers.2"),
        ("SAELens's cfg.json", "sae_lens/standard"),
        ("SAELens's cfg.json of a TopK", "sae_lens/topk_rescaled"),
    ):
        folder = DICTIONARIES / place
        document = json.loads((folder / "cfg.json").read_text())
        kinds[name] = _json("cfg.json", document, _dictionary, folder=folder)
    folder = DICTIONARIES / "circuit_tracer" / "topk"
    content = (folder / "config.yaml").read_bytes()
    kinds["circuit-tracer's config.yaml"] = _bytes("config.yaml", content, _dictionary,
                                                   folder=folder)  # fmt: skip
    folder = DICTIONARIES / "dictionary_learning/pythia-70m-deduped/embed/10_32768"
    kinds["ae.pt"] = _bytes("ae.pt", (folder / "ae.pt").read_bytes(), _dictionary)
    dictionary = nl.sae.load(DICTIONARIES / "sae_lens/topk_rescaled")
    saved = dictionary.save_pretrained(base / "dictionary")
    own = (saved.name, saved.read_bytes(), _dictionary)
    return kinds | {"dictionary": _described(*own), "dictionary bytes": _bytes(*own)}


def file_kinds(base: Path) -> dict[str, FileKind]:
    """All kinds, by name; files that stand beside a damaged one are put under ``base``."""
    tokenizer, checkpoint = base / "tokenizer", base / "checkpoint"
    planting.tokenizer().save_pretrained(tokenizer)
    save_checkpoint(CLASSIFIER, checkpoint)
    tensors = {name: p.detach() for name, p in MODEL.named_parameters()}
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    old = io.BytesIO()
    torch.save({"a": torch.ones(3)}, old, _use_new_zipfile_serialization=False)
    state = io.BytesIO()
    model = list(checkpoints.trained_model(MODEL))
    torch.save({"fingerprint": "run", "step": 3, "weights": WEIGHTS, "model": model}, state)
    _, cache = MODEL.run_with_cache(torch.tensor([[3, 4, 5], [1, 4, 5]]))
    cached = _content(cache.save)
    patched, attributed = _patch_result(), _attribution_result()
    token_file = json.loads((tokenizer / "tokenizer.json").read_text())
    few = list(token_file["model"]["vocab"].items())
    token_file["model"]["vocab"] = dict(few)
    decoder = {"0": {"content": "<|endoftext|>", "special": True}}
    index = {"metadata": {"total_size": 9}, "weight_map": {"a": "x.safetensors", "b": "y.bin"}}
    csv = b'text,label\ngood film,pos\n"bad, film",neg\n'
    conll = b"-DOCSTART- -X- O O\n\nThe DT O\nking NN B-PER\n\nWent VBD O\n"
    patch, attribution = nl.patching.PatchResult, nl.attribution.AttributionResult
    kinds = {
        "config": _json("config.json", CONFIG, _config),
        "generation config": _json("g.json", GENERATION, _generation_config),
        "tokenizer": _json("tokenizer.json", token_file, _tokenizer),
        "tokenizer bytes": _bytes("tokenizer.json", json.dumps(token_file).encode(), _tokenizer),
        "checkpoint's config": _json("config.json", CONFIG, _checkpoint, folder=checkpoint),
        "index": _json("index.json", index, read_index),
        "safetensors": _bytes("a.safetensors", save(tensors), _safetensors_file),
        "bin": _bytes("a.bin", buffer.getvalue(), _torch_file),
        "old bin": _bytes("a.bin", old.getvalue(), _torch_file),
        "cache": _described("c.safetensors", cached, _cache),
        "cache bytes": _bytes("c.safetensors", cached, _cache),
        "cache of a model": _described("c.safetensors", cached, _spilled),
        "patch result": _described("r", _content(patched.save), _result(patch)),
        "attribution result": _described("r", _content(attributed.save), _result(attribution)),
        "result bytes": _bytes("r", _content(patched.save), _result(patch)),
        "notebook": _json("n.ipynb", _notebook_document(), _notebook, writes=True),
        "SQuAD": _json("s.json", SQUAD, read_squad),
        "json table": _json("t.json", ROWS, read_table),
        "jsonl table": _bytes("t.jsonl", "\n".join(map(json.dumps, ROWS)).encode(), read_table),
        "csv table": _bytes("t.csv", csv, read_table),
        "tsv table": _bytes("t.tsv", csv.replace(b",", b"\t"), read_table),
        "CoNLL": _bytes("t.conll", conll, read_conll),
        "training state": _bytes("training-00000003.pt", state.getvalue(), _training),
        **_dictionaries(base),
    }
    for rope in ROPES:
        kinds[f"config, {rope['rope_type']}"] = _json(
            "config.json", SHORT | {"rope_parameters": BASE | rope}, _config
        )
    beside: dict[str, Any] = {
        "tokenizer_config.json": json.loads((tokenizer / "tokenizer_config.json").read_text())
        | {"added_tokens_decoder": decoder, "extra_special_tokens": {"image_token": "a"}},
        "special_tokens_map.json": {"eos_token": decoder["0"], "additional_special_tokens": ["a"]},
        "added_tokens.json": {"<|endoftext|>": 0, "<|new|>": 96},
    }
    for name, document in beside.items():
        folder = base / name.partition(".")[0]
        shutil.copytree(tokenizer, folder)
        if name != "tokenizer_config.json":
            (folder / "tokenizer_config.json").write_text("{}")
        kinds[name] = _json(name, document, _tokenizer_folder, folder=folder)
    return kinds
