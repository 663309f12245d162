"""The ``operators`` mode: how far the iterative methods are from the square root, as their docstrings say."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from covpool_plugins.command_line import markdown_table
from covpool_plugins.linalg import MPA, MTP, IterativeMethod, Minimax, NewtonSchulz, sqrtm
from covpool_plugins.tables import Table

from .figures import number
from .modes import MODES, Mode

SIZE = 64
CONDITIONS = (10.0, 100.0, 1e4, 1e6)
SMALLEST = (0.1, 0.01, 1e-3, 1e-4)
GRID = 20001


@dataclass(frozen=True)
class OperatorTable:
    """A table of one class of methods: its caption, its header, and its rows, each a label and figures."""

    caption: str
    columns: tuple[str, ...]
    rows: Callable[[], list[list[str]]]


OPERATOR_TABLES: Table[OperatorTable] = Table("operator table")


def residual(method: IterativeMethod, condition: float) -> float:
    """‖S S - A‖ / ‖A‖ for a float64 matrix A with eigenvalues from 1 to 1 / condition, evenly spaced logarithms."""
    values = torch.logspace(0, -1, SIZE, base=condition, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.float64, generator=generator))[0]
    A = (U * values) @ U.mT
    S = sqrtm(A, method)
    return float((S @ S - A).norm() / A.norm())


def largest_deviation(method: IterativeMethod, smallest: float) -> float:
    """Largest |1 - x| for eigenvalues in [smallest, 1] of a scaled matrix, with x = root / √eigenvalue."""
    eigenvalues = torch.logspace(0, 1, GRID, base=smallest, dtype=torch.float64)
    roots = method.evaluate(eigenvalues[:, None, None], "root").flatten()
    return float((1 - roots / eigenvalues.sqrt()).abs().max())


def count_products(method: IterativeMethod) -> int:
    """Matrix products of the root of a scaled matrix, counted as they run."""
    with _ProductCounter() as counter:
        method.evaluate(torch.eye(2), "root")
    return counter.products


class _ProductCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)
        return func(*args, **(kwargs or {}))


def _residual_table(methods: dict[str, IterativeMethod]) -> OperatorTable:
    def rows() -> list[list[str]]:
        return [[label, *(number(residual(m, c)) for c in CONDITIONS)] for label, m in methods.items()]

    caption = f"‖S S - A‖ / ‖A‖, {SIZE} x {SIZE}, float64, by condition number"
    return OperatorTable(caption, ("condition number", "10", "100", "1e4", "1e6"), rows)


def _deviation_rows() -> list[list[str]]:
    makers: dict[str, Callable[..., IterativeMethod]] = {
        f"Newton-Schulz, {k} steps": partial(_newton_schulz, steps=k) for k in (5, 7, 10)
    }
    for k in (2, 3, 4):
        default = " (``minimax``)" if k == Minimax().steps else ""
        makers[f"degree 5, {k} steps{default}"] = partial(Minimax, steps=k)
    return [
        [
            label,
            str(count_products(make(smallest=SMALLEST[0]))),
            *(number(largest_deviation(make(smallest=smallest), smallest)) for smallest in SMALLEST),
        ]
        for label, make in makers.items()
    ]


def _newton_schulz(smallest: float, steps: int) -> IterativeMethod:
    """The same whatever the smallest eigenvalue."""
    return NewtonSchulz(iterations=steps)


def run(arguments: argparse.Namespace) -> None:
    for name, table in OPERATOR_TABLES.items():
        print(f"## {name}: {table.caption}\n\n{markdown_table(table.columns, table.rows())}\n", flush=True)


OPERATOR_TABLES.add(
    "NewtonSchulz",
    _residual_table(
        {
            "5 steps, trace (``isqrt``)": NewtonSchulz(),
            "5 steps, Frobenius": NewtonSchulz("frobenius"),
            "10 steps, trace": NewtonSchulz(iterations=10),
            "20 steps, Frobenius": NewtonSchulz("frobenius", iterations=20),
        }
    ),
)
OPERATOR_TABLES.add("MTP", _residual_table({"degree 10": MTP()}))
OPERATOR_TABLES.add("MPA", _residual_table({"degree 5": MPA()}))
OPERATOR_TABLES.add(
    "Minimax",
    OperatorTable(
        "largest |1 - x| over [smallest, 1]", ("smallest", "products", "0.1", "0.01", "1e-3", "1e-4"), _deviation_rows
    ),
)


EXAMPLE = "python tools/benchmark.py operators"
MODES.add("operators", Mode(__doc__ or "", EXAMPLE, lambda parser: None, run))  # it has no options
