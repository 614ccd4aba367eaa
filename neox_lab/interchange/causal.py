"""Causal models: how an answer comes about, in plain Python functions.

    model = CausalModel(
        prompt="{a} and {b} went out. {giver} gave a book to",
        variables={"giver_is_first": lambda a, giver: giver == a},
        label=lambda a, b, giver_is_first: f" {b if giver_is_first else a}",
    )
    fields = {"a": "Ann", "b": "Bob", "giver": "Ann"}
    model.label_of(fields)                               # " Bob"
    model.label_of(fields, giver_is_first=False)         # " Ann": an intervention
    model.counterfactual(fields, other, "giver_is_first")

The names of a function's arguments say what it reads: fields of the input, or variables. To
intervene on a variable is to give its value; whatever reads it goes on from there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any, TypeAlias

from neox_lab.checks import SEED, check, several, shown, whole
from neox_lab.errors import InputError, nearest
from neox_lab.interchange.pairs import Labels, Pairs

Fields: TypeAlias = Mapping[str, Any]
"""One input of a causal model: what its prompt and its functions read, by name."""


class CausalModel:
    """How an answer comes about.

    Args:
        prompt: the text of an input: a format string with its fields, or a function of them.
        variables: functions of fields and of variables before them, by the variable's name.
        label: the answer, a function of fields and variables; a token with its leading space.
        choices: see ``Pairs``.
        roles: positions by name: a field whose text stands in the prompt, or the field and which
            of its occurrences is meant, from 0; -1 is the last, as is a field alone.

    Raises:
        InputError: no functions, or a name twice.
    """

    def __init__(
        self,
        prompt: str | Callable[..., str],
        variables: Mapping[str, Callable[..., Any]],
        label: Callable[..., str],
        choices: Mapping[str, Labels] | None = None,
        roles: Mapping[str, str | tuple[str, int]] | None = None,
    ) -> None:
        if not (isinstance(prompt, str) or callable(prompt)):
            raise InputError(f"prompt={shown(prompt)}; expected a format string or a function.")
        if not isinstance(variables, Mapping) or not variables:
            raise InputError(f"variables={shown(variables)}; expected functions by name.")
        for name, function in {**variables, "label": label}.items():
            if not callable(function):
                raise InputError(f"{name} is {shown(function)}; expected a function.")
        roles = {} if roles is None else roles
        if not isinstance(roles, Mapping) or not all(map(_is_role, roles.values())):
            raise InputError(
                f"roles={shown(roles, 80)}; expected fields by name, or pairs (field, occurrence)."
            )
        self.variables = dict(variables)
        self.choices, self.roles = choices, dict(roles)
        self._prompt, self._label = prompt, label

    def text(self, fields: Fields) -> str:
        """The prompt of an input.

        Raises:
            InputError: a field is missing.
        """
        if callable(self._prompt):
            return str(_call("prompt", self._prompt, fields))
        try:
            return self._prompt.format(**fields)
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(
                f"The prompt cannot be written with {shown(fields)}: {error}"
            ) from error

    def values(self, fields: Fields, **interventions: Any) -> dict[str, Any]:
        """The value of every variable.

        Args:
            fields: the input.
            interventions: values that variables are set to.

        Raises:
            InputError: an unknown variable, or a function that reads what is not there.
        """
        for name in interventions:
            self._known(name)
        known = dict(fields)
        for name, function in self.variables.items():
            given = name in interventions
            known[name] = interventions[name] if given else _call(name, function, known)
        return {name: known[name] for name in self.variables}

    def label_of(self, fields: Fields, **interventions: Any) -> str:
        """The answer, with some variables set to values.

        Args:
            fields: the input.
            interventions: values that variables are set to.

        Raises:
            InputError: see ``values``; or the answer is no text.
        """
        values = self.values(fields, **interventions)
        found = _call("label", self._label, {**fields, **values})
        if not isinstance(found, str):
            raise InputError(f"label gave {shown(found)}; expected a token or a name of choices.")
        return found

    def counterfactual(self, base: Fields, source: Fields, variable: str) -> str:
        """The answer to ``base`` with a variable as it is in ``source``.

        Args:
            base: the input.
            source: another input.
            variable: which one.

        Raises:
            InputError: see ``values``.
        """
        self._known(variable)
        base, source = _fields(base), _fields(source)
        return self.label_of(base, **{variable: self.values(source)[variable]})

    def pairs(
        self, inputs: Iterable[Fields], variable: str, count: int | None = None, seed: int = 0
    ) -> Pairs:
        """Pairs of inputs with the label that an exchange of a variable should give.

        Args:
            inputs: at least two.
            variable: what is exchanged.
            count: how many different pairs, fewer if there are fewer; None for as many as there
                are inputs.
            seed: of the draw, in which each base meets sources other than itself.

        Raises:
            InputError: see ``values``; fewer than two inputs, or a role that is not in a prompt.
        """
        self._known(variable)
        words = "inputs of the causal model, fields by name"
        drawn = [_fields(each) for each in several("inputs", inputs, words, InputError)]
        if len(drawn) < 2:
            raise InputError(f"{len(drawn)} inputs make no pair; expected at least two.")
        count = len(drawn) if count is None else count
        count = check("count", count, whole(least=1, most=10**6), InputError)
        chosen = Random(check("seed", seed, SEED, InputError))
        texts = [self.text(fields) for fields in drawn]
        different: dict[tuple[str, str], list[int]] = {}
        for _ in range(50 * count):
            base, source = chosen.sample(range(len(drawn)), 2)
            different.setdefault((texts[base], texts[source]), [base, source])
            if len(different) == count:
                break
        rows = list(different.values())
        found = {
            role: [
                self._role(role, fields, text) for fields, text in zip(drawn, texts, strict=True)
            ]
            for role in self.roles
        }
        return Pairs(
            [texts[base] for base, _ in rows],
            [texts[source] for _, source in rows],
            [self.label_of(drawn[base]) for base, _ in rows],
            [self.counterfactual(drawn[base], drawn[source], variable) for base, source in rows],
            self.choices,
            {
                role: ([at[base] for base, _ in rows], [at[source] for _, source in rows])
                for role, at in found.items()
            },
            variable,
        )

    def _known(self, variable: object) -> None:
        if not isinstance(variable, str) or variable not in self.variables:
            close = nearest(variable, tuple(self.variables))
            raise InputError(
                f"variable={shown(variable)}; expected one of {', '.join(self.variables)}.{close}"
            )

    def _role(self, role: str, fields: Fields, text: str) -> int:
        """Where the last character of a role's text stands."""
        named = self.roles[role]
        field, which = (named, -1) if isinstance(named, str) else named
        word = str(fields.get(field, ""))
        starts = [at for at in range(len(text)) if word and _stands(word, text, at)]
        if not -len(starts) <= which < len(starts):
            raise InputError(
                f"The role {role!r} is occurrence {which} of the field {field!r}, {word!r}; the "
                f"prompt {text!r} has {len(starts)}."
            )
        return starts[which] + len(word) - 1


def _is_role(given: object) -> bool:
    """A field, or a field and a number."""
    if isinstance(given, tuple) and len(given) == 2:
        return isinstance(given[0], str) and type(given[1]) is int
    return isinstance(given, str)


def _fields(given: object) -> Fields:
    """One input of a causal model.

    Raises:
        InputError: it is none.
    """
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise InputError(f"{shown(given, 80)} is no input; expected fields by name, in a dict.")
    return given


def _stands(word: str, text: str, at: int) -> bool:
    """Whether a word stands in a text at a character, not as part of a longer one."""
    if not text.startswith(word, at):
        return False
    ends = (text[at - 1 : at] + word[:1], word[-1:] + text[at + len(word) :][:1])
    return not any(len(both) == 2 and (both.isalpha() or both.isdigit()) for both in ends)


def _call(name: str, function: Callable[..., Any], known: Fields) -> Any:
    """A function of what its arguments name.

    Raises:
        InputError: one of them is not known.
    """
    asked = inspect.signature(function).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in asked):
        return function(**known)
    for each in asked:
        if each.name not in known and each.default is each.empty:
            raise InputError(
                f"{name} reads {each.name!r}, which is neither a field of the input nor a variable "
                f"before it; there are {', '.join(known)}.{nearest(each.name, tuple(known))}"
            )
    return function(**{each.name: known[each.name] for each in asked if each.name in known})
