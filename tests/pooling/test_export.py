"""ONNX, by both exporters: every pool that says it can, and a refusal from the others."""

import logging

import pytest
import torch
from support.matrices import features, relative_error

from covpool_plugins.errors import ExportError
from covpool_plugins.pooling import create_pool, list_pools, pool_options

onnxruntime = pytest.importorskip("onnxruntime")
EXPORTABLE = list_pools(exportable=True)


def _maps(batch):
    return features(12, 20, batch=batch, seed=batch).float().unflatten(-1, (4, 5))


def _export(pool, exporter, path):
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    if exporter == "dynamo":
        batch = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(pool, (_maps(3),), path, dynamo=True, dynamic_shapes=batch, verbose=False)
    else:
        axes = {"x": {0: "batch"}}
        torch.onnx.export(pool, (_maps(3),), path, dynamo=False, input_names=["x"], dynamic_axes=axes)


@pytest.mark.filterwarnings("ignore")  # the exporters' own, about themselves
@pytest.mark.fast_for("isqrt", "cbp", "crosscov")
@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
@pytest.mark.parametrize("name", EXPORTABLE)
def test_exported_pools_give_the_same_vectors(name, exporter, tmp_path):
    # The older exporter's diagonal of a float64 matrix is one that onnxruntime refuses to load.
    narrow = exporter == "legacy" and "compute" in pool_options(name)
    pool = create_pool(name, 12, **({"compute": "float32"} if narrow else {})).eval()
    _export(pool, exporter, tmp_path / "pool.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "pool.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        x = _maps(batch)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert relative_error(torch.from_numpy(found), pool(x)) < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in list_pools() if name not in EXPORTABLE])
def test_the_others_are_refused(name, tmp_path):
    with pytest.raises(ExportError, match="needs a matrix decomposition, which ONNX does not have"):
        _export(create_pool(name, 12).eval(), "legacy", tmp_path / "pool.onnx")
