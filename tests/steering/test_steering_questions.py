"""What is asked of a direction: projections, curves, side effects, removal; and its files."""

from __future__ import annotations

import pickle
import struct
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from steered_models import NEGATIVE, POSITIVE, SITE, build

import neox_lab as nl
from neox_lab.errors import CheckpointError, InputError, NeoxLabWarning
from neox_lab.steering import gguf

GOOD = {" good", " loved", " happy", " praised"}


@pytest.fixture(scope="module", params=[True, False], ids=["parallel", "sequential"])
def model(request: pytest.FixtureRequest) -> Any:
    return build(use_parallel_residual=request.param)


@pytest.fixture(scope="module")
def found(model: Any) -> nl.steering.Direction:
    return nl.steering.direction(model, POSITIVE, NEGATIVE, site="resid_post")


def sentiment(count: int, part: Any = "held-out") -> tuple[list[str], list[str], list[Any]]:
    """Prompts of praise, of blame, and the pairs they are from."""
    pairs = nl.gym.TASKS["sentiment"].pairs(count, part)
    both = [(p.clean, p.corrupted) if p.correct in GOOD else (p.corrupted, p.clean) for p in pairs]
    return [good for good, _ in both], [bad for _, bad in both], pairs


def test_a_sentiment_direction_moves_sentiment_and_its_controls_do_not() -> None:
    model = nl.load()
    good, bad, _ = sentiment(60, "train")
    happy = nl.steering.direction(model, good, bad, site=("resid_post", 1))
    assert happy.frame["separation"][0] > 0.99
    assert abs(happy.frame["null"][0] - 0.5) < 0.15
    pairs = sentiment(40)[2]
    words = [(p.correct, p.wrong) if p.correct in GOOD else (p.wrong, p.correct) for p in pairs]
    metric = nl.patching.logit_difference([w for w, _ in words], [w for _, w in words])
    curve = happy.evaluate(
        metric, [pair.clean for pair in pairs], scales=(-1, -0.5, 0, 0.5, 1), controls=8
    )
    mine = curve.frame[curve.frame["kind"] == "direction"]
    assert mine["metric"].is_monotonic_increasing
    assert (mine["metric_low"] < mine["metric"]).all()
    assert mine["metric_low"].iloc[3] > mine["metric_high"].iloc[1]
    assert curve.effect > 15
    for kind, spans in curve.control_effects.items():
        assert len(spans) == 8, kind
        assert max(map(abs, spans)) < 0.15 * curve.effect
        assert abs(sum(spans) / 8) < 0.05 * curve.effect
    most = max(abs(span) for spans in curve.control_effects.values() for span in spans)
    assert f"effect {curve.effect:.3g}, controls up to {most:.3g}" in repr(curve)
    unsteered = curve.frame[curve.frame["scale"] == 0]
    assert unsteered["kl_bits"].abs().max() < 1e-5
    assert unsteered["metric"].nunique() == 1
    assert (mine["kl_bits"].iloc[[0, 4]] > 0.05).all()
    assert "bits a token" in repr(curve) or "KL" in repr(curve)


def test_bfloat16_is_steered_as_float32_is() -> None:
    good, bad, _ = sentiment(40, "train")
    pairs = sentiment(20)[2]
    words = [(p.correct, p.wrong) if p.correct in GOOD else (p.wrong, p.correct) for p in pairs]
    metric = nl.patching.logit_difference([w for w, _ in words], [w for _, w in words])
    curves, vectors = [], []
    for model in (nl.load(), nl.load().bfloat16()):
        happy = nl.steering.direction(model, good, bad, site=("resid_post", 1))
        vectors.append(next(iter(happy.vectors.values())))
        curve = happy.evaluate(metric, [pair.clean for pair in pairs], (-1, 0, 1), controls=2)
        assert (
            max(abs(e) for each in curve.control_effects.values() for e in each) < curve.effect / 5
        )
        curves.append(curve.frame[curve.frame["kind"] == "direction"])
    assert float(torch.cosine_similarity(*vectors, dim=0)) > 0.999
    for name, most in (("metric", 0.5), ("kl_bits", 0.1), ("bits_per_token", 0.1)):
        assert (curves[0][name] - curves[1][name]).abs().max() < most
    assert curves[1]["metric"].is_monotonic_increasing


@pytest.mark.parametrize("method", ["mean_difference", "pca", "logistic"])
def test_controls_have_nothing_of_the_direction(model: Any, method: str) -> None:
    """Few examples of unlike strength, whose shuffled labels would leave much of it in."""
    for positive, negative in ((POSITIVE, NEGATIVE), (POSITIVE, NEGATIVE[:4])):
        found = nl.steering.direction(model, positive, negative, site="resid_post", method=method)
        drawn = 0
        for kind, draws in (("random", 3), ("shuffled", len(found.sites[SITE].shuffled))):
            for draw in range(draws):
                control, drawn = found.control(kind, draw), drawn + 1
                for name, vector in control.vectors.items():
                    own = found.vectors[name]
                    assert (
                        abs(float(vector.double() @ own.double())) < 1e-5 * float(own.norm()) ** 2
                    )
                    assert float(vector.norm()) == pytest.approx(float(own.norm()), rel=1e-5)
        assert drawn >= 5


def test_the_curve_is_measured_as_it_says(model: Any, found: nl.steering.Direction) -> None:
    one, texts = found.at(SITE), ["abcdef", "gfe"]
    metric = nl.patching.logit_difference("a", "b")
    curve = one.evaluate(metric, ["abc", "de"], [0.5], texts=texts, controls=1, mode="ablate")
    row = curve.frame.iloc[0]

    def logits(text: str) -> torch.Tensor:
        return model(text).logits[0].detach().double().log_softmax(-1)

    plain = [logits(text) for text in texts]
    with one.steer(0.5, mode="ablate"):
        steered = [logits(text) for text in texts]
        prompts = [model(text).logits[0, -1].detach() for text in ("abc", "de")]
    a, b = model.to_single_token("a"), model.to_single_token("b")
    assert row.metric == pytest.approx(sum(float(p[a] - p[b]) for p in prompts) / 2, abs=1e-4)
    kl, loss = [], []
    for text, before, after in zip(texts, plain, steered, strict=True):
        ids = model.to_tokens(text)[0, 1:]
        kl.append(float((before.exp() * (before - after)).sum(-1)[:-1].mean()))
        loss.append(float(-after[:-1].gather(-1, ids[:, None]).mean()))
    bits = torch.tensor([2.0]).log().item()
    assert row.kl_bits == pytest.approx(sum(kl) / 2 / bits, rel=1e-4)
    assert row.bits_per_token == pytest.approx(sum(loss) / 2 / bits, rel=1e-4)
    assert row.perplexity == pytest.approx(2**row.bits_per_token)
    own = one.evaluate(lambda logits: logits[:, -1].mean(), ["abc", "de"], [0.5], controls=0)
    with one.steer(0.5):
        means = [float(model(text).logits[0, -1].detach().mean()) for text in ("abc", "de")]
    assert own.frame["metric"][0] == pytest.approx(sum(means) / 2, abs=1e-5)


def test_side_effects_are_the_accuracies() -> None:
    model = nl.load()
    good, bad, _ = sentiment(20, "train")
    happy = nl.steering.direction(model, good, bad, site=("resid_post", 1))
    found = happy.side_effects(2.0, ["facts", "sentiment"], count=20)
    with happy.steer(2.0):
        expected = nl.gym.evaluate(model, ["facts", "sentiment"], count=20).frame
    assert found.frame["steered"].tolist() == expected["accuracy"].tolist()
    assert found.frame["unsteered"].min() > 0.9
    assert found.frame["steered"][1] < 0.8
    assert "sentiment" in repr(found)


def test_projections_are_components(model: Any, found: nl.steering.Direction) -> None:
    texts = ["abcde", "hg"]
    result = found.project(texts)
    frame = result.frame.set_index(["text", "pos", "site"])
    for number, text in enumerate(texts):
        _, cache = model.run_with_cache(text)
        for name, vector in found.vectors.items():
            along = cache[name][0] @ (vector / vector.norm())
            for pos in range(len(text)):
                row = frame.loc[(number, pos, name)]
                assert row.component == pytest.approx(float(along[pos]), abs=1e-4)
                assert row.token == text[pos]
    values = []
    for examples in (NEGATIVE, POSITIVE):
        last = [found.project(text).values[0][:, -1] for text in examples]
        values.append(torch.stack(last).mean(0))
    torch.testing.assert_close(values[0], torch.full((3,), -1.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(values[1], torch.ones(3), atol=1e-4, rtol=0)
    assert "a" in repr(found.at(SITE).project("abc"))
    assert len(result.view(1).to_png()) > 1000


@pytest.mark.parametrize("tied", [False, True])
def test_a_direction_is_removed_by_hooks_and_by_weights_alike(tied: bool, tmp_path: Path) -> None:
    for parallel in (True, False):
        model = build(use_parallel_residual=parallel, tie_word_embeddings=tied)
        found = nl.steering.direction(model, POSITIVE, NEGATIVE, site=SITE)
        unit = torch.nn.functional.normalize(found.vectors[SITE], dim=0)
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        edited = found.remove_from_weights()
        assert all(torch.equal(w, before[name]) for name, w in model.named_parameters())
        with found.removed():
            output, cache = model.run_with_cache(["abcdef", "ghb"])
        made, other = edited.run_with_cache(["abcdef", "ghb"])
        plain = model(["abcdef", "ghb"]).logits
        torch.testing.assert_close(made.logits, output.logits, atol=1e-5, rtol=1e-5)
        assert (plain - made.logits).abs().max() > 0.1
        for name in cache:
            if "resid" in name:
                assert (other[name] @ unit).abs().max() < 1e-5, name
                assert (cache[name] @ unit).abs().max() < 1e-5, name
                torch.testing.assert_close(other[name], cache[name], atol=1e-5, rtol=1e-5)
        edited.save_pretrained(tmp_path / "edited")
        loaded = nl.GPTNeoXForCausalLM.from_pretrained(tmp_path / "edited").eval()
        ids = model.to_tokens("abcdef")
        torch.testing.assert_close(loaded(ids).logits, edited(ids).logits)
    with pytest.raises(InputError, match=r"direction\.at"):
        nl.steering.direction(model, POSITIVE, NEGATIVE, site="resid_post").remove_from_weights()
    with (
        pytest.raises(InputError, match="residual stream"),
        nl.steering.direction(model, POSITIVE, NEGATIVE, site=("z", 1)).removed(),
    ):
        pass


def test_ablation_leaves_nothing_where_the_site_is_only_read(model: Any) -> None:
    found = nl.steering.direction(model, POSITIVE, NEGATIVE, site=SITE)
    unit = torch.nn.functional.normalize(found.vectors[SITE], dim=0)
    with found.steer(mode="ablate"):
        _, cache = model.run_with_cache("abcdefgh")
    for name in (SITE, "blocks.2.hook_resid_pre", "blocks.2.hook_mlp_in"):
        if name.endswith("mlp_in") and not model.config.use_parallel_residual:
            continue  # attention has written by then
        assert (cache[name] @ unit).abs().max() < 1e-5, name


def test_what_is_saved_is_loaded(found: nl.steering.Direction, model: Any, tmp_path: Path) -> None:
    path = found.save(tmp_path / "a" / "happy.safetensors")
    again = nl.steering.load(path, model)
    assert again == found
    assert again.control("shuffled").vectors.keys() == found.vectors.keys()
    with pytest.raises(CheckpointError, match="another model"):
        nl.steering.load(path, build(hidden_act="relu"))
    with pytest.raises(InputError, match=r"direction.on\(model\)"), nl.steering.load(path).steer():
        pass
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError):
        nl.steering.load(path)


def test_control_vectors_of_repeng(
    found: nl.steering.Direction, model: Any, tmp_path: Path
) -> None:
    path = found.export(tmp_path / "happy.gguf", "repeng")
    with pytest.warns(NeoxLabWarning, match="does not say which model"):
        again = nl.steering.load(path, model)
    assert list(again.vectors) == list(found.vectors)
    assert all(torch.equal(again.vectors[n], found.vectors[n]) for n in found.vectors)
    theirs = pytest.importorskip("gguf")  # of the extra test
    reader = theirs.GGUFReader(path)
    assert bytes(reader.get_field("controlvector.model_hint").parts[-1]) == b"gpt_neox"
    for at, tensor in enumerate(reader.tensors):
        assert tensor.name == f"direction.{at}"
        expected = found.vectors[f"blocks.{at}.hook_resid_post"]
        assert torch.equal(torch.tensor(tensor.data.copy()), expected)
    writer = theirs.GGUFWriter(tmp_path / "theirs.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "gpt_neox")
    writer.add_array("general.tags", ["a", "b"])
    writer.add_uint32("controlvector.layer_count", 1)
    writer.add_tensor("direction.2", found.vectors[SITE].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    other = nl.steering.load(tmp_path / "theirs.gguf")
    assert torch.equal(other.vectors["blocks.2.hook_resid_post"], found.vectors[SITE])


def test_broken_control_vectors_are_refused(found: nl.steering.Direction, tmp_path: Path) -> None:
    whole = found.export(tmp_path / "whole.gguf", "repeng").read_bytes()
    broken = {
        "short": whole[:-40],
        "header": whole[:30],
        "version": whole[:4] + struct.pack("<I", 9) + whole[8:],
        "many": whole[:8] + struct.pack("<QQ", 2**60, 1) + whole[24:],
        "long": whole[:24] + struct.pack("<Q", 2**62) + whole[32:],
        "none": b"GGUF",
        "text": b"nothing of the kind",
    }
    for name, content in broken.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            nl.steering.load(path)
    for at in range(24, len(whole) - 100, 7):  # any byte changed: an error of ours, or a direction
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            nl.steering.load(path)
        except CheckpointError:
            pass
    gguf.write(tmp_path / "other", {"general.architecture": "llama"}, {})
    with pytest.raises(CheckpointError, match="no control vector"):
        nl.steering.load(tmp_path / "other")
    with pytest.raises(CheckpointError, match="Cannot read"):
        nl.steering.load(tmp_path / "missing")


def test_vectors_of_steering_vectors(
    found: nl.steering.Direction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = found.export(tmp_path / "happy.pt", "steering-vectors")
    content = torch.load(path, weights_only=True)
    assert content["layer_type"] == "decoder_block"
    assert list(content["layer_activations"]) == [0, 1, 2]

    class SteeringVector:  # as their dataclass is pickled
        pass

    SteeringVector.__module__ = "steering_vectors.steering_vector"
    SteeringVector.__qualname__ = "SteeringVector"
    theirs = types.ModuleType("steering_vectors.steering_vector")
    theirs.SteeringVector = SteeringVector  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "steering_vectors", types.ModuleType("steering_vectors"))
    monkeypatch.setitem(sys.modules, "steering_vectors.steering_vector", theirs)
    whole = SteeringVector()
    whole.__dict__.update(content)
    torch.save(whole, tmp_path / "object.pt")
    torch.save(content["layer_activations"], tmp_path / "layers.pt")
    monkeypatch.undo()
    for name in ("happy.pt", "object.pt", "layers.pt"):
        again = nl.steering.load(tmp_path / name)
        assert all(torch.equal(again.vectors[n], found.vectors[n]) for n in found.vectors)
    for number, bad in enumerate([{"a": 1}, [1], {0: "x"}, {0: torch.zeros(4)}, {}]):
        torch.save(bad, tmp_path / f"bad{number}.pt")
        with pytest.raises(CheckpointError):
            nl.steering.load(tmp_path / f"bad{number}.pt")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(str(tmp_path / "ran")), 2))
    torch.save({0: Evil(str(tmp_path / "ran"))}, tmp_path / "zipped.pt")
    for name in ("evil.pt", "zipped.pt"):
        with pytest.raises(CheckpointError, match="holds more than tensors"):
            nl.steering.load(tmp_path / name)
    assert not (tmp_path / "ran").exists()
    heads = nl.steering.direction(found.model, POSITIVE, NEGATIVE, site=("z", 0))
    for layout in ("repeng", "steering-vectors"):
        with pytest.raises(InputError, match="resid_post"):
            heads.export(tmp_path / "z", layout)
    assert not (tmp_path / "z").exists()


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


def test_a_feature_and_a_probe_are_directions(model: Any) -> None:
    from dictionaries import random_dictionary

    dictionary = random_dictionary(32, SITE)
    feature = nl.steering.direction(model, dictionary, method="feature", feature=3)
    assert torch.equal(feature.vectors[SITE], dictionary.W_dec[3].detach())
    assert "3" in repr(feature)
    labels = [0, 1] * 6
    texts = [text for pair in zip(NEGATIVE, POSITIVE, strict=True) for text in pair]
    probes = nl.probing.probe(model, texts, labels, "resid_post")
    found = nl.steering.direction(model, probes, method="probe")
    for name, vector in found.vectors.items():
        torch.testing.assert_close(vector, probes.direction(name))


def test_prompts_before_the_metric_are_told_so(found: nl.steering.Direction) -> None:
    metric: Any = nl.patching.logit_difference(" good", " bad")
    prompts: Any = ["The film was"]
    with pytest.raises(InputError, match=r"inputs a metric: evaluate\(metric, inputs\)"):
        found.evaluate(prompts, metric)
