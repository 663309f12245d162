"""What holds for every explanation method on a small network: files, layouts, and that nothing is left behind."""

from __future__ import annotations

import copy
import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.explanations import (
    CHEAP,
    POOL_OF,
    SECOND_ORDER,
    ToLayout,
    covariance_neck,
    mmpretrain_config,
    random_states,
)
from torch import Tensor, nn
from torch.nn import functional as F

import covpool_plugins
from covpool_plugins.errors import NotApplicableError, ShapeError
from covpool_plugins.explain import EXPLANATIONS, ModelView, explain, load_mmpretrain_model
from covpool_plugins.explain.methods import explain_input
from covpool_plugins.pooling import create_pool, list_pools

EVERY = pytest.mark.parametrize("method", EXPLANATIONS)
# Of these another class has another map, whatever the network.
BY_GRADIENT = ["linear_approx", "deconvnet", "guided_backprop", "excitation_backprop"]


@EVERY
def test_files(method: str, small_net, image: Tensor, tmp_path: Path) -> None:
    explanation = explain(small_net(POOL_OF.get(method, "svdpade")), image, method, target=3, **CHEAP.get(method, {}))
    png, npz = explanation.save(tmp_path / "new", "cat")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["cat.npz", "cat.png"] == [npz.name, png.name]
    with Image.open(png) as picture:
        assert picture.width >= 320 and picture.height > picture.width
        colours = np.ptp(np.asarray(picture.convert("RGB")).astype(int), axis=2)
        assert colours.max() > 20
    with np.load(npz, allow_pickle=False) as arrays:
        assert int(arrays["target"]) == 3 and 0 < float(arrays["probability"]) < 1
        np.testing.assert_array_equal(arrays["map"], explanation.map)
        complete = explanation.contributions is not None
        assert ("contributions" in arrays) == ("completeness_target" in arrays) == complete
        if complete and method != "integrated_gradients":  # complete with many points, see test_gradients
            assert np.isclose(arrays["contributions"].sum(), arrays["completeness_target"], rtol=1e-4, atol=0)
    assert method in explanation.caption()[0] and "class 3" in explanation.caption()[0]


def state(model: nn.Module) -> list[Any]:
    """What a method could leave behind, in the model and elsewhere."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = [
        (id(m), m.training, getattr(m, "inplace", None), *(len(getattr(m, hook)) for hook in hooks))
        for m in model.modules()
    ]
    parameters = [(id(p), p.requires_grad, p.grad is None, p._version) for p in model.parameters()]
    buffers = [(id(b), b._version) for b in model.buffers()]
    extremal = importlib.import_module("torchray.attribution.extremal_perturbation")
    functions = [torch.relu, torch.relu_, F.relu, F.conv2d, torch.conv2d, extremal.Perturbation]
    return [modules, parameters, buffers, functions, random_states()]


@EVERY
def test_the_same_map_twice_and_nothing_left_behind(method: str, small_net, image: Tensor) -> None:
    """Without a warning, where gradients are switched off, and for a model in training."""
    net = small_net(POOL_OF.get(method, "svdpade")).train()
    net.stem.requires_grad_(False)
    net.head.fc.weight.grad = torch.ones_like(net.head.fc.weight)
    weights, x, view = copy.deepcopy(net.state_dict()), image.clone(), ModelView.of(net)
    before = state(net), state(view.model)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        first, second = (explain(view, image, method, **CHEAP.get(method, {})) for _ in range(2))
    assert (state(net), state(view.model)) == before
    np.testing.assert_array_equal(first.map, second.map)
    assert np.abs(first.map).max() > 0
    assert torch.equal(image, x) and not image.requires_grad and image.grad is None
    assert all(torch.equal(weights[name], values) for name, values in net.state_dict().items())
    assert (net.head.fc.weight.grad == 1).all()
    assert all(p.grad is None and not p.requires_grad for p in view.model.parameters())
    assert not any(module.training for module in view.model.modules())


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("broken in the middle")


@pytest.mark.parametrize(
    "method", [*BY_GRADIENT, "gradient", "grad_cam", "rise", "extremal_perturbation", "maximal_image"]
)
def test_nothing_is_left_behind_by_an_error(method: str, small_net, image: Tensor) -> None:
    view = ModelView.of(small_net())
    before, head = state(view.model), view.model.head
    passed = view.forward_pass(image)
    dropout, head.dropout = head.dropout, Broken()
    with pytest.raises(RuntimeError, match="broken in the middle") as caught:
        explain_input(view, passed, method, 1, **CHEAP.get(method, {}))
    head.dropout = dropout
    assert caught.traceback  # which holds the frames of TorchRay, and what is in them
    assert state(view.model) == before


@EVERY
@pytest.mark.parametrize("input_fmt", ["NHWC", "NLC"])
def test_channels_last_and_tokens(method: str, input_fmt: str, small_net, image: Tensor) -> None:
    """The same network, whose last map comes in another layout."""
    exact = method in SECOND_ORDER
    pool, dtype = POOL_OF.get(method, "exact" if exact else "svdpade"), torch.float64 if exact else torch.float32
    options = {"reduce_channels": 8, "reduction": "conv-bn-relu"}
    plain = small_net(pool, **options)
    other = small_net(pool, **options, input_fmt=input_fmt, num_prefix_tokens=int(input_fmt == "NLC"))
    other.load_state_dict(plain.state_dict())
    other.stage2.add_module("layout", ToLayout(input_fmt))
    expected, explanation = (
        explain(net.to(dtype), image.to(dtype), method, target=1, **CHEAP.get(method, {})) for net in (plain, other)
    )
    rtol, atol = (1e-8, 1e-8) if exact else (1e-3, 1e-4)
    np.testing.assert_allclose(explanation.map, expected.map, rtol=rtol, atol=atol * np.abs(expected.map).max())
    for name, values in expected.extras.items() if exact else ():
        atol = 1e-8 * np.abs(values).max()
        np.testing.assert_allclose(explanation.extras[name], values, rtol=1e-6, atol=atol, err_msg=name)


@pytest.mark.fast_for("contribution", "guided_backprop", "maximal_image")
@EVERY
def test_a_model_of_one_channel_sees_grey(method: str) -> None:
    pool = POOL_OF.get(method, "svdpade")
    net = covpool_plugins.create_model("test_resnet", pool, in_chans=1, num_classes=4, reduce_channels=8).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    net.pretrained_cfg = {**net.pretrained_cfg, "crop_pct": 1.0}
    colour, view = Image.fromarray(pixels), ModelView.of(net)
    x = view.preprocessing(colour)
    grey = torch.tensor(np.asarray(colour.convert("L"))) / 255
    mean, std = (np.mean(net.pretrained_cfg[key]) for key in ("mean", "std"))
    torch.testing.assert_close(x, ((grey - mean) / std).float()[None, None])
    maps = [explain(view, picture, method, 2, **CHEAP.get(method, {})).map for picture in (colour, colour.convert("L"))]
    np.testing.assert_array_equal(*maps)
    shown = np.asarray(view.preprocessing.picture(x))
    assert shown.shape[2] == 3 and (np.ptp(shown, axis=2) == 0).all() and shown.std() > 10
    with pytest.raises(ShapeError, match=r"\(1, 1, H, W\)"):
        explain(view, torch.zeros(1, 3, 160, 160), method)


@pytest.mark.parametrize("method", [*BY_GRADIENT, "contrastive_excitation_backprop", "rise", "extremal_perturbation"])
def test_another_class_has_another_map(method: str, small_net, image: Tensor) -> None:
    view = ModelView.of(small_net(create_pool("svdpade", 12, centered=False)))
    options = {"iterations": 40} if method == "extremal_perturbation" else CHEAP.get(method, {})
    first, second = (explain(view, image, method, target=target, **options).map for target in (0, 3))
    assert np.abs(first - second).max() > 1e-3 * np.abs(first).max()


@pytest.mark.parametrize("method", ["rise", "maximal_image", "inverse_image"])
def test_the_seed_decides(method: str, small_net, image: Tensor) -> None:
    view = ModelView.of(small_net())
    first, other = (explain(view, image, method, 1, seed=seed, **CHEAP[method]).map for seed in (0, 1))
    assert np.abs(first - other).max() > 1e-4


@pytest.mark.parametrize("method", ["contribution", "gradient", "linear_approx", "eigen", "integrated_head"])
def test_versus_is_a_difference(method: str, small_net, image: Tensor) -> None:
    """Of linear methods the maps are subtracted too; of all, the probability stays what it is."""
    view = ModelView.of(small_net())
    classes = ((3, None), (1, None), (3, 1))
    first, second, both = (explain(view, image, method, target, versus=other) for target, other in classes)
    assert both.probability == pytest.approx(first.probability, rel=1e-5)
    assert "versus 1" in both.caption()[0]
    if method != "gradient":  # which is a magnitude
        np.testing.assert_allclose(both.map, first.map - second.map, rtol=1e-3, atol=1e-3 * np.abs(both.map).max())
    np.testing.assert_array_equal(explain(view, image, method, 3).map, first.map)


def of_timm(pool: str, options: dict[str, int], folder: Path) -> nn.Module:
    return covpool_plugins.create_model("test_resnet", pool, num_classes=3, **options)


def of_mmpretrain(pool: str, options: dict[str, int], folder: Path) -> nn.Module:
    pytest.importorskip("mmpretrain")
    neck = covariance_neck(pool=pool, reduce_channels=options.get("reduce_channels"))
    config = mmpretrain_config(folder, neck=neck, head="SecondOrderClsHead", width=None, scale=64, side=64)
    return load_mmpretrain_model(config)


@pytest.mark.slow
@pytest.mark.parametrize("build", [of_timm, of_mmpretrain])
@pytest.mark.parametrize("pool", list_pools())
def test_a_map_or_a_reason(pool: str, build, tmp_path: Path) -> None:
    view = ModelView.of(build(pool, {} if pool == "gap" else {"reduce_channels": 16}, tmp_path))
    x = torch.nn.functional.interpolate(torch.randn(1, 3, 12, 12), view.preprocessing.input_size, mode="bilinear")
    for method in EXPLANATIONS:
        try:
            map = torch.as_tensor(explain(view, x, method, **CHEAP.get(method, {})).map)  # of the class that is seen
            assert map.isfinite().all() and map.any(), method
        except NotApplicableError as error:
            assert str(error) and "\n" not in str(error)
