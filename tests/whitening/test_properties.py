"""What holds for any features and options."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.matrices import relative_error

from covpool_plugins.errors import ShapeError
from covpool_plugins.linalg import covariance
from covpool_plugins.whitening import PCANorm2d, ZCANorm2d, list_whitening_methods, whitening_coloring

MAKERS = [(ZCANorm2d, method, {}) for method in list_whitening_methods()]
MAKERS += [(ZCANorm2d, "exact", {"energy": 0.9}), (PCANorm2d, "svdpi", {"n_components": 2}), (PCANorm2d, "exact", {})]
OPTIONS = st.fixed_dictionaries(
    {
        "groups": st.sampled_from([1, 2, 4, 8]),
        "eps": st.sampled_from([1e-2, 1e-4, 1e-5]),
        "momentum": st.sampled_from([None, 0.0, 0.1, 1.0]),
        "affine": st.booleans(),
        "average": st.sampled_from(["inverse_root", "covariance"]),
    }
)
LAYERS = st.sampled_from([ZCANorm2d, PCANorm2d])
POISON = st.sampled_from([torch.nan, torch.inf])
DTYPES = {torch.float32: 18, torch.float64: 18, torch.bfloat16: 18, torch.float16: 3}


@st.composite
def features(draw, channels=8, dtypes=tuple(DTYPES)):
    """Maps of any batch, size, scale, condition, mean and layout; some channels may be constant."""
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(st.sampled_from([1, 2, 7])), channels, *draw(st.sampled_from([(2, 1), (3, 3), (8, 5)]))
    exponent, decades = draw(st.integers(-DTYPES[dtype], DTYPES[dtype])), draw(st.integers(0, 10))
    mean, constant = draw(st.sampled_from([0.0, 0.1, -2.0])), draw(st.integers(0, channels))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    basis = torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64))[0]
    mixing = basis * torch.logspace(0, -decades / 2, channels, dtype=torch.float64)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).movedim(1, -1) @ mixing.T + mean
    x[..., :constant] = mean
    x = x.movedim(-1, 1).to(torch.float64) * 10.0**exponent
    last = torch.channels_last if draw(st.booleans()) else torch.contiguous_format
    return x.to(dtype).contiguous(memory_format=last)


@pytest.mark.parametrize("make, method, own", MAKERS)
@settings(deadline=None, derandomize=True, max_examples=25)
@given(x=features(), options=OPTIONS)
def test_finite_features_give_finite_numbers(make, method, own, x, options):
    if own.get("n_components", 0) > 8 // options["groups"]:
        own = {}
    layer = make(8, method=method, **own, **options)
    torch.manual_seed(0)
    for training in (True, False):
        leaf = x.clone().requires_grad_()
        y = layer.train(training)(leaf)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        gradients = torch.autograd.grad(y, [leaf, *layer.parameters()], torch.randn_like(y))
        assert all(tensor.isfinite().all() for tensor in (y, *gradients, *layer.buffers()))
    assert layer.whitening_error(x).isfinite().all()


@settings(deadline=None, derandomize=True, max_examples=40)
@given(x=features(dtypes=(torch.float32, torch.bfloat16)), options=OPTIONS, make=LAYERS)
def test_float64_gives_the_same_up_to_the_condition(x, options, make):
    """What float32 cannot resolve: eigenvalues below its rounding of the largest, means far above the deviation."""
    X = x.double().transpose(0, 1).flatten(1).unflatten(0, (options["groups"], -1))
    values = torch.linalg.eigvalsh(covariance(X)).clamp_min(0) + options["eps"]
    condition = float((values[:, -1] / values[:, 0]).max())
    tolerance = 1e-6 * (1 + float(X.mean(-1).abs().max() / values[:, 0].min().sqrt())) + 1e-8 * condition
    if tolerance > 1e-2:
        return
    layer, wide = make(8, **options), make(8, **options, dtype=torch.float64)
    torch.manual_seed(0)
    G = torch.randn(x.shape).to(x.dtype)
    results = []
    for module, features in ((layer, x.float()), (wide, x.double())):
        leaf = features.clone().requires_grad_()
        y = module(leaf)
        results.append((y, torch.autograd.grad(y, leaf, G.to(y.dtype))[0], module.eval()(leaf), *module.buffers()))
    # Of outputs and gradients that vanish the rounding of what they are made of stays.
    floors = [x.numel() ** 0.5 * factor for factor in (1.0, float(values[:, 0].min().rsqrt()), 1.0)]
    for k, (result, expected) in enumerate(zip(*results, strict=True)):
        scale = max(float(expected.double().norm()), floors[k] if k < 3 else options["eps"])
        assert (result.double() - expected.double()).norm() <= tolerance * scale


@pytest.mark.parametrize("make, method, own", MAKERS)
@settings(deadline=None, derandomize=True, max_examples=10)
@given(
    x=features(dtypes=(torch.float32, torch.float16)), options=OPTIONS, value=st.sampled_from([torch.nan, torch.inf])
)
def test_what_is_not_finite_leaves_nothing_behind(make, method, own, x, options, value):
    if own.get("n_components", 0) > 8 // options["groups"]:
        own = {}
    layer = make(8, method=method, **own, **options)
    layer(x)
    before = copy.deepcopy(layer)
    poisoned = x.clone()
    poisoned[0] = value
    assert not layer(poisoned).isfinite().all()
    assert layer.num_batches_tracked == 2
    for name, buffer in before.named_buffers():
        assert name == "num_batches_tracked" or torch.equal(layer.get_buffer(name), buffer), name
    assert torch.equal(layer.eval()(x), before.eval()(x))


@settings(deadline=None, derandomize=True, max_examples=10)
@given(options=OPTIONS, make=LAYERS)
def test_one_sample_is_refused_in_training_and_evaluated(options, make):
    layer, x = make(8, **options), torch.randn(1, 8, 1, 1)
    with pytest.raises(ShapeError, match="needs more than one sample per channel in training"):
        layer(x)
    torch.testing.assert_close(layer.eval()(torch.cat([x, x]))[:1], layer(x))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(content=features(16, (torch.float32,)), style=features(16, (torch.float32,)), groups=st.sampled_from([1, 4]))
def test_coloured_features_have_the_statistics_of_the_style_where_the_content_varies(content, style, groups):
    result = whitening_coloring(content[:1], style[:1], groups=groups)
    assert result.isfinite().all()
    ours, of_style, of_content = (
        covariance(x[:1].double().flatten(2).unflatten(1, (groups, -1))) for x in (result, style, content)
    )
    values = torch.linalg.eigvalsh(of_content)
    mean = float(style[:1].double().flatten(2).mean(-1).norm())
    for k in range(groups):
        if values[0, k, 0] > 1e-12 * values[0, k, -1] and of_style[0, k].trace() > 1e-8 * mean**2:
            assert relative_error(ours[0, k], of_style[0, k]) < 1e-3
