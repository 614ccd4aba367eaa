"""What ``help()`` must say: every parameter, the shape of every tensor, every error.

Of functions, and of classes for what makes one: the fields of a dataclass, what ``__init__`` takes.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from inspect import Signature
from pathlib import Path
from types import FunctionType, ModuleType

from torch import Tensor

import neox_lab as nl

MAKERS = ("__init__", "__post_init__", "__new__")
SHAPE = r"``[^`]*\[|scalar"


def functions_of(cls: type) -> Iterator[FunctionType]:
    """The public methods and properties that a class writes itself."""
    for name, member in vars(cls).items():
        if isinstance(member, property):
            member = member.fget
        member = getattr(member, "__func__", getattr(member, "func", member))
        if isinstance(member, FunctionType) and not name.startswith("_"):
            yield member


def public_names() -> dict[str, FunctionType | type]:
    """Every function, method and class that a user reaches from ``neox_lab``, by its full name."""
    found: dict[str, FunctionType | type] = {}
    ahead: list[object] = [nl]
    seen: set[int] = set()
    while ahead:
        each = ahead.pop()
        if id(each) in seen or not is_ours(each):
            continue
        seen.add(id(each))
        if isinstance(each, ModuleType):
            ahead += [getattr(each, name) for name in getattr(each, "__all__", [])]
        elif isinstance(each, type):
            ahead += functions_of(each)
        if isinstance(each, type | FunctionType):
            found[f"{each.__module__}.{each.__qualname__}"] = each
    return found


def is_ours(each: object) -> bool:
    """Whether the package wrote it."""
    name = each.__name__ if isinstance(each, ModuleType) else getattr(each, "__module__", None)
    return str(name).split(".")[0] == "neox_lab"


def parameters_not_told(signature: Signature, text: str) -> list[str]:
    """Parameters that are neither listed under a heading nor in backticks; a lone one may go."""
    names = [name for name in signature.parameters if name not in {"self", "cls"}]
    public = [name for name in names if not name.startswith("_")]
    before, *listed = re.split("^(?:Args|Attributes):", text, maxsplit=1, flags=re.MULTILINE)
    if not listed and len(public) < 2:
        return []
    told = " ".join([*re.findall(r"``(.+?)``", before, re.DOTALL), *listed])
    return [name for name in public if not re.search(rf"\b{name}\b", told)]


def tensors_of_no_shape(signature: Signature, text: str) -> list[str]:
    """Tensors that are given or returned, and have no shape in the text."""
    found = []
    for name, parameter in signature.parameters.items():
        entry = re.search(rf"^ +{name}: (.+?)(?=\n *\w+:|\Z)", text, re.DOTALL | re.MULTILINE)
        told = entry[1] if entry else text
        is_tensor = str(parameter.annotation) in {"Tensor", "Tensor | None"}
        if is_tensor and not re.search(SHAPE + r"|see ``|likewise|(any|same) shape", told):
            found.append(name)
    returned = str(signature.return_annotation)
    one_tensor = re.search(r"\bTensor\b", returned) and "str" not in returned  # no table of them
    return found + ["what it returns"] * bool(one_tensor and not re.search(SHAPE, text))


def left_out(
    signature: Signature, text: str, written: Iterable[Callable[..., object]]
) -> list[str]:
    """What a text leaves out of what is given, what comes back, and what its functions raise."""
    found = [f"does not tell of {name}" for name in parameters_not_told(signature, text)]
    found += [f"tells no shape of {name}" for name in tensors_of_no_shape(signature, text)]
    trees = [ast.parse(textwrap.dedent(inspect.getsource(each))) for each in written]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    raised = {ast.unparse(node.exc) for node in nodes if isinstance(node, ast.Raise) and node.exc}
    if raised - {"NotImplementedError"} and "Raises:" not in text:
        found.append("raises and does not say so")
    return found


def faults(function: Callable[..., object]) -> list[str]:
    """What the docstring of a function leaves out."""
    text = inspect.getdoc(function)
    if not text:
        return ["has no docstring"]
    return left_out(inspect.signature(function), text, [function])


def faults_of_class(cls: type) -> list[str]:
    """What a class, those it stands on and what makes one of it leave out together."""
    if not cls.__doc__:
        return ["has no docstring"]
    bases = [base for base in cls.__mro__ if is_ours(base) or base is cls]
    makers = [base for base in cls.__mro__ if "__init__" in vars(base)]
    if makers[0] not in bases and not issubclass(cls, tuple):
        return []  # what makes it is told where it was written
    made = [vars(base).get(name) for base in bases for name in MAKERS]
    ours = [each for each in made if isinstance(each, FunctionType) and has_source(each)]
    texts = [inspect.cleandoc(each.__doc__) for each in (*bases, *ours) if each.__doc__]
    return left_out(inspect.signature(cls), "\n".join(texts), ours)


def has_source(function: FunctionType) -> bool:
    """Whether somebody wrote it: what ``dataclass`` and ``NamedTuple`` make is in no file."""
    return Path(function.__code__.co_filename).is_file()


def half_told(x: Tensor, seed: int = 0) -> Tensor:
    """``x``, mixed."""
    if seed < 0:
        raise ValueError(seed)
    return x


def test_what_a_docstring_leaves_out_is_found() -> None:
    assert faults(half_told) == [
        "does not tell of seed",
        "tells no shape of x",
        "tells no shape of what it returns",
        "raises and does not say so",
    ]


@dataclass
class HalfMade:
    """A ``size`` of something."""

    size: int
    x: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise ValueError(self.scale)


def test_what_a_class_leaves_out_is_found() -> None:
    assert faults_of_class(HalfMade) == [
        "does not tell of x",
        "does not tell of scale",
        "tells no shape of x",
        "raises and does not say so",
    ]


def test_every_public_docstring_tells_parameters_shapes_and_errors() -> None:
    named = public_names()
    assert len(named) > 750
    found = {
        name: faults_of_class(each) if isinstance(each, type) else faults(each)
        for name, each in sorted(named.items())
    }
    assert {name: each for name, each in found.items() if each} == {}
