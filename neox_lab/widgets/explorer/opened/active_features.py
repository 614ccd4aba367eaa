"""Features of a dictionary at the selected layer, and what each does to the logit."""

from __future__ import annotations

from neox_lab.views.drawing import number
from neox_lab.widgets.explorer.questions import Answer, Asked

LISTED = 16  # features of a token


def features(asked: Asked) -> Answer:
    """Active features at each token, and the effect of each on the logit."""
    from neox_lab.features import active, effects

    ids, layer, position = asked.first.ids, asked.chosen.layer, asked.chosen.position
    name, dictionary, loading = asked.tools.dictionary(asked.model, layer)
    found = active(asked.model, dictionary, ids)
    measured = effects(
        asked.model, dictionary, ids, asked.metric, summed=True, progress=asked.report
    )
    effect = dict(zip(map(int, measured.labels["latent"]), measured.values.tolist(), strict=True))
    rows: list[list[list[float]]] = [[] for _ in range(asked.first.length)]
    columns = (found.frame[column].tolist() for column in ("pos", "latent", "activation"))
    for pos, latent, activation in zip(*columns, strict=True):  # at each token the largest first
        if len(rows[pos]) < LISTED:
            numbers = (float(f"{value:.4g}") for value in (activation, effect[latent]))
            rows[pos].append([latent, *numbers])
    half = float(measured.values.abs().median())
    unexplained = dictionary.check(asked.model, ids.tolist()).fvu
    data = {
        "of": {"layer": layer, "position": position},
        "rows": rows,
        "names": _names(name, loading),
        "note": f"Features of {found.site} at the selected token, the largest activation first, "
        f"and what happens to the logit of {asked.token} after token {position} when one is "
        "ablated wherever it is active.",
        "control": f"Measured, each in a run of its own: the median of the {len(effect)} features "
        f"that are active in this prompt moves it by {number(half, 2)}, all of them at once by "
        f"{number(measured.total, 2)}. What the dictionary misses, {100 * unexplained:.0f} % of "
        "the variance here, stays as it is and no feature stands for it.",
        "code": f"{loading}\n"
        "active = nl.features.active(model, dictionary, prompt)\n"
        f"metric = {asked.metric_code}\n"
        "effects = nl.features.effects(model, dictionary, prompt, metric, summed=True)\n"
        "missed = dictionary.check(model, prompt).fvu",
    }
    return Answer("features", data, found)


def _names(name: str, loading: str) -> dict[str, str]:
    """What features of the built-in model's dictionaries stand for, with the score by chance."""
    if "nl.gym" not in loading:
        return {}
    from neox_lab.gym import named_features

    frame = named_features()
    own = frame[frame["dictionary"] == name].drop_duplicates("feature")  # the best name of each
    columns = (own[column].tolist() for column in ("feature", "class", "f1", "control"))
    return {
        str(latent): f"{called}: F1 {f1:.2f}, by chance {chance:.2f}"
        for latent, called, f1, chance in zip(*columns, strict=True)
        if f1 > 2 * chance
    }
