"""What ``help()`` must say: every parameter, the shape of every tensor, every error."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType

from torch import Tensor

import neox_lab as nl

SHAPE = r"``[^`]*\[|scalar"


def functions_of(cls: type) -> Iterator[FunctionType]:
    """The public methods and properties that a class writes itself."""
    for name, member in vars(cls).items():
        if isinstance(member, property):
            member = member.fget
        member = getattr(member, "__func__", getattr(member, "func", member))
        if isinstance(member, FunctionType) and not name.startswith("_"):
            yield member


def public_functions() -> dict[str, FunctionType]:
    """Every function and method that a user reaches from ``neox_lab``, under its full name."""
    found: dict[str, FunctionType] = {}
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
        elif isinstance(each, FunctionType):
            found[f"{each.__module__}.{each.__qualname__}"] = each
    return found


def is_ours(each: object) -> bool:
    """Whether the package wrote it."""
    name = each.__name__ if isinstance(each, ModuleType) else getattr(each, "__module__", None)
    return str(name).split(".")[0] == "neox_lab"


def parameters_not_told(function: Callable[..., object], text: str) -> list[str]:
    """Parameters that are neither under ``Args:`` nor named in backticks; a lone one may go."""
    names = [name for name in inspect.signature(function).parameters if name not in {"self", "cls"}]
    public = [name for name in names if not name.startswith("_")]
    before, heading, listed = text.partition("Args:")
    if not heading and len(public) < 2:
        return []
    quoted = " ".join(re.findall(r"``(.+?)``", before, re.DOTALL))
    return [name for name in public if not re.search(rf"\b{name}\b", f"{quoted} {listed}")]


def tensors_of_no_shape(function: Callable[..., object], text: str) -> list[str]:
    """Tensors that are given or returned, and have no shape in the text."""
    signature = inspect.signature(function)
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


def faults(function: Callable[..., object]) -> list[str]:
    """What the docstring of a function leaves out."""
    text = inspect.getdoc(function)
    if not text:
        return ["has no docstring"]
    found = [f"does not tell of {name}" for name in parameters_not_told(function, text)]
    found += [f"tells no shape of {name}" for name in tensors_of_no_shape(function, text)]
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = {
        ast.unparse(node.exc) for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc
    }
    if raised - {"NotImplementedError"} and "Raises:" not in text:
        found.append("raises and does not say so")
    return found


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


def test_every_public_docstring_tells_parameters_shapes_and_errors() -> None:
    functions = public_functions()
    assert len(functions) > 600
    found = {name: faults(function) for name, function in sorted(functions.items())}
    assert {name: each for name, each in found.items() if each} == {}
