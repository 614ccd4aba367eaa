"""What libraries of dictionaries call things that have another name here: for messages.

SAELens, sparsify, dictionary_learning and circuit-tracer; see ``other_names``.
"""

from __future__ import annotations

from neox_lab.other_names import ENDS_BY_ITSELF, Names

_LOADED = "nl.sae.load(source)"
_TRAINED = "nl.sae.train(model, texts, site=site, latents=latents, k=k)"
_SPLICED = "model.spliced(dictionary)"
_ANY_MODEL = "nl.load(name); any model here takes dictionaries, with model.spliced(dictionary)"
_COLLECTED = "nl.activations.collect(model, texts, site, folder)"
_LISTED = "nl.sae.available(source)"
_FIRST = "the first argument here, a folder or a repository on the hub"
_IN_FILES = "needless here: the files say it"
_OF_MODEL = "needless here: the model says it"
_WIDE, _LATENTS, _SITE = "dictionary.d_in", "dictionary.latents", "dictionary.site_in"

SAE_ROOM = (
    Names(
        {
            **dict.fromkeys(
                (
                    "SAE", "StandardSAE", "TopKSAE", "JumpReLUSAE", "GatedSAE", "BatchTopKSAE",
                    "Transcoder", "SkipTranscoder", "JumpReLUTranscoder", "SAEConfig",
                ),
                _LOADED,
            ),
            **dict.fromkeys(("HookedSAETransformer", "SAETransformerBridge"), _ANY_MODEL),
            **dict.fromkeys(
                (
                    "LanguageModelSAETrainingRunner", "LanguageModelSAERunnerConfig", "SAETrainer",
                    "TrainingSAE", "StandardTrainingSAEConfig", "TopKTrainingSAEConfig",
                    "BatchTopKTrainingSAEConfig", "JumpReLUTrainingSAEConfig",
                ),
                _TRAINED,
            ),
            "ActivationsStore": _COLLECTED,
            "get_pretrained_saes_directory": _LISTED,
            "run_evals": "dictionary.check(model, texts)",
        },
        "SAELens", "",
    ),
    Names(
        {
            **dict.fromkeys(("Sae", "SparseCoder", "Clt"), _LOADED),
            **dict.fromkeys(("SaeConfig", "SparseCoderConfig", "TrainConfig", "Trainer"), _TRAINED),
        },
        "sparsify", "",
    ),
    Names(
        {
            **dict.fromkeys(
                (
                    "AutoEncoder", "AutoEncoderTopK", "GatedAutoEncoder", "JumpReluAutoEncoder",
                    "BatchTopKSAE", "CrossCoder", "BatchTopKCrossCoder",
                ),
                _LOADED,
            ),
            "trainSAE": _TRAINED,
            "ActivationBuffer": _COLLECTED,
        },
        "dictionary_learning", "",
    ),
    Names(
        {
            **dict.fromkeys(("CrossLayerTranscoderSet", "TranscoderSet"), _LOADED),
            "ReplacementModel": _SPLICED,
            "attribute": "nl.features.circuit(model, dictionaries, text, metric)",
        },
        "circuit-tracer", "",
    ),
)  # fmt: skip
"""Of the room ``nl.sae``."""

DICTIONARY = (
    Names(
        {
            "cfg": f"{_LATENTS}, dictionary.kind, {_SITE} and others here, without a configuration",
            "d_sae": _LATENTS,
            "hook_name": _SITE,
            "from_pretrained": _LOADED,
            "load_from_pretrained": _LOADED,
            "load_from_disk": _LOADED,
            "save_model": 'dictionary.export(folder, "sae_lens")',
            "use_error_term": "model.spliced(dictionary, error=True)",
            "run_time_activation_fn_in": "needless here: dictionary.normalise is part of encode",
            "fold_W_dec_norm": "needless here: dictionary.W_dec and activations are as in the file",
            "W_gate": "dictionary.activation",
            "threshold": "dictionary.activation",
            "hook_layer": _SITE,
        },
        "SAELens", "",
    ),
    Names(
        {
            "num_latents": _LATENTS,
            "save_to_disk": 'dictionary.export(folder, "sparsify")',
            "load_from_hub": _LOADED,
            "load_many": _LISTED,
            "select_topk": "dictionary.encode(x)",
            "pre_acts": "dictionary.pre(x)",
        },
        "sparsify", "",
    ),
    Names(
        {
            "dict_size": _LATENTS,
            "activation_dim": _WIDE,
            "decoder": "dictionary.W_dec",
        },
        "dictionary_learning", "",
    ),
)  # fmt: skip
"""Of a dictionary."""

_DENSE = "codes.dense()"
CODES = Names(
    {
        "shape": f"{_DENSE}.shape; of what is kept, codes.indices.shape",
        "topk": "codes.indices and codes.values, the largest first",
        "nonzero": "codes.indices, where codes.values is not 0",
        "l0": "codes.count",
        **dict.fromkeys(
            ("to_dense", "max", "mean", "sum", "norm", "squeeze", "argmax", "device", "dtype"),
            _DENSE,
        ),
        **dict.fromkeys(("cpu", "cuda", "to", "detach", "numpy", "float"), _DENSE),
        **dict.fromkeys(("acts", "top_acts"), "codes.values"),
        "top_indices": "codes.indices",
    },
    "SAELens", "",
)  # fmt: skip
"""Of the active features of tokens, which elsewhere are a matrix."""

WITH_DICTIONARIES = Names(
    {
        "add_sae": _SPLICED,
        "saes": _SPLICED,
        "run_with_saes": _SPLICED,
        "run_with_cache_with_saes": _SPLICED,
        "run_with_hooks_with_saes": _SPLICED,
        "acts_to_saes": _SPLICED,
        "reset_saes": ENDS_BY_ITSELF,
    },
    "SAELens", "",
)  # fmt: skip
"""Of a model that takes dictionaries."""

DICTIONARY_ARGUMENTS = (
    Names(
        {
            "release": _FIRST,
            "sae_id": "subfolder=",
            "use_error_term": "error=",
            "saes": _SPLICED,
            "reset_saes_end": ENDS_BY_ITSELF,
            **dict.fromkeys(("hook_name", "hook_point"), "site="),
            "hook_layer": "layer=, or the second part of site=",
            "d_sae": "latents=",
            "expansion_factor": "latents=",
            "d_in": _OF_MODEL,
            "model_name": "nl.load(name)",
            "architecture": "kind=",
            "activation_fn": "kind=",
            "apply_b_dec_to_input": "subtracts_b_dec=",
            "normalize_activations": _IN_FILES,
            "converter": _IN_FILES,
            "training_tokens": "steps= and batch_size=",
            "train_batch_size_tokens": "batch_size=",
            "dataset_path": "texts=",
            **dict.fromkeys(("lr", "l1_coefficient"), "recipe=nl.sae.Recipe()"),
        },
        "SAELens", "",
    ),
    Names(
        {
            "hookpoint": "site=",
            "hookpoints": "site=",
            "num_latents": "latents=",
            "decoder": _IN_FILES,
            "transcode": "site_out=",
            "skip_connection": "skip=",
            "save_dir": "to=",
        },
        "sparsify", "",
    ),
    Names(
        {
            "dict_size": "latents=",
            "activation_dim": _OF_MODEL,
            "submodule": "site=",
            "trainer_configs": "recipe=nl.sae.Recipe()",
        },
        "dictionary_learning", "",
    ),
)  # fmt: skip
"""Of calls that read, train or take dictionaries."""
