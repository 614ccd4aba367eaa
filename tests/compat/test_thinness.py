"""The door is thin: what it answers is computed elsewhere, in rooms that anybody can use."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import neox_lab.compat

ROOM = Path(neox_lab.compat.__file__).parent
COMPUTES = frozenset(
    """
    softmax log_softmax sigmoid gelu layer_norm cross_entropy linear einsum matmul bmm mm addmm
    norm svd eig eigvals exp log sqrt rsqrt pow sum mean var std cumsum diagonal tril triu
    topk sort argsort argmax multinomial one_hot gather scatter index_add
    """.split()
)
"""Functions and methods that make new numbers out of a tensor's."""
ALLOWED = {
    "components.py: norm": "a layer norm of the model, called",
    "config.py: sum": "counts parameters",
    "evals.py: mean": "of losses, over a data set of one's own",
    "evals.py: sum": "likewise",
    "head_detector.py: mean": "of the scores of several texts",
    "utils.py: mean": "of hits, which becomes an accuracy",
    "utils.py: tril": "is_lower_triangular",
}


def computing(tree: ast.AST) -> Iterator[str]:
    """The operations of a module that make new numbers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult):
            yield "@"
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in COMPUTES:
                yield name


def test_the_door_computes_nothing() -> None:
    found = {
        f"{path.name}: {what}"
        for path in ROOM.rglob("*.py")
        for what in computing(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a @ b", ["@"]),
        ("torch.einsum('ij,j', a, b)", ["einsum"]),
        ("logits.log_softmax(-1)", ["log_softmax"]),
        ("model.native.W_U", []),
        ("summed(x)", []),
    ],
)
def test_what_counts_as_computing(line: str, expected: list[str]) -> None:
    assert list(computing(ast.parse(line))) == expected
