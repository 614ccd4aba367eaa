"""The training loop: the steps torch would take, resumed runs, early ends, bad losses."""

from __future__ import annotations

import copy
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import pair
from torch import Tensor

import neox_lab as nl
from neox_lab.data.batches import by_length, outputs, padded
from neox_lab.errors import CheckpointError, InputError, NeoxLabWarning, TrainingError
from neox_lab.family.losses import IGNORED
from neox_lab.interrupts import whole_answers
from neox_lab.tasks import TrainingSettings, checkpoints
from neox_lab.tasks.optimisation import rate
from neox_lab.tasks.training import TrainingResult, fit

HEADS = {
    "GPTNeoXForCausalLM": lambda ids: {"labels": [i if i % 3 else IGNORED for i in ids]},
    "GPTNeoXForTokenClassification": lambda ids: {"labels": [i % 2 for i in ids[:-1]] + [-100]},
    "GPTNeoXForSequenceClassification": lambda ids: {"labels": ids[-1] % 2},
    "GPTNeoXForQuestionAnswering": lambda ids: {
        "start_positions": ids[0] % len(ids),
        "end_positions": len(ids) - 1,
    },
}  # fmt: skip


def examples(name: str, count: int = 12) -> list[dict[str, Any]]:
    """Rows of random ids of different length with the labels of a head."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for row in range(count):
        ids = torch.randint(2, 211, (4 + row % 5,), generator=generator).tolist()
        found.append({"input_ids": ids, **HEADS[name](ids)})
    return found


def collate(rows: Any) -> dict[str, Tensor]:
    return padded(rows, 1)


def weights(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def loss_without_padding(theirs: Any, rows: list[dict[str, Any]]) -> Tensor:
    """Transformers' loss of a batch; of spans the mean of the losses of texts by themselves."""
    if "start_positions" in rows[0]:
        return torch.stack([theirs(**collate([row])).loss for row in rows]).mean()
    loss: Tensor = theirs(**collate(rows)).loss
    return loss


@pytest.mark.parametrize("name", HEADS)
def test_steps_are_those_of_transformers_and_torch(name: str) -> None:
    theirs, ours = pair(name, num_labels=2, classifier_dropout=0.0)
    rows = examples(name)
    settings = TrainingSettings(steps=5, batch_size=4, warm_up=0.4, weight_decay=0.1, clip=0.5)
    result = fit(ours, rows, collate, settings)

    theirs.train()
    decayed = [p for p in theirs.parameters() if p.dim() > 1]
    plain = [p for p in theirs.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=5e-4)
    for step, record in enumerate(result.history):
        epoch, index = divmod(step, 3)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(epoch))
        loss = loss_without_padding(theirs, [rows[i] for i in order[index * 4 : index * 4 + 4]])
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        assert record["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * ((step + 1) / 2 if step < 2 else 1 - (step - 2) / 3)
            assert record["learning_rate"] == pytest.approx(group["lr"])
        optimizer.step()
    theirs.eval()
    batch = {k: v for k, v in collate(rows).items() if k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        for one, other in zip(theirs(**batch).to_tuple(), ours(**batch).to_tuple(), strict=False):
            if isinstance(one, Tensor):
                if "Question" in name:  # equal up to a constant, which the loss does not see
                    one, other = (t - t.mean(dim=-1, keepdim=True) for t in (one, other))
                torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_a_batch_in_parts_is_one_batch(name: str) -> None:
    found = []
    rows = examples(name)
    for size, accumulate in ((12, 1), (4, 3), (1, 12)):
        ours = pair(name, num_labels=2, classifier_dropout=0.0)[1]
        settings = TrainingSettings(steps=2, batch_size=size, accumulate=accumulate, clip=1e9)
        result = fit(ours, rows, collate, settings)
        found.append((result.history[1]["loss"], result.history[1]["gradient_norm"]))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-4)


def test_the_same_seed_gives_the_same_weights_and_leaves_random_numbers_alone() -> None:
    name = "GPTNeoXForCausalLM"
    runs = []
    torch.manual_seed(5)
    expected = torch.rand(3)
    for seed in (0, 0, 2**60 + 1):
        ours = pair(name, hidden_dropout=0.2)[1]
        torch.manual_seed(5)
        fit(ours, examples(name), collate, TrainingSettings(steps=4, batch_size=4, seed=seed))
        assert torch.equal(torch.rand(3), expected)
        assert not ours.training
        assert all(p.grad is None for p in ours.parameters())
        runs.append(weights(ours))
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


@pytest.mark.parametrize(
    ("settings", "learning"),
    [
        ({"train": "head"}, ["classifier."]),
        ({"freeze_below": 2}, ["layers.2.", "final_layer_norm", "classifier."]),
        ({"freeze_below": 3}, ["final_layer_norm", "classifier."]),
    ],
)
def test_frozen_weights_stay(settings: dict[str, Any], learning: list[str]) -> None:
    name = "GPTNeoXForTokenClassification"
    ours = pair(name, num_labels=2)[1]
    before = weights(ours)
    fit(ours, examples(name), collate, TrainingSettings(steps=2, batch_size=4, **settings))
    after = weights(ours)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if any(part in key for part in learning)}
    assert all(p.requires_grad for p in ours.parameters())


def test_low_rank_additions_end_up_in_the_matrices() -> None:
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    name = "GPTNeoXForSequenceClassification"
    ours = pair(name, num_labels=2)[1]
    before = weights(ours)
    settings = TrainingSettings(steps=3, batch_size=4, train="lora", learning_rate=0.05)
    fit(ours, examples(name), collate, settings)
    after = weights(ours)
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert all("score" in key or "dense" in key or "query_key_value" in key for key in changed)
    key = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
    assert torch.linalg.matrix_rank(after[key] - before[key], rtol=1e-3) <= settings.lora_rank


def test_interrupting_returns_what_there_is() -> None:
    name = "GPTNeoXForCausalLM"
    ours = pair(name)[1]
    seen: list[int] = []

    def interrupting(rows: Any) -> dict[str, Tensor]:
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return collate(rows)

    result = fit(ours, examples(name), interrupting, TrainingSettings(steps=9, batch_size=4))
    assert (result.interrupted, result.steps, ours.training) == (True, 3, False)
    assert "interrupted" in repr(result)
    assert len(result.frame) == 3


def test_part_of_a_training_is_no_answer_where_all_is_asked_for(tmp_path: Path) -> None:
    name, settings = "GPTNeoXForCausalLM", TrainingSettings(steps=6, batch_size=4, save_every=9)
    ours, calls = pair(name)[1], []

    def interrupting(rows: Any) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return collate(rows)

    with pytest.raises(KeyboardInterrupt), whole_answers():
        fit(ours, examples(name), interrupting, settings, directory=tmp_path)
    result = fit(pair(name)[1], examples(name), interrupting, settings, directory=tmp_path)
    assert len(calls) == 4 + 3, "what was done was saved"
    assert (result.interrupted, result.steps) == (False, 6)


def test_an_evaluation_that_was_interrupted_is_no_evaluation() -> None:
    """Generation alone would return what there is, and training would go on."""
    name = "GPTNeoXForCausalLM"
    ours = pair(name)[1]

    def evaluate() -> dict[str, float]:
        written = ours.generate(torch.tensor([[3, 4]]), max_new_tokens=6, streamer=Leaving())
        return {"tokens": float(written.shape[1])}

    class Leaving:
        """Is told the prompt, then tokens."""

        told = 0

        def put(self, value: Tensor) -> None:
            self.told += 1
            if self.told == 3:
                raise KeyboardInterrupt

        def end(self) -> None:
            pass

    settings = TrainingSettings(steps=3, batch_size=4, evaluate_every=1)
    result = fit(ours, examples(name), collate, settings, evaluate=evaluate)
    assert result.interrupted and not any("validation" in column for column in result.frame)


def test_interrupting_before_the_first_step() -> None:
    def interrupting(rows: Any) -> dict[str, Tensor]:
        raise KeyboardInterrupt

    result = fit(pair()[1], examples("GPTNeoXForCausalLM"), interrupting, TrainingSettings(steps=9))
    assert (result.interrupted, result.steps, len(result.frame)) == (True, 0, 0)
    assert "0 steps" in repr(result)
    assert result.to_png()[:4] == b"\x89PNG"


@pytest.mark.parametrize("inside", [False, True])
def test_an_interrupted_run_goes_on(inside: bool, tmp_path: Path) -> None:
    """Also if the interrupt came between a step and its evaluation, which is then not saved."""
    name, settings = "GPTNeoXForCausalLM", TrainingSettings(steps=6, batch_size=4, save_every=2)
    calls: list[int] = []

    def interrupting(rows: Any) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) == 4 and not inside:
            raise KeyboardInterrupt
        return collate(rows)

    def evaluate() -> dict[str, float]:
        if inside:
            raise KeyboardInterrupt
        return {"loss": 1.0}

    ours = pair(name)[1]
    where = tmp_path / "run"
    fit(ours, examples(name), interrupting, settings, evaluate=evaluate, directory=where)
    (state,) = where.glob("*.pt")
    assert state.name.startswith(f"training-{2 if inside else 3:08d}-")
    runs = []
    for directory in (where, tmp_path / "whole"):
        ours = pair(name)[1]
        fit(ours, examples(name), collate, settings, directory=directory)
        runs.append(weights(ours))
    assert equal(*runs)


def test_early_stopping_goes_back_to_the_best_weights() -> None:
    name = "GPTNeoXForCausalLM"
    ours = pair(name)[1]
    losses = iter([3.0, 2.0, 2.5, 2.6, 1.0])
    kept: list[dict[str, Tensor]] = []

    def evaluate() -> dict[str, float]:
        assert not ours.training
        kept.append(weights(ours))
        return {"loss": next(losses)}

    settings = TrainingSettings(steps=20, batch_size=4, evaluate_every=1, patience=2)
    result = fit(ours, examples(name), collate, settings, evaluate=evaluate)
    assert result.steps == 4
    assert result.best == {"loss": 2.0}
    assert equal(weights(ours), kept[1])


def test_a_first_evaluation_that_is_nan_is_not_the_best() -> None:
    name = "GPTNeoXForCausalLM"
    losses = iter([math.nan, 3.0, math.nan, 4.0, 1.0])
    settings = TrainingSettings(steps=20, batch_size=4, evaluate_every=1, patience=2)
    result = fit(
        pair(name)[1], examples(name), collate, settings, evaluate=lambda: {"loss": next(losses)}
    )
    assert (result.steps, result.best) == (4, {"loss": 3.0})


def test_a_loss_that_is_no_number_leaves_the_weights_as_they_were() -> None:
    name = "GPTNeoXForSequenceClassification"
    ours = pair(name, num_labels=1, problem_type="regression")[1]
    rows = [{**row, "labels": 1.0} for row in examples(name)]
    rows[7]["labels"] = math.nan
    before = weights(ours)
    with pytest.raises(TrainingError, match=r"At step 1 the loss is nan, in a batch of rows .*7"):
        fit(ours, rows, collate, TrainingSettings(steps=3, batch_size=4, accumulate=3))
    assert equal(before, weights(ours))
    assert all(p.grad is None for p in ours.parameters())


def run(directory: Path, steps: int = 30, **settings: Any) -> Any:
    """Train for a while with dropout, keeping the run in ``directory``; the model and result."""
    ours = pair("GPTNeoXForCausalLM", hidden_dropout=0.1)[1]
    chosen = TrainingSettings(steps=steps, batch_size=4, save_every=5, **settings)
    result = fit(ours, examples("GPTNeoXForCausalLM"), collate, chosen, directory=directory)
    return ours, result


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    script = (
        "import sys; sys.path[:0] = sys.argv[1:4]\n"
        "import test_training as t, time, pathlib, torch\n"
        f"torch.set_num_threads({torch.get_num_threads()})  # sums depend on their order\n"
        "plain = t.collate\n"
        "t.collate = lambda rows: (time.sleep(0.05), plain(rows))[1]\n"
        "t.run(pathlib.Path(sys.argv[4]))\n"
    )
    root = Path(__file__).resolve().parents[2]
    tests = root / "tests"
    places = [str(p) for p in (root, tests, tests / "tasks", tmp_path / "killed")]
    process = subprocess.Popen([sys.executable, "-c", script, *places], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 600
    while not list((tmp_path / "killed").glob("training-*.pt")):
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stderr is not None
    process.stderr.close()
    (state,) = (tmp_path / "killed").glob("training-*.pt")
    assert int(state.stem.split("-")[1]) < 30
    again, result = run(tmp_path / "killed")
    assert [record["step"] for record in result.history] == list(range(1, 31))
    assert equal(weights(whole), weights(again))


def test_a_run_that_is_done_has_nothing_left_to_do(tmp_path: Path) -> None:
    """Even if it ended between two checkpoints, and went back to its best weights."""
    losses = iter([3.0, 1.0, 2.0, 2.0])
    runs = []
    for _ in range(2):
        ours = pair("GPTNeoXForCausalLM")[1]
        settings = TrainingSettings(steps=9, batch_size=4, evaluate_every=1, patience=2)
        result = fit(
            ours,
            examples("GPTNeoXForCausalLM"),
            collate,
            settings,
            evaluate=lambda: {"loss": next(losses)},
            directory=tmp_path,
        )
        runs.append((weights(ours), result))
    assert runs[0][1].history == runs[1][1].history
    assert runs[1][1].best == {"loss": 1.0}
    assert equal(runs[0][0], runs[1][0])


def test_a_directory_of_another_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path, steps=5)
    with pytest.raises(CheckpointError, match="other settings"):
        run(tmp_path, steps=6)
    with pytest.raises(CheckpointError, match="other settings"):
        run(tmp_path, steps=5, train="head")
    (state,) = tmp_path.glob("*.pt")
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="not a readable training state"):
        run(tmp_path, steps=5)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8, 0.99])
def test_a_damaged_state_is_not_gone_on_with(tmp_path: Path, place: float) -> None:
    run(tmp_path, steps=5)
    (state,) = tmp_path.glob("*.pt")
    content = bytearray(state.read_bytes())
    content[int(place * len(content))] ^= 1
    state.write_bytes(content)
    with pytest.raises(CheckpointError, match="its content is not what was written"):
        run(tmp_path, steps=5)


def test_files_that_training_did_not_write_are_left_alone(tmp_path: Path) -> None:
    mine = [
        tmp_path / name for name in ("training-notes.pt", "training-1-0.pt", "training-data.pt")
    ]
    for path in mine:
        path.write_text("mine")
    run(tmp_path, steps=11)
    run(tmp_path, steps=11)
    assert all(path.read_text() == "mine" for path in mine)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_directory_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ours = pair("GPTNeoXForCausalLM")[1]
    before = weights(ours)
    for place in (tmp_path / "file", tmp_path / "file" / "run", "/proc/nowhere"):
        with pytest.raises(CheckpointError, match="Cannot keep the run in"):
            fit(ours, examples("GPTNeoXForCausalLM"), collate, directory=place)
    assert equal(before, weights(ours))


def begun(directory: Path, **overrides: Any) -> Any:
    """A model trained for two steps with its run in ``directory``."""
    ours = pair("GPTNeoXForCausalLM", **overrides)[1]
    settings = TrainingSettings(steps=2, batch_size=4)
    fit(ours, examples("GPTNeoXForCausalLM"), collate, settings, directory=directory)
    return ours


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ({"seed": 1}, "weights"),
        ({"use_parallel_residual": False}, "structure"),
        ({"hidden_size": 32}, "structure and weights"),
        ({"intermediate_size": 32}, "structure and weights"),
    ],
)
def test_a_run_of_another_model_is_refused_before_anything_is_touched(
    tmp_path: Path, other: dict[str, Any], differs: str
) -> None:
    begun(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    ours = pair("GPTNeoXForCausalLM", **other)[1]
    untouched = weights(ours)
    settings = TrainingSettings(steps=2, batch_size=4)
    with pytest.raises(CheckpointError, match=f"another model: {differs} differ"):
        fit(ours, examples("GPTNeoXForCausalLM"), collate, settings, directory=tmp_path)
    assert equal(untouched, weights(ours))
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_the_model_that_a_run_left_may_go_on_with_it(tmp_path: Path) -> None:
    """As it was when the run began, and as the run left it, over and over."""
    left = begun(tmp_path)
    settings = TrainingSettings(steps=2, batch_size=4)
    for ours in (left, pair("GPTNeoXForCausalLM")[1], left):
        fit(ours, examples("GPTNeoXForCausalLM"), collate, settings, directory=tmp_path)
        assert equal(weights(left), weights(ours))


def test_a_model_that_was_stopped_within_a_step_may_go_on(tmp_path: Path) -> None:
    """Its weights are in no state; a copy of it, of which nothing is known, is another model."""
    name = "GPTNeoXForCausalLM"
    settings = TrainingSettings(steps=4, batch_size=4, save_every=1, evaluate_every=3)
    stopped = pair(name)[1]
    stop = [False, True]  # of the second evaluation, after the last step

    def evaluate() -> dict[str, float]:
        if stop.pop(0):
            raise KeyboardInterrupt
        return {"loss": 1.0}

    rest: Any = (examples(name), collate, settings)
    assert fit(stopped, *rest, evaluate=evaluate, directory=tmp_path).interrupted
    with pytest.raises(CheckpointError, match="another model: weights differ"):
        fit(copy.deepcopy(stopped), *rest, directory=tmp_path)
    fit(stopped, *rest, directory=tmp_path)
    whole = pair(name)[1]
    fit(whole, *rest)
    assert equal(weights(whole), weights(stopped))


def test_a_head_that_was_drawn_anew_is_no_other_model(tmp_path: Path) -> None:
    name, settings = "GPTNeoXForSequenceClassification", TrainingSettings(steps=2, batch_size=4)
    trained = []
    for seed in range(2):
        ours = pair(name)[1]
        torch.nn.init.normal_(ours.score.weight, generator=torch.Generator().manual_seed(seed))
        fit(ours, examples(name), collate, settings, directory=tmp_path)
        trained.append(weights(ours))
    assert equal(*trained)


def test_a_training_state_of_before_is_taken_with_a_warning(tmp_path: Path) -> None:
    """It does not say which model it belongs to; other shapes are refused all the same."""
    left = weights(begun(tmp_path))
    (path,) = tmp_path.glob("*.pt")
    state = torch.load(path, weights_only=True)
    del state["model"]
    path.unlink()
    torch.save(state, tmp_path / "training-00000002.pt")
    with pytest.warns(NeoxLabWarning, match="does not say which model"):
        assert equal(left, weights(begun(tmp_path)))
    with (
        pytest.warns(NeoxLabWarning),
        pytest.raises(CheckpointError, match="another model"),
    ):
        begun(tmp_path, intermediate_size=32)


def test_a_run_over_other_fixed_weights_is_refused(tmp_path: Path) -> None:
    name, settings = "GPTNeoXForTokenClassification", TrainingSettings(steps=1, train="head")
    for seed in (0, 0, 1):
        ours = pair(name, num_labels=2, seed=seed)[1]
        context = pytest.raises(CheckpointError, match="another model") if seed else nullcontext()
        with context:
            fit(ours, examples(name), collate, settings, directory=tmp_path)


def test_mixed_precision_learns() -> None:
    name = "GPTNeoXForCausalLM"
    ours = pair(name)[1]
    settings = TrainingSettings(steps=20, batch_size=12, precision="bfloat16", learning_rate=5e-3)
    result = fit(ours, examples(name), collate, settings)
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 2
    assert ours.dtype == torch.float32


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"warm_up": 1.5}, "warm_up=1.5"),
        ({"decay": "square"}, "decay='square'"),
        ({"train": "body"}, "train='body'"),
        ({"precision": "int8"}, "precision='int8'"),
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainingSettings(**wrong)


def test_settings_that_do_not_fit_the_model() -> None:
    ours = pair()[1]
    with pytest.raises(InputError, match="freeze_below=9; the model has 3 layers"):
        fit(ours, examples("GPTNeoXForCausalLM"), collate, TrainingSettings(freeze_below=9))
    with pytest.raises(InputError, match="no examples"):
        fit(ours, [], collate)
    with pytest.raises(InputError, match="patience=2 waits for validation data"):
        fit(ours, examples("GPTNeoXForCausalLM"), collate, TrainingSettings(patience=2))
    with pytest.raises(InputError, match="best='f1'; measured were loss"):
        fit(
            ours,
            examples("GPTNeoXForCausalLM"),
            collate,
            TrainingSettings(steps=1, patience=1),
            evaluate=lambda: {"loss": 1.0},
            best="f1",
        )


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
def test_the_learning_rate_rises_and_falls(decay: Any) -> None:
    settings = TrainingSettings(learning_rate=1.0, warm_up=0.2, decay=decay)
    rates = [rate(step, 50, settings) for step in range(50)]
    assert rates[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert max(rates) == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert (rates[-1] == 1.0) == (decay == "constant")
    assert rates[-1] > 0


def test_batches_are_padded_on_the_right() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [5, 6, 7], "_note": "x", "start_positions": 2},
        {"input_ids": [8], "labels": [8], "_note": "y", "start_positions": 0},
    ]
    batch = padded(rows, 1)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["start_positions"].tolist() == [2, 0]
    assert "_note" not in batch


@pytest.mark.parametrize("name", HEADS)
def test_outputs_do_not_depend_on_the_batch(name: str) -> None:
    """Two labels and rows of two tokens: an axis of labels is not one of positions."""
    ours = pair(name, num_labels=2)[1]
    rows: list[Any] = [{"input_ids": [4, 9]}, {"input_ids": [7, 8]}, {"input_ids": [3, 5, 6, 9]}]
    names = ["start_logits"] if "Question" in name else ["logits"]
    alone = outputs(ours, rows, 1, names)
    for size in (2, 3):
        for one, other in zip(alone, outputs(ours, rows, size, names), strict=True):
            torch.testing.assert_close(one[names[0]], other[names[0]], rtol=0, atol=1e-5)
    assert list(by_length(ours, [len(row["input_ids"]) for row in rows], 2)) == [[2, 0], [1]]


def test_a_result_shows_itself() -> None:
    name = "GPTNeoXForCausalLM"
    settings = TrainingSettings(steps=4, batch_size=6, evaluate_every=2)
    result = fit(pair(name)[1], examples(name), collate, settings, evaluate=lambda: {"loss": 2.0})
    assert isinstance(result, TrainingResult)
    frame = result.frame
    assert frame["validation_loss"].tolist()[1::2] == [2.0, 2.0]
    assert frame["validation_loss"].isna().tolist() == [True, False, True, False]
    assert (frame["loss"] != 2.0).all()
    shown = result.view().frame.query("line == 'validation loss'")
    assert shown["value"].tolist() == [2.0, 2.0]
    assert result.to_png()[:4] == b"\x89PNG"
    assert "text/html" in result._repr_mimebundle_()
    assert "validation loss" in repr(result)
    with pytest.raises(AttributeError):
        _ = result.nothing


def test_the_front_door_makes_heads_with_labels() -> None:
    model = nl.load(head="sequence-classification", labels=["bad", "good"])
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert model.score.weight.shape[0] == 2
    for wrong in (["a", "a"], "ab", []):
        with pytest.raises(nl.errors.ConfigError, match="labels="):
            nl.load(head="token-classification", labels=wrong)
    with pytest.raises(nl.errors.ConfigError, match="has no labels"):
        nl.load(labels=["a"])


def test_a_run_does_not_go_on_with_another_dropout() -> None:
    settings = TrainingSettings()
    prints = {
        checkpoints.fingerprint(settings, [], [], {}, dropout)
        for dropout in ({}, {"a": 0.0}, {"a": 0.5}, {"a": 0.1}, {"b": 0.1})
    }
    assert len(prints) == 4, "no dropout is no dropout"


def test_a_loss_and_a_score_never_share_a_scale() -> None:
    record = {"step": 1.0, "loss": 2.0, "validation_loss": 2.5}
    scores = {"validation_f1": 0.4, "validation_accuracy": 0.5}
    for watched, panels in (("loss", ["loss", "accuracy"]), ("f1", ["loss", "f1", "accuracy"])):
        view = TrainingResult([record | scores], 1, False, {}, 1.0, watched).view()
        assert view.panels == panels
        for name, line in view.lines.items():
            assert (view.panels[view._panel(line)] == "loss") == ("loss" in name)
