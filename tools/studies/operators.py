"""The ``operators`` mode: how far the iterative methods are from the square root, as their docstrings say."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

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


class OperatorTable(NamedTuple):
    """A table of one class of methods: its caption, its header, and its rows, each a label and figures."""

    caption: str
    header: tuple[str, ...]
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


def _add_residuals(name: str, methods: dict[str, IterativeMethod]) -> None:
    def rows() -> list[list[str]]:
        return [[label, *(number(residual(m, c)) for c in CONDITIONS)] for label, m in methods.items()]

    caption = f"‖S S - A‖ / ‖A‖, {SIZE} x {SIZE}, float64, by condition number"
    OPERATOR_TABLES.add(name, OperatorTable(caption, ("condition number", "10", "100", "1e4", "1e6"), rows))


def _deviation_rows() -> list[list[str]]:
    makers: dict[str, Callable[[float], IterativeMethod]] = {
        f"Newton-Schulz, {k} steps": lambda _, k=k: NewtonSchulz(iterations=k)  # type: ignore[misc]
        for k in (5, 7, 10)
    }
    for k in (2, 3, 4):
        default = " (``minimax``)" if k == Minimax().steps else ""
        makers[f"degree 5, {k} steps{default}"] = lambda smallest, k=k: Minimax(  # type: ignore[misc]
            smallest=smallest, steps=k
        )
    rows = []
    for label, make in makers.items():
        deviations = [number(largest_deviation(make(smallest), smallest)) for smallest in SMALLEST]
        rows.append([label, str(count_products(make(SMALLEST[0]))), *deviations])
    return rows


def run(arguments: argparse.Namespace) -> None:
    for name, table in OPERATOR_TABLES.items():
        print(f"## {name}: {table.caption}\n\n{markdown_table(table.header, table.rows())}\n", flush=True)


_add_residuals(
    "NewtonSchulz",
    {
        "5 steps, trace (``isqrt``)": NewtonSchulz(),
        "5 steps, Frobenius": NewtonSchulz("frobenius"),
        "10 steps, trace": NewtonSchulz(iterations=10),
        "20 steps, Frobenius": NewtonSchulz("frobenius", iterations=20),
    },
)
_add_residuals("MTP", {"degree 10": MTP()})
_add_residuals("MPA", {"degree 5": MPA()})
HEADER = ("smallest", "products", "0.1", "0.01", "1e-3", "1e-4")
OPERATOR_TABLES.add("Minimax", OperatorTable("largest |1 - x| over [smallest, 1]", HEADER, _deviation_rows))

EXAMPLE = "python tools/benchmark.py operators"
MODES.add("operators", Mode(__doc__ or "", EXAMPLE, lambda parser: None, run))  # it has no options
