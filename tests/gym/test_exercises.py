"""The notebooks' exercises: right answers found by other means, wrong and thoughtless ones."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import neox_lab as nl

NAMES = tuple(nl.gym.exercises()["name"])
SLOW = (
    "first step",
    "when copies are found",
    "turned between layers",
    "most influential",
    "strongest edge",
)
CASES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in NAMES]
THOUGHTLESS: dict[str, Any] = {
    "nothing": None,
    "yes": True,
    "zero": 0,
    "one": 1.0,
    "empty": "",
    "word": " the",
    "first": (0, 0),
    "list": [],
    "ones": [1.0] * 128,
    "edge": ("embed", "logits"),
    "hooks": [("blocks.1.attn.hook_z", lambda z, hook: torch.zeros_like(z))],
    "constant": lambda *given: 0,
}


@pytest.fixture(scope="module")
def model() -> Any:
    return nl.load()


def likeliest(model: Any, text: str, rank: int) -> str:
    (step,) = model.stream(text, max_new_tokens=1)
    return str(step.alternatives[rank].text)


def greedy(model: Any) -> float:
    written = model.generate(
        "It is the duty of",
        max_new_tokens=8,
        return_dict_in_generate=True,
        output_scores=True,
    )
    scores = model.compute_transition_scores(
        written.sequences, written.scores, normalize_logits=True
    )
    return float(scores.sum())


def silenced(model: Any) -> Any:
    def off(z: torch.Tensor, hook: Any) -> None:
        z[:, :, 1] = 0

    return [(("z", 1), off)]


def looks(model: Any) -> tuple[int, int]:
    frame = nl.views.attention(
        model, "When Mary and Tom went to the park, Tom gave the key to"
    ).frame
    row = frame.query("query_pos == query_pos.max() and key_pos == 1").nlargest(1, "weight").iloc[0]
    return int(row["layer"]), int(row["head"])


def early(model: Any) -> float:
    result = nl.lens.logit_lens(model, "The people of the United", watch=[" States"])
    probability = result.frame.query("layer == '3_pre' and pos == pos.max()").filter(like="p(")
    return float(-torch.tensor(probability.to_numpy()).log2())


def carries(model: Any) -> tuple[int, int]:
    prompts = {name: model.to_tokens(f"The capital of {name} is") for name in ("Spain", "Norway")}
    ids = [int(model.to_tokens(name)[0, 0]) for name in (" Madrid", " Oslo")]
    _, clean = model.run_with_cache(prompts["Spain"])
    found = {}
    for layer in range(4):
        for head in range(4):

            def put(z: torch.Tensor, hook: Any, head: int = head) -> None:
                z[:, :, head] = clean[hook.name][:, :, head]

            logits = model.run_with_hooks(prompts["Norway"], [(("z", layer), put)]).logits[0, -1]
            found[layer, head] = (logits[ids[0]] - logits[ids[1]]).item()
    return max(found, key=lambda place: found[place])


def finds(model: Any) -> tuple[int, int]:
    tokens = nl.detect.repeated_tokens(model, length=25, count=8)
    copy = tokens.shape[1] // 2
    _, cache = model.run_with_cache(tokens, "*.hook_pattern")
    back = [
        cache["pattern", layer].diagonal(-copy, dim1=-2, dim2=-1).mean(dim=(0, 2))
        for layer in range(4)
    ]
    place = int(torch.stack(back).argmax())
    return divmod(place, 4)


def women(model: Any) -> list[float]:
    drawn = nl.gym.TASKS["pronouns"].pairs(200, "train")
    labels = ["woman" if pair.correct == " she" else "man" for pair in drawn]
    means = nl.probing.probe(
        model,
        [pair.clean for pair in drawn],
        labels,
        sites="blocks.3.hook_resid_post",
        method="difference",
    )
    man, woman = means.best.weight
    return [float(entry) for entry in woman - man]


def sentence(model: Any) -> float:
    loss = nl.tasks.likelihood.perplexity(model, "The capital of Spain is Madrid.").metrics["loss"]
    return float(loss)


def first_step(pattern: str) -> int:
    frame = nl.dynamics.run(
        lambda young: nl.detect.heads(young, pattern).values.max().item(),
        steps="all",
        progress=False,
    ).frame
    return int(frame[frame["value"] > 0.5]["step"].min())


def verbs(model: Any) -> tuple[int, int]:
    """Each head's own output exchanged in the sum before the last norm."""
    found = torch.zeros(4, 4, dtype=torch.float64)
    model = nl.load(dtype=torch.float64)
    for pair in nl.gym.TASKS["agreement"].pairs(8):
        (_, clean), (_, corrupted) = map(model.run_with_cache, (pair.clean, pair.corrupted))
        ids = [model.to_single_token(name) for name in (pair.correct, pair.wrong)]
        for layer, weights in enumerate(model.W_O):
            apart = (clean["z", layer] - corrupted["z", layer])[0, -1]
            for head in range(4):
                stream = corrupted["resid_post", 3][0, -1] + apart[head] @ weights[head]
                logits = model.get_output_embeddings()(model.gpt_neox.final_layer_norm(stream))
                found[layer, head] += logits[ids[0]] - logits[ids[1]]
    return divmod(int(found.argmax()), 4)


def country(model: Any) -> tuple[int, int]:
    _, clean = model.run_with_cache("The people of Norway speak")
    ids = [model.to_single_token(name) for name in (" Norwegian", " Spanish")]
    found = torch.zeros(4, 4)
    for place in range(16):

        def put(z: torch.Tensor, hook: Any, head: int = place % 4) -> None:
            z[:, -2, head] = clean[hook.name][:, -2, head]

        hooks = [(("z", place // 4), put)]
        logits = model.run_with_hooks("The people of Spain speak", hooks).logits[0, -1]
        found[divmod(place, 4)] = logits[ids[0]] - logits[ids[1]]
    return divmod(int(found.argmax()), 4)


def later(model: Any) -> float:
    (step,) = model.stream("The king ruled from 1742 to", max_new_tokens=1, alternatives=2048)
    return sum(
        each.probability
        for each in step.alternatives
        if re.fullmatch(r" 17\d[02468]", each.text) and int(each.text) > 1742
    )


def start(model: Any) -> float:
    text = "When Mary and Tom went to the park, Tom gave the key to"
    frame = nl.lens.logit_lens(model, text).frame
    return float(frame.groupby("layer")["kl_bits"].mean()["0_pre"])


def dogs(model: Any) -> int:
    dictionary = nl.gym.dictionaries(model)["resid_post_1"]
    frame = nl.features.active(model, dictionary, "Then the dogs").frame
    last = frame[frame["pos"] == frame["pos"].max()]
    return int(last.loc[last["activation"].idxmax(), "latent"])


def nearest(model: Any) -> float:
    rows = nl.gym.dictionaries(model)["resid_post_2"].W_dec.detach().double()
    gram = rows @ rows.T
    cosines = gram / gram.diagonal().outer(gram.diagonal()).sqrt()
    return cosines[~torch.eye(len(rows), dtype=torch.bool)].max().item()


def edge(model: Any) -> tuple[str, str]:
    made = nl.gym.planted_two_step()
    top = nl.circuits.scores(made.model, **made.question(), method="exact").top(1).iloc[0]
    return top["writer"], top["reader"]


def part(model: Any) -> str:
    pairs = nl.gym.TASKS["ioi"].pairs(8)
    metric = nl.patching.logit_difference([p.correct for p in pairs], [p.wrong for p in pairs])
    prompts = [p.clean for p in pairs], [p.corrupted for p in pairs]
    scores = nl.circuits.node_scores(model, *prompts, metric, method="exact")
    return next(name for name in scores.top(3)["component"] if name != "embed")


def four_back(model: Any) -> tuple[int, int]:
    def pattern(tokens: Any) -> torch.Tensor:
        return torch.eye(len(tokens)).roll(-4, dims=1).tril(-4)

    text = "When Mary and Tom went to the park, Tom gave the key to"
    row = nl.detect.heads(model, pattern, [text]).top(1).iloc[0]
    return int(row["layer"]), int(row["head"])


def influential(model: Any) -> str:
    transcoders = {
        name: each for name, each in nl.gym.dictionaries(model).items() if each.is_transcoder
    }
    graph = nl.circuits.attribution_graph(model, transcoders, "The cat by the rivers")
    features = graph.frame.query("kind == 'feature'").sort_values("influence")
    return str(features["name"].iloc[-1])


def turned(model: Any) -> float:
    praise = {" good", " loved", " happy", " praised"}
    pairs = nl.gym.TASKS["sentiment"].pairs(60, "train")
    sides = [
        (p.clean, p.corrupted) if p.correct in praise else (p.corrupted, p.clean) for p in pairs
    ]
    good, bad = map(list, zip(*sides, strict=True))
    found = nl.steering.direction(model, good, bad, site="resid_post").vectors
    rows = [found[f"blocks.{layer}.hook_resid_post"] for layer in (1, 2)]
    return float(torch.nn.functional.cosine_similarity(*rows, dim=0))


ANSWERS: dict[str, Callable[[Any], Any]] = {
    "likeliest token": lambda model: likeliest(model, "The capital of Norway is", 0),
    "greedy text": greedy,
    "one head silenced": silenced,
    "who looks at Mary": looks,
    "surprise early": early,
    "who carries the capital": carries,
    "who finds the copy": finds,
    "a direction for women": women,
    "not wonderful": lambda model: "The film was not wonderful.",
    "no answer": lambda model: "Mary saw the key. Tom went home.",
    "three persons": lambda model: "Mary Stone saw Peter. Then Laura went home.",
    "loss of a sentence": sentence,
    "second choice": lambda model: likeliest(model, "Mary put the key in the", 1),
    "first step": lambda model: first_step("previous_token"),
    "far from the end": start,
    "feature of the dogs": dogs,
    "nearest features": nearest,
    "strongest part": part,
    "most influential": influential,
    "turned between layers": turned,
    "one digit exchanged": lambda model: "<19>",  # b is 2, e is 16, and a, from the other run, 1
    "passes to write": lambda model: 9.0,
    "four tokens back": four_back,
    "strongest edge": edge,
    "when copies are found": lambda model: first_step("induction"),
    "who writes the verb": verbs,
    "chance of a later year": later,
    "who reads the country": country,
}
FALSE: dict[str, Any] = {
    "not wonderful": "The film was not wonderful. It was awful and stupid.",
    "no answer": "Mary put the key in the drawer.",
    "three persons": "Mary Stone saw Peter.",
    "one digit exchanged": "<18>",
    "strongest edge": ("L0H1", "logits"),
}
"""Answers that are near; where none stands here the right one is turned into a wrong one."""


def spoilt(name: str, right: Any) -> Any:
    """A wrong answer of the right kind."""
    if name in FALSE:
        return FALSE[name]
    if isinstance(right, tuple):
        return right[0], right[1] + 1
    if isinstance(right, list) and isinstance(right[0], float):
        return [-entry for entry in right]
    if isinstance(right, list):
        return [(("z", 1), lambda z, hook: z * 0.5)]
    return right + "x" if isinstance(right, str) else right * 2 + 1


def test_every_exercise_is_asked_here() -> None:
    assert tuple(ANSWERS) == NAMES


@pytest.mark.parametrize("name", CASES)
def test_right_and_wrong_answers_are_told_apart(model: Any, name: str) -> None:
    right = ANSWERS[name](model)
    assert nl.gym.check(name, right), right
    assert repr(nl.gym.check(name, right)) == "Right."
    wrong = nl.gym.check(name, spoilt(name, right))
    assert not wrong.right
    assert re.match(r"Not yet\. (?:\S.*\S )?Hint: \S", wrong.words)


@pytest.mark.parametrize("name", CASES)
def test_thoughtless_answers_are_not_right(name: str) -> None:
    for answer in THOUGHTLESS.values():
        with contextlib.suppress(nl.errors.InputError):  # of another kind
            assert not nl.gym.check(name, answer), answer


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("who looks at Mary", lambda at: ["L{}H{}".format(*at), "{}.{}".format(*at), [*at]]),
        (
            "who reads the country",
            lambda at: ["layer {}, head {}".format(*at), [float(n) for n in at]],
        ),
        ("feature of the dogs", lambda number: [f"f{number}", str(number), float(number)]),
        ("loss of a sentence", lambda loss: [f"{loss:.3f}", torch.tensor(loss), round(loss, 2)]),
        ("one head silenced", lambda hooks: [hooks[0], tuple(hooks), [list(hooks[0])]]),
        ("strongest part", lambda name: [name.lower(), f" {name} "]),
        ("one digit exchanged", lambda token: [19, "19", " <19> "]),
    ],
)
def test_answers_are_right_as_pictures_and_tables_write_them(
    model: Any, name: str, same: Callable[[Any], list[Any]]
) -> None:
    right = ANSWERS[name](model)
    for answer in same(right):
        assert nl.gym.check(name, answer), answer
    for answer in same(spoilt(name, right)) if name != "one digit exchanged" else [18, "18"]:
        assert not nl.gym.check(name, answer), answer


def test_a_token_is_right_by_its_number(model: Any) -> None:
    (step,) = model.stream("The capital of Norway is", max_new_tokens=1)
    first, second = step.alternatives[:2]
    assert nl.gym.check("likeliest token", torch.tensor(first.token), model)
    assert not nl.gym.check("likeliest token", second.token, model)
    assert not nl.gym.check("likeliest token", str(first.token), model)


@pytest.mark.slow  # it scores every edge exactly
@pytest.mark.parametrize("arrow", ["{} → {}", "{} -> {}", "{}, {}"])
def test_an_edge_is_one_with_an_arrow(model: Any, arrow: str) -> None:
    ends = edge(model)
    assert nl.gym.check("strongest edge", arrow.format(*ends))
    assert not nl.gym.check("strongest edge", arrow.format(*reversed(ends)))


def test_a_revision_is_one_by_its_name() -> None:
    from neox_lab.gym.exercise_forms import COUNT, EDGE, PART

    assert [COUNT.read(answer) for answer in ("step1250", 1250.0, "1250")] == [1250] * 3
    assert EDGE.read("MLP2 → logits") == EDGE.read("MLP2 -> logits") == ("MLP2", "logits")
    assert PART.read((3, 2)) == PART.read("l3h2") == "L3H2"
    for form in (COUNT, EDGE, PART):
        assert form.read(None) is None, "what is no answer is handed on"


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        pytest.param("most influential", "L3F191@4", marks=pytest.mark.slow),  # the graph of 18
        ("four tokens back", (0, 1)),  # the first row of two_back in 24
        ("who writes the verb", (3, 2)),  # of path_patch in 27
        ("who reads the country", (1, 0)),  # what carries it to the end in 29
    ],
)
def test_what_the_notebook_prints_of_another_prompt_is_not_the_answer(
    name: str, printed: Any
) -> None:
    assert not nl.gym.check(name, printed)


def test_nothing_answered_is_the_question() -> None:
    verdict = nl.gym.check("who looks at Mary", ...)
    assert not verdict
    assert "which head looks most" in verdict.words and "a layer and a head" in verdict.words
    assert max(map(len, repr(verdict).splitlines())) < 90


def near(name: str, answer: Any, model: Any = None) -> str:
    verdict = nl.gym.check(name, answer, model)
    assert not verdict.right
    return verdict.words


def test_what_is_nearly_right_is_told_so(model: Any) -> None:
    loss = sentence(model)
    assert "other sign" in near("loss of a sentence", -loss, model)
    assert "other unit" in near("loss of a sentence", loss / math.log(2), model)
    assert "logarithm" in near("loss of a sentence", math.exp(loss), model)
    assert near("loss of a sentence", loss * 5, model).startswith("Not yet. Hint")
    layer, head = looks(model)
    assert layer != head
    assert "Turned round" in near("who looks at Mary", (head, layer), model)
    assert "128" in near("a direction for women", [1.0], model)
    assert "in 0% of sentences" in near("a direction for women", [-x for x in women(model)], model)
    both = [(("z", 1), lambda z, hook: torch.zeros_like(z))]
    assert "not by that of head 1 alone" in near("one head silenced", both, model)
    more = [*silenced(model), ("blocks.1.hook_mlp_out", lambda x, hook: x * 0.5)]
    assert "beside it" in near("one head silenced", more, model)


def test_what_a_text_lacks_is_said() -> None:
    assert '"not" right before one of wonderful' in near("not wonderful", "It was not so good.")
    assert "calls it negative" in near("not wonderful", FALSE["not wonderful"])
    assert '"key" is not in it' in near("no answer", "A monkey ran.")
    assert "answers 'drawer'" in near("no answer", FALSE["no answer"])
    assert "finds Mary Stone, Peter." in near("three persons", FALSE["three persons"])
    assert "finds nobody" in near("three persons", "The")


def test_what_cannot_be_an_answer_is_an_error(model: Any) -> None:
    with pytest.raises(nl.errors.InputError, match=r"answer='L1'; expected a layer and a head"):
        nl.gym.check("who looks at Mary", "L1")
    with pytest.raises(nl.errors.InputError, match=r"answer='half'; expected a number, right to"):
        nl.gym.check("loss of a sentence", "half")
    with pytest.raises(KeyError, match=r"No exercise is called 'who looks'.*Did you mean"):
        nl.gym.check("who looks", (1, 2))
    reviewer = nl.load(head="sequence-classification")
    with pytest.raises(nl.errors.InputError, match="causal-lm"):
        nl.gym.check("who looks at Mary", (1, 2), reviewer)


@pytest.mark.parametrize(
    "answer",
    [[10**400] * 128, [float("nan")] * 128, ["a"] * 128, torch.zeros(128, device="meta")],
    ids=("too large for a float", "NaN", "texts", "no numbers"),
)
def test_what_is_no_direction_is_an_error(answer: Any) -> None:
    with pytest.raises(nl.errors.InputError, match="expected a row of d_model finite numbers"):
        nl.gym.check("a direction for women", answer)


def test_numbers_that_can_be_read_once_are_no_answer(model: Any) -> None:
    """They were gone before they were judged, and a right answer was not yet right."""
    right = women(model)
    assert nl.gym.check("a direction for women", torch.tensor(right, requires_grad=True), model)
    with pytest.raises(nl.errors.InputError, match="expected a row of d_model finite numbers"):
        nl.gym.check("a direction for women", (entry for entry in right), model)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("who looks at Mary", f"L{'9' * 5000}H1"),
        ("who looks at Mary", " " * 300_000),
        ("feature of the dogs", "f" + "9" * 5000),
        ("strongest edge", " " * 300_000),
        ("one digit exchanged", 10**5000),
    ],
    ids=("place", "spaces", "feature", "spaces for an edge", "digit"),
)
def test_names_without_end_are_no_answer(name: str, answer: Any) -> None:
    with pytest.raises(nl.errors.InputError, match="expected"):
        nl.gym.check(name, answer)


def test_answers_are_those_of_the_model_that_is_given(model: Any) -> None:
    young = nl.load(revision="step512")
    old, new = sentence(model), sentence(young)
    assert abs(old - new) > 0.5
    assert nl.gym.check("loss of a sentence", new, young)
    assert not nl.gym.check("loss of a sentence", old, young)


def test_the_course_is_about_what_the_variable_names(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NEOX_LAB_MODEL", raising=False)
    assert nl.gym.course_model() is None
    monkeypatch.setenv("NEOX_LAB_MODEL", "")
    assert nl.gym.course_model() is None
    young = nl.load(revision="step512")
    young.save_pretrained(tmp_path)
    young.tokenizer.save_pretrained(tmp_path)
    monkeypatch.setenv("NEOX_LAB_MODEL", str(tmp_path))
    assert nl.gym.course_model() == str(tmp_path)
    assert nl.gym.check("loss of a sentence", sentence(young))
    # What is about the built-in model's own parts stays so.
    assert nl.gym.check("nearest features", nearest(nl.load()))


def test_training_is_the_built_in_models_where_the_course_has_no_revisions(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NEOX_LAB_MODEL", raising=False)
    assert nl.gym.course_training() == (None, "all")
    nl.load(revision="step512").save_pretrained(tmp_path / "run" / "step512")
    monkeypatch.setenv("NEOX_LAB_MODEL", str(tmp_path / "run"))
    assert nl.gym.course_training() == (str(tmp_path / "run"), "log")
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("NEOX_LAB_MODEL", str(tmp_path / "run" / "step512"))
    assert nl.gym.course_training() == (None, "all")
    assert "without revisions of its training" in capsys.readouterr().out


def test_pairs_are_those_that_can_be_asked(model: Any) -> None:
    assert nl.gym.pairs(model, "ioi", 5) == nl.gym.TASKS["ioi"].pairs(5)
    planted = nl.gym.planted()
    with pytest.raises(nl.errors.InputError, match="No prompt of greater_than can be asked"):
        nl.gym.pairs(planted, "greater_than", 3)


def test_claims_are_held_against_the_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NEOX_LAB_MODEL", raising=False)
    nl.gym.claim(torch.tensor(2) > 1, "two is more")
    assert capsys.readouterr().out == "Holds: two is more\n"
    with pytest.raises(
        nl.errors.NeoxLabError, match="should hold of the built-in model: two is less"
    ):
        nl.gym.claim(torch.tensor(2) < 1, "two is less")
    monkeypatch.setenv("NEOX_LAB_MODEL", "somewhere")
    nl.gym.claim(False, "two is less")
    assert capsys.readouterr().out == "Does not hold of this model: two is less\n"
    with pytest.raises(nl.errors.InputError, match="expected True or False"):
        nl.gym.claim(torch.tensor([True, True]), "two")


def test_the_list_is_there_after_an_answer_was_checked() -> None:
    nl.gym.check("no answer", ...)
    assert "no answer" in set(nl.gym.exercises()["name"])  # a function, no module of that name
