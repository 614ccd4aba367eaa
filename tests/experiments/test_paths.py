"""Path patching against the definition, carried out with hooks, one path at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_attribution import CLASSES, LM, LM_METRIC, build, close, prompts, value
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import InputError
from neox_lab.experiments.paths.path_patching import edge_sweep, path_patch
from neox_lab.experiments.paths.path_runs import PathRuns

PARTS = {"q": "hook_q_input", "k": "hook_k_input", "v": "hook_v_input"}


class Runs:
    """Both runs' activations, and what each writer changes."""

    def __init__(self, model: Any, metric: Any, clean: Any, corrupted: Any) -> None:
        self.model, self.metric, self.corrupted = model, metric, corrupted
        names = ["hook_embed", "blocks.*.attn.hook_result", "blocks.*.hook_mlp_out"]
        names += ["blocks.*.attn.hook_z"]
        _, self.there = model.run_with_cache(clean["input_ids"], names, **clean)
        _, self.here = model.run_with_cache(corrupted["input_ids"], names, **corrupted)

    def change(self, writer: str) -> Tensor:
        if writer == "embed":
            return self.there["hook_embed"] - self.here["hook_embed"]
        if writer.startswith("MLP"):
            layer = int(writer[3:])
            return self.there["mlp_out", layer] - self.here["mlp_out", layer]
        layer, head = int(writer[1]), int(writer[3])
        results = (cache["result", layer][:, :, head] for cache in (self.there, self.here))
        return next(results) - next(results)

    def along_edge(self, writer: str, reader: str) -> Tensor:
        """The metric of each row with one edge patched: the change added to one reader's input."""
        change = self.change(writer)
        if reader == "logits":
            name, head = f"blocks.{self.model.config.num_hidden_layers - 1}.hook_resid_post", None
        elif reader.startswith("MLP"):
            name, head = f"blocks.{reader[3:]}.hook_mlp_in", None
        else:
            name, head = f"blocks.{reader[1]}.{PARTS[reader[5]]}", int(reader[3])

        def add(tensor: Tensor, _: Any) -> None:
            (tensor if head is None else tensor[:, :, head]).add_(change)

        return value(self.model, self.metric, self.corrupted, fwd_hooks=[(name, add)])

    def wang(self, senders: list[str], receivers: list[str], mlps: bool) -> Tensor:
        """Three runs as in Wang et al.: freeze, record receivers, run with receivers set."""
        recorded: dict[str, Tensor] = {}

        def freeze_heads(z: Tensor, hook: Any) -> Tensor:
            z = self.here[hook.name].clone()
            for sender in senders:
                if sender[0] == "L" and int(sender[1]) == hook.layer:
                    z[:, :, int(sender[3])] = self.there[hook.name][:, :, int(sender[3])]
            return z

        def freeze_mlps(out: Tensor, hook: Any) -> Tensor:
            recorded[hook.name] = out.clone()
            if f"MLP{hook.layer}" in senders:
                return self.there[hook.name]
            return out if mlps else self.here[hook.name]

        def embed(tensor: Tensor, _: Any) -> Tensor:
            return self.there["hook_embed"] if "embed" in senders else tensor

        def record(tensor: Tensor, hook: Any) -> None:
            recorded[hook.name] = tensor.clone()

        last = f"blocks.{self.model.config.num_hidden_layers - 1}.hook_resid_post"
        hooks = [("hook_embed", embed), ("blocks.*.attn.hook_z", freeze_heads)]
        hooks += [("blocks.*.hook_mlp_out", freeze_mlps), (last, record)]
        hooks += [(f"blocks.*.attn.hook_{part}", record) for part in PARTS]
        value(self.model, self.metric, self.corrupted, fwd_hooks=hooks)
        final = recorded[last]
        _, plain = self.model.run_with_cache(self.corrupted["input_ids"], [last], **self.corrupted)

        setting: list[tuple[str, Any]] = []
        for receiver in receivers:
            if receiver == "logits":
                setting.append((last, lambda t, _: t + final - plain[last]))
            elif receiver.startswith("MLP"):
                name = f"blocks.{receiver[3:]}.hook_mlp_out"
                setting.append((name, lambda t, hook: recorded[hook.name]))
            else:
                head = int(receiver[3])

                def put(tensor: Tensor, hook: Any, head: int = head) -> None:
                    tensor[:, :, head] = recorded[hook.name][:, :, head]

                setting.append((f"blocks.{receiver[1]}.attn.hook_{receiver[5]}", put))
        return value(self.model, self.metric, self.corrupted, fwd_hooks=setting)


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("parallel", [True, False])
def test_every_edge(parallel: bool, pad: str) -> None:
    model = build(use_parallel_residual=parallel, num_hidden_layers=2, num_attention_heads=2)
    clean, corrupted = prompts(1, pad), prompts(0, pad)
    runs = Runs(model, LM_METRIC, clean, corrupted)
    result = edge_sweep(model, clean, corrupted, LM_METRIC)
    assert result.axes == ("writer", "reader")
    assert result.samples is not None
    tried = 0
    for row, writer in enumerate(result.labels["writer"]):
        for column, reader in enumerate(result.labels["reader"]):
            found = result.samples[:, row, column]
            if found.isnan().all():
                continue
            close(found, runs.along_edge(writer, reader))
            tried += 1
    own = 0 if parallel else 2 * 2  # in sequential blocks heads write to their own block's MLP
    assert tried == 14 + 7 * 3 + 7 + own
    assert result.clean == pytest.approx(float(value(model, LM_METRIC, clean).mean()), abs=1e-5)
    assert result.corrupted == pytest.approx(
        float(value(model, LM_METRIC, corrupted).mean()), abs=1e-5
    )


@pytest.mark.parametrize("name", CLASSES)
def test_edges_of_other_heads_of_the_model(name: str) -> None:
    model, metric = build(name), CLASSES[name]
    clean, corrupted = prompts(1), prompts(0)
    runs = Runs(model, metric, clean, corrupted)
    result = edge_sweep(
        model, clean, corrupted, metric, ["embed", "L0H1", "MLP1"], ["L1H2.v", "MLP2", "logits"]
    )
    assert result.samples is not None
    for row, writer in enumerate(["embed", "L0H1", "MLP1"]):
        for column, reader in enumerate(["L1H2.v", "MLP2", "logits"]):
            if (writer, reader) == ("MLP1", "L1H2.v"):
                assert result.values[row, column].isnan()
            else:
                close(result.samples[:, row, column], runs.along_edge(writer, reader))


RECEIVERS = [
    ["logits"],
    ["L2H0.q", "L2H1.k", "L2H1.q"],
    ["L1H0.v", "MLP1", "L2H3.q"],
    ["MLP2", "logits"],
]


@pytest.mark.parametrize("through", ["nothing", "mlps"])
@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("receivers", RECEIVERS, ids="+".join)
def test_paths_as_defined(receivers: list[str], parallel: bool, through: Any) -> None:
    model = build(use_parallel_residual=parallel)
    clean, corrupted = prompts(1), prompts(0)
    runs = Runs(model, LM_METRIC, clean, corrupted)
    senders = ["embed", "L0H0", "L0H3", "MLP0", "L1H2", ["L0H1", "MLP0", "L1H0"]]
    result = path_patch(model, clean, corrupted, LM_METRIC, senders, receivers, through=through)
    assert result.labels == {"sender": [*senders[:5], "L0H1 + MLP0 + L1H0"]}
    assert result.samples is not None
    for at, sender in enumerate(senders):
        group = [sender] if isinstance(sender, str) else sender
        close(result.samples[:, at], runs.wang(group, receivers, through == "mlps"))


def test_heads_have_a_map_and_any_budget_the_same_numbers() -> None:
    model, clean, corrupted = build(), prompts(1), prompts(0)
    whole = path_patch(model, clean, corrupted, LM_METRIC)
    assert whole.axes == ("layer", "head")
    for size in (1, 40):
        part = path_patch(model, clean, corrupted, LM_METRIC, tokens_at_once=size)
        close(part.values, whole.values)
    edges = edge_sweep(model, clean, corrupted, LM_METRIC, "heads", ["logits", "L2H0"])
    some = edge_sweep(
        model, clean, corrupted, LM_METRIC, "heads", ["logits", "L2H0"], tokens_at_once=30
    )
    close(some.values, edges.values)
    close(edges.values[:, 0].reshape(3, 4), whole.values)  # the logits were named first


def test_an_interrupt_keeps_what_is_done() -> None:
    given = (build(), prompts(1), prompts(0), LM_METRIC)
    for question in (path_patch, edge_sweep):
        whole = question(*given, "heads", ["L2H0", "MLP2"])
        for left in (3, 10**6):  # in the middle of the top, and at once

            def stop(done: int, total: int, left: int = left) -> None:
                assert 0 < done <= total
                if total - done <= left:
                    raise KeyboardInterrupt

            part = question(*given, "heads", ["L2H0", "MLP2"], tokens_at_once=28, progress=stop)
            assert whole.complete and not part.complete
            known = part.values.isfinite()
            assert bool(known.any()) == (left == 3) and known.sum() < whole.values.isfinite().sum()
            assert torch.equal(part.values[known], whole.values[known])
            assert "Interrupted" in repr(part)


def test_an_interrupt_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_runs: object, _report: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PathRuns, "run", stop)
    for question in (path_patch, edge_sweep):
        part = question(build(), prompts(1), prompts(0), LM_METRIC, "heads", ["L2H0", "MLP2"])
        assert not part.complete
        assert part.values.isnan().all()


def test_everything_sent_to_the_logits_is_the_clean_run() -> None:
    model, clean, corrupted = build(), prompts(1), prompts(0)
    result = path_patch(model, clean, corrupted, LM_METRIC, [["all"]])
    assert float(result.values[0]) == pytest.approx(result.clean, abs=1e-4)
    assert result.clean != pytest.approx(result.corrupted, abs=1e-2)


def test_a_function_is_a_metric_too() -> None:
    model, clean, corrupted = build(), prompts(1), prompts(0)

    def metric(logits: Tensor) -> Tensor:
        return logits[:, -1].logsumexp(dim=-1).mean()

    result = path_patch(model, clean, corrupted, metric, ["embed", "L0H1"], ["L1H0", "logits"])
    assert result.samples is None
    runs = Runs(model, LM_METRIC, clean, corrupted)
    hooks = [("blocks.2.hook_resid_post", lambda t, _: t + runs.change("L0H1"))]
    output = model.run_with_hooks(corrupted["input_ids"], hooks, **corrupted)
    only = path_patch(model, clean, corrupted, metric, ["L0H1"])
    assert float(only.values[0]) == pytest.approx(float(metric(output.logits.detach())), abs=1e-4)


@pytest.mark.parametrize("part", PARTS)
def test_edges_between_heads_are_direct_paths(part: Any) -> None:
    """The functions by TransformerLens's names have a way of their own to the same numbers."""
    model, clean, corrupted = build(), prompts(1, "none"), prompts(0, "none")
    caches = [model.run_with_cache(side["input_ids"])[1] for side in (clean, corrupted)]

    def metric(logits: Tensor) -> Tensor:
        return logits[:, -1].logsumexp(dim=-1).mean()

    ids = corrupted["input_ids"]
    paths = nl.patching.get_act_patch_direct_path(model, ids, *caches, metric, 0, 2, part, False)
    later = [f"L{layer}H{head}.{part}" for layer in (1, 2) for head in range(4)]
    edges = edge_sweep(model, clean, corrupted, metric, ["L0H2"], later)
    close(edges.values[0], paths[1:].flatten())


def test_direct_effects_are_the_exact_side_of_direct_attribution() -> None:
    """Where the change is small, the direct effect is the difference of the shares."""
    model, clean, corrupted = build(LM, double=True), prompts(), prompts()
    with torch.no_grad():
        table = model.backbone.embed_in.weight
        clean["input_ids"][:, 3], corrupted["input_ids"][:, 3] = 31, 51
        table[51] = table[31] + 1e-4 * torch.randn(32, generator=torch.manual_seed(0))
    slopes = nl.attribution.attribution_patch(model, clean, corrupted, LM_METRIC, "edges")
    direct = path_patch(model, clean, corrupted, LM_METRIC).effect().flatten()
    rows = [at for at, name in enumerate(slopes.labels["writer"]) if "H" in name]
    estimate = slopes.values[rows, -1]
    tolerance = 2e-2 * float(direct.abs().max())
    torch.testing.assert_close(estimate.double(), direct, rtol=0, atol=tolerance)


def test_mistakes_are_explained() -> None:
    model, clean, corrupted = build(), prompts(1), prompts(0)
    given = (model, clean, corrupted, LM_METRIC)
    with pytest.raises(InputError, match="No writer 'L0H9'"):
        path_patch(*given, ["L0H9"])
    with pytest.raises(InputError, match="heads in each, counted from 0"):
        path_patch(*given, ["L0H9"])
    for name in ("l0h1", "L0h1", "L0H1.q"):  # a head writes as a whole
        with pytest.raises(InputError, match=r"Did you mean 'L0H1'\?"):
            path_patch(*given, [name])
    with pytest.raises(InputError, match=r"Did you mean 'L1H0'\?"):
        path_patch(*given, ["L0H1"], ["L1H0.x"])
    with pytest.raises(InputError, match="No reader 'embed'"):
        path_patch(*given, ["L0H1"], ["embed"])
    with pytest.raises(InputError, match="No sender comes before"):
        path_patch(*given, ["L2H0"], ["L1H0.q"])
    with pytest.raises(InputError, match="no edge between"):
        edge_sweep(*given, ["MLP2"], ["MLP0"])
    with pytest.raises(InputError, match="through='heads'"):
        path_patch(*given, through="heads")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="same tokens"):
        path_patch(model, clean, clean, LM_METRIC)
    assert not model.hook_stack.placements
