"""A fifth head, added as a newcomer would: an entry in the registry and a class with its loss."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import pytest
import torch
from oracle import SIZES, randomize, tokens
from torch import Tensor, nn

import neox_lab as nl
from neox_lab.errors import ConfigError, HookError, InputError
from neox_lab.experiments.metrics import head_logit
from neox_lab.family import heads
from neox_lab.family.backbone import RunOptions
from neox_lab.family.losses import IGNORED
from neox_lab.model.output_heads import OUTPUT_HEADS, OutputHead, answers_per_text
from neox_lab.model.outputs import BaseModelOutputWithPast, TokenClassifierOutput

REGRESSION = OutputHead(
    name="token-regression",
    module="regressor",
    outputs=("mean", "spread"),
    hook="regressor",
    reader="the regression",
    meaning="two numbers a token",
    model="a model of numbers",
    logit="number",
    difference="difference of two numbers",
)


class TokenRegression(heads.GPTNeoXWithHead):
    """Two numbers a token."""

    head = "token-regression"

    def __init__(self, config: nl.GPTNeoXConfig) -> None:
        super().__init__(config)
        self.regressor = nn.Linear(config.hidden_size, 2)
        self._set_up(config)

    @staticmethod
    def count_targets(batch: Mapping[str, Tensor]) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **options: Unpack[RunOptions],
    ) -> Any:
        def answer(logits: Tensor, run: BaseModelOutputWithPast) -> TokenClassifierOutput:
            loss = None if labels is None else (logits[..., 0] - labels).square().mean()
            return TokenClassifierOutput(loss, logits, run.hidden_states, run.attentions)

        return self._run_head(
            answer,
            return_dict,
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            **options,
        )


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OUTPUT_HEADS, REGRESSION.name, REGRESSION)
    monkeypatch.setitem(heads.CLASSES, REGRESSION.name, TokenRegression)


@pytest.fixture
def model() -> TokenRegression:
    made = TokenRegression(nl.GPTNeoXConfig(**SIZES)).eval()
    randomize(made)
    return made


@torch.no_grad()
def by_hand(model: TokenRegression, ids: Tensor) -> Tensor:
    """Its numbers ``[batch, pos, 2]``, from the network and the matrix alone."""
    return model.regressor(model.gpt_neox(ids).last_hidden_state)


def test_it_runs_and_can_be_looked_into(model: TokenRegression) -> None:
    ids, labels = tokens(2, 5), torch.ones(2, 5)
    output = model(ids, labels=labels)
    torch.testing.assert_close(output.logits, by_hand(model, ids))
    torch.testing.assert_close(output.loss, (by_hand(model, ids)[..., 0] - 1).square().mean())
    as_tuple = model(ids, labels=labels, return_dict=False)
    assert torch.equal(as_tuple[0], output.loss) and torch.equal(as_tuple[1], output.logits)
    stopped = model(ids, stop_at_layer=1)
    assert torch.equal(stopped.last_hidden_state, model.gpt_neox(ids, stop_at_layer=1)[0])

    assert model.hook_names[-2:] == ("regressor.hook_in", "regressor.hook_out")
    table = model.hook_table().set_index("name")
    assert table.loc["regressor.hook_out", "shape"] == "[batch, pos, 2]"
    assert table.loc["regressor.hook_in", "meaning"] == "what the regression reads"
    _, cache = model.run_with_cache(ids)
    assert torch.equal(cache["regressor.hook_out"], output.logits)
    replaced = model.run_with_hooks(ids, [("regressor", lambda tensor, hook: 0 * tensor)])
    assert (replaced.logits == 0).all()
    assert model.check().ok.all()
    assert "regressor.hook_out" in repr(model)


def test_another_module_may_stand_in_place_of_the_matrix(model: TokenRegression) -> None:
    ids = tokens(2, 5)
    before = model(ids).logits
    model.regressor = nn.Sequential(model.regressor)  # type: ignore[assignment]
    assert torch.equal(model(ids).logits, before)


def test_its_outputs_are_found_by_name(model: TokenRegression) -> None:
    ids = tokens(2, 5)
    numbers = by_hand(model, ids)
    metric = head_logit(model.head, "spread", "mean", pos=1)
    assert metric.name == "difference of two numbers"
    bound = metric.bind(model, model.prepare_inputs(ids))
    torch.testing.assert_close(bound.per_row(numbers), numbers[:, 1, 1] - numbers[:, 1, 0])
    with pytest.raises(InputError, match=r"No label 'sprad'. Did you mean 'spread'"):
        head_logit(model.head, "sprad").bind(model, model.prepare_inputs(ids))
    language_model = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**SIZES))
    with pytest.raises(InputError, match="reads logits of a model of numbers"):
        metric.bind(language_model, language_model.prepare_inputs(ids))

    _, cache = model.run_with_cache(ids)
    parts = cache.get_full_resid_decomposition()
    shares = cache.logit_attrs(parts, "spread").sum(dim=0) + cache.logit_bias("spread")
    torch.testing.assert_close(shares, numbers[..., 1], atol=1e-4, rtol=1e-4)
    with pytest.raises(HookError, match="No label 'sum'"):
        cache.logit_attrs(parts, "sum")


def test_experiments_take_it(model: TokenRegression) -> None:
    clean, corrupted = tokens(1, 5), tokens(1, 5, seed=1)
    metric = head_logit(model.head, "spread", pos=-1)
    shares = nl.attribution.direct_logit_attribution(model, clean, "spread", pos=-1)
    assert shares.total == pytest.approx(float(by_hand(model, clean)[0, -1, 1]), abs=1e-4)
    swept = nl.patching.sweep(model, clean, corrupted, metric, "resid_pre", progress=False)
    _, cache = model.run_with_cache(clean)

    def patch(tensor: Tensor, hook: Any) -> None:
        tensor[:, 3] = cache["resid_pre", 1][:, 3]

    patched = model.run_with_hooks(corrupted, [("blocks.1.hook_resid_pre", patch)])
    assert float(swept.values[1, 3]) == pytest.approx(float(patched.logits[0, -1, 1]), abs=1e-4)


def test_it_is_saved_and_loaded(model: TokenRegression, tmp_path: Path) -> None:
    ids = tokens(2, 5)
    model.save_pretrained(tmp_path)
    nl.GPTNeoXTokenizerFast.from_pretrained(nl.gym.weights_directory()).save_pretrained(tmp_path)
    loaded = nl.load(tmp_path, head="token-regression")
    assert type(loaded) is TokenRegression
    assert loaded.tokenizer is not None
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    with pytest.raises(ConfigError, match="has no labels"):
        nl.load(tmp_path, head="token-regression", labels=["a"])
    fresh = nl.load(head="token-regression")  # on top of the built-in network
    assert torch.equal(fresh.gpt_neox.embed_in.weight, nl.load().gpt_neox.embed_in.weight)


def test_its_class_counts_its_targets() -> None:
    labels = torch.tensor([[IGNORED, 1, 2], [IGNORED, IGNORED, 3]])
    batch = {"input_ids": labels, "labels": labels}
    assert TokenRegression.count_targets(batch) == 3
    assert nl.GPTNeoXForTokenClassification.count_targets(batch) == 3
    assert nl.GPTNeoXForQuestionAnswering.count_targets(batch) == 2
    shifted = {"input_ids": labels, "labels": labels.flip(1)}
    assert nl.GPTNeoXForCausalLM.count_targets(shifted) == 1


def test_the_registry_describes_the_classes() -> None:
    config = nl.GPTNeoXConfig(**SIZES, num_labels=4)
    sizes = {"vocab": config.vocab_size, "label": 4}
    for name, entry in OUTPUT_HEADS.items():
        model = heads.CLASSES[name](config)
        assert model.head == name == entry.name
        assert model.output_head is getattr(model, entry.module)
        assert model.output_head.out_features == sizes.get(entry.axis) or int(entry.axis)
        labels = entry.labels(config)
        assert (labels is None) == (entry.axis == "vocab")
        assert labels is None or sorted(labels.values()) == list(range(len(labels)))
    assert [name for name in heads.CLASSES if answers_per_text(name)] == ["sequence-classification"]
    assert not answers_per_text("base")
