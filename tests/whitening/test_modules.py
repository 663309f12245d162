"""What is done to layers in networks: compiling, exporting, copying, converting, fusing."""

import copy
import pickle

import pytest
import torch
from support.whitening import correlated

from covpool_plugins.whitening import PCANorm2d, ZCANorm2d, list_whitening_methods, released_layer


def _step(layer, call, x):
    leaf = x.clone().requires_grad_()
    y = call(leaf)
    G = torch.arange(y.numel(), dtype=y.dtype).cos().view(y.shape)
    return y.detach(), *torch.autograd.grad(y, [leaf, *layer.parameters()], G), *layer.buffers()


@pytest.mark.fast_for("ZCANorm2d.exact")
@pytest.mark.parametrize(
    "make, method",
    [pytest.param(ZCANorm2d, name, id=f"ZCANorm2d.{name}") for name in list_whitening_methods()]
    + [pytest.param(PCANorm2d, "exact", id="PCANorm2d.exact")],
)
def test_compiles_whole(make, method):
    options = {"n_components": 2} if make is PCANorm2d else {}
    layer = make(4, groups=2, method=method, dtype=torch.float64, **options)
    twin = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = correlated(3, 4, 3)
    for result, expected in zip(_step(layer, compiled, x), _step(twin, twin, x), strict=True):
        assert torch.allclose(result, expected)
    layer.eval(), twin.eval()
    assert torch.allclose(compiled(x), twin(x))


@pytest.mark.slow
@pytest.mark.parametrize("make", [ZCANorm2d, PCANorm2d])
def test_compiles_with_inductor(make):
    layer = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), make(8, groups=2), torch.nn.ReLU())
    twin = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True)
    for side in (9, 12):
        x = correlated(3, 4, side, dtype=torch.float32)
        for result, expected in zip(_step(layer, compiled, x), _step(twin, twin, x), strict=True):
            assert torch.allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize("make", [ZCANorm2d, PCANorm2d])
def test_exports_in_evaluation(make):
    layer = make(8, groups=2)
    layer(correlated(dtype=torch.float32))
    layer.eval()
    dynamic = ({0: torch.export.Dim("batch", min=2), 2: torch.export.Dim("height", min=2)},)
    exported = torch.export.export(layer, (correlated(3, dtype=torch.float32),), dynamic_shapes=dynamic).module()
    x = correlated(5, dtype=torch.float32)[:, :, :4]
    assert torch.allclose(exported(x), layer(x), atol=1e-6)


@pytest.mark.parametrize("make", [ZCANorm2d, PCANorm2d])
def test_copies_are_the_same(make):
    layer = make(8, groups=2, method="svdpi")
    x = correlated(dtype=torch.float32)
    layer(x)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    expected = [layer(x), *layer.buffers()]
    for other in copies:
        assert all(torch.equal(*pair) for pair in zip([other(x), *other.buffers()], expected, strict=True))


def test_sync_batch_norm_leaves_it_alone():
    model = torch.nn.Sequential(ZCANorm2d(4), PCANorm2d(4), torch.nn.BatchNorm2d(4))
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert [type(layer) for layer in converted] == [ZCANorm2d, PCANorm2d, torch.nn.SyncBatchNorm]


def test_mmengine_leaves_it_alone():
    fusion = pytest.importorskip("mmengine.model.utils")
    from mmcv.cnn.utils.fuse_conv_bn import fuse_conv_bn

    model = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), ZCANorm2d(4), torch.nn.Conv2d(4, 4, 1), PCANorm2d(4, 2))
    x = correlated(channels=4, dtype=torch.float32)
    model(x)
    model.eval()
    expected = model(x)
    assert torch.equal(fuse_conv_bn(fusion.revert_sync_batchnorm(model))(x), expected)
    assert [type(model[k]) for k in (1, 3)] == [ZCANorm2d, PCANorm2d]


def test_state_of_the_released_layers_has_the_same_keys():
    for name in ("ZCANormSVDPI", "ZCANormSVDunstable", "ZCANormPIunstable", "ZCANormBatch"):
        assert set(released_layer(name, 16).state_dict()) == set(ZCANorm2d(16).state_dict())
    assert released_layer("myPCANormSVDPI", 32).n_components == 16
    with pytest.raises(ValueError, match="unknown released whitening layer 'ZCANorm'"):
        released_layer("ZCANorm", 8)
