"""One small model of every module of timm: it works with a head, or is refused for a reason.

The table ``sweep.md`` is written by this test when COVPOOL_WRITE_SWEEP=1 is set, and compared with otherwise:

    COVPOOL_WRITE_SWEEP=1 python -m pytest -m slow tests/timm_plugin/test_sweep.py
"""

import os
from pathlib import Path

import pytest
import timm
import torch
from timm.models import list_models, list_modules

import covpool_plugins
from covpool_plugins.timm_plugin.backbones import input_size

TABLE = Path(__file__).with_name("sweep.md")
OURS = ("second_order_models", "own_backbones", "whitened_models", "hub", "two_stream")
TRAINED_BELOW = 45e6  # larger ones are built, and their shapes checked without data
FEWEST = 90


def _smallest(module: str) -> tuple[int, str]:
    """Parameters and name of the module's smallest model."""
    sizes = []
    for name in list_models(module=module):
        with torch.device("meta"):
            model = timm.create_model(name)
        sizes.append((sum(p.numel() for p in model.parameters()), name))
    return min(sizes)


def _row(module: str) -> str:
    size, name = _smallest(module)
    try:
        model = covpool_plugins.create_model(name, "isqrt", num_classes=5, reduce_channels=16)
    except ValueError as error:
        reason = str(error).partition(f"{name!r} ")[2]
        return f"| {module} | {name} | refused: it {reason} | | |"
    head = model.get_submodule(model.get_classifier(name_only=True).rpartition(".")[0])
    layout = f"{head.global_pool.input_fmt}, {head.in_features} channels"
    if size > TRAINED_BELOW:
        return f"| {module} | {name} | works (shapes) | {layout} | {type(model).__mro__[1].__name__} |"
    out = model(torch.randn(2, *input_size(model)))
    assert out.shape == (2, 5)
    out.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    return f"| {module} | {name} | works | {layout} | {type(model).__mro__[1].__name__} |"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_one_model_of_every_module():
    modules = [module for module in list_modules() if module not in OURS]
    rows = []
    for module in modules:
        rows.append(_row(module))
        print(rows[-1], flush=True)
    working = sum("| works" in row for row in rows)
    title = f"# timm {timm.__version__}: {working} of {len(rows)} modules work\n\n"
    head = "| module | its smallest model | with `isqrt` | what the head gets | where the head goes |"
    text = title + "\n".join([head, "|---|---|---|---|---|", *rows]) + "\n"
    if os.environ.get("COVPOOL_WRITE_SWEEP"):
        TABLE.write_text(text)
    assert working >= FEWEST
    assert TABLE.read_text() == text or timm.__version__ not in TABLE.read_text().splitlines()[0]
