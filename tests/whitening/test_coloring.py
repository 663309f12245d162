"""Whitening and colouring: the result has the style's statistics."""

import pytest
import torch
from support.golden import load, names, sample_errors
from support.matrices import maps, relative_error

from covpool_plugins.errors import DtypeError, OptionError, ShapeError, UnknownNameError
from covpool_plugins.linalg import Exact, ExactInverse, NewtonSchulz, covariance, inv_sqrtm, list_methods, sqrtm
from covpool_plugins.linalg.spectral import Logarithm
from covpool_plugins.whitening.coloring import both_roots, whitening_coloring

METHODS = sorted({*list_methods("sqrtm"), *list_methods("inv_sqrtm")})


def grouped_covariance(x, groups=1):
    return covariance(x.double().flatten(2).unflatten(1, (groups, -1)))


def check_statistics(result, style, groups=1, tolerance=1e-4):
    means = [x.double().mean((2, 3)).expand(len(result), -1) for x in (result, style)]
    assert relative_error(*means) < tolerance
    ours, expected = (grouped_covariance(x, groups) for x in (result, style))
    for group, of_style in zip(ours.flatten(0, 1), expected.expand_as(ours).flatten(0, 1), strict=True):
        assert relative_error(group, of_style) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (17, 3)], ids=str)
def test_the_statistics_are_those_of_the_style(groups, size, dtype):
    content, style = maps(8, 6, 6).to(dtype), (5 * maps(8, *size, seed=1) - 2).to(dtype)
    result = whitening_coloring(content, style, groups=groups)
    assert (result.shape, result.dtype) == (content.shape, dtype)
    check_statistics(result, style, groups)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_wide_ranges_of_the_features(scale):
    content, style = scale * maps(32, 10, 10).float(), maps(32, 9, 9, seed=1).float() / scale
    check_statistics(whitening_coloring(content, style + 10 * style.std()), style + 10 * style.std())
    content, style = maps(8, 6, 6), maps(8, 2, 2, seed=1)  # a style of lower rank
    check_statistics(whitening_coloring(content, style), style)


def conditioned(condition, channels=256, side=28):
    """Features whose covariance has this condition number, in float32."""
    basis = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0]
    deviations = torch.logspace(0, -torch.tensor(condition).log10().item() / 2, channels, dtype=torch.float64)
    X = (basis * deviations) @ torch.randn(channels, side * side, dtype=torch.float64)
    return X.view(1, channels, side, side).float()


@pytest.mark.parametrize("condition", [1e5, 1e10])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (1e18, 1.0), (1.0, 1e18), (1e-18, 1e18), (1e18, 1e-18)], ids=str)
def test_float32_features_of_any_condition_and_scale(condition, scales):
    content, style = (scale * conditioned(condition, 64, 20) for scale in scales)
    check_statistics(whitening_coloring(content, style), style, tolerance=1e-6)


def test_one_style_for_all_images():
    content, style = maps(8, 6, 6, batch=3), maps(8, 4, 4, batch=1, seed=1)
    result = whitening_coloring(content, style)
    check_statistics(result, style)
    torch.testing.assert_close(result, whitening_coloring(content, style.expand(3, -1, -1, -1)))
    torch.testing.assert_close(whitening_coloring(content, content), content)


def test_images_and_groups_are_on_their_own():
    content, style = maps(8, 6, 6), maps(8, 5, 5, seed=1)
    expected = whitening_coloring(content, style, groups=2)
    for part in (slice(0, 4), slice(4, 8)):
        for image in range(2):
            alone = whitening_coloring(content[image : image + 1, part], style[image : image + 1, part])
            torch.testing.assert_close(expected[image : image + 1, part], alone)
    content[0, 0, 0, 0] = torch.inf
    result = whitening_coloring(content, style, groups=2)
    assert result[0, :4].isnan().all()
    torch.testing.assert_close(result[1], expected[1])


def test_groups_of_one_are_adaptive_instance_normalization():
    content, style = maps(8, 6, 6), maps(8, 5, 5, seed=1)
    mean = [x.mean((2, 3), keepdim=True) for x in (content, style)]
    scale = [x.std((2, 3), correction=0, keepdim=True) for x in (content, style)]
    expected = (content - mean[0]) / scale[0] * scale[1] + mean[1]
    torch.testing.assert_close(whitening_coloring(content, style, groups=8), expected)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_blends(alpha):
    content, style = maps(8, 6, 6), maps(8, 5, 5, seed=1)
    expected = alpha * whitening_coloring(content, style) + (1 - alpha) * content
    torch.testing.assert_close(whitening_coloring(content, style, alpha), expected)
    for learned in (torch.tensor(alpha), torch.tensor([alpha]), torch.tensor([alpha, alpha])):
        torch.testing.assert_close(whitening_coloring(content, style, learned.double()), expected)
    each = whitening_coloring(content, style, torch.tensor([0.0, alpha]))
    torch.testing.assert_close(each, torch.stack([content[0], expected[1]]))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_linalg(method):
    content, style = (x.requires_grad_() for x in (maps(6, 8, 8), maps(6, 7, 7, seed=1)))
    result = whitening_coloring(content, style, method=method, eps=1e-5)
    S, W = both_roots(method)
    transfer = sqrtm(grouped_covariance(style), S) @ inv_sqrtm(grouped_covariance(content), W, eps=1e-5)
    expected = transfer @ grouped_covariance(content) @ transfer.mT
    torch.testing.assert_close(grouped_covariance(result), expected)
    for grad in torch.autograd.grad(result.square().sum(), (content, style)):
        assert grad.isfinite().all() and grad.any()


def test_the_roots_that_a_name_stands_for():
    assert both_roots("exact") == both_roots(Exact()) == both_roots(ExactInverse()) == (Exact(), ExactInverse())
    assert both_roots("svdtaylor")[1] == ExactInverse()
    assert both_roots(NewtonSchulz(iterations=7)) == (NewtonSchulz(iterations=7),) * 2
    assert both_roots("isqrt") == (NewtonSchulz(),) * 2
    root, inverse = both_roots("newton_schulz")
    assert root == inverse and inverse.iterations == 10


@pytest.mark.parametrize("method, groups", [("exact", 1), ("exact", 2), ("mpa", 1)])
def test_gradients(method, groups):
    content, style = (x.requires_grad_() for x in (maps(4, 2, 3, 1), maps(4, 2, 4, 1, seed=1)))
    alpha = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    if method != "exact":
        method = type(both_roots(method)[0])(gradient="exact")

    def result(content, style, alpha):
        return whitening_coloring(content, style, alpha, method, groups, eps=1e-3)

    assert torch.autograd.gradcheck(result, (content, style, alpha))
    content, style = (x.requires_grad_() for x in (maps(2, 2, 2, 1), maps(2, 2, 3, 1, seed=1)))
    assert torch.autograd.gradgradcheck(whitening_coloring, (content, style))


CONSTANT = torch.full((2, 8, 4, 4), 3.0, dtype=torch.float64)
DEGENERATE = {
    "constant content": (CONSTANT, maps(8, 5, 5)),
    "one position of content": (CONSTANT[..., :1, :1], maps(8, 5, 5)),
    "constant style": (maps(8, 4, 4), CONSTANT),
    "one position of style": (maps(8, 4, 4), CONSTANT[..., :1, :1]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["exact", "mpa", "newton_schulz"])
@pytest.mark.parametrize("case", DEGENERATE)
def test_what_does_not_vary_gives_the_mean(case, method, dtype):
    content, style = (x.to(dtype).clone().requires_grad_() for x in DEGENERATE[case])
    result = whitening_coloring(content, style, method=method)
    torch.testing.assert_close(result, style.mean((2, 3), keepdim=True).expand_as(result))
    for grad in torch.autograd.grad(result.square().sum(), (content, style)):
        assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method, eps", [("exact", 0.0), ("mpa", 1e-3), ("newton_schulz", 1e-3)])
def test_fewer_positions_than_channels(method, eps, dtype):
    content, style = (x.to(dtype).requires_grad_() for x in (maps(16, 3, 3), maps(16, 2, 3, seed=1)))
    result = whitening_coloring(content, style, method=method, eps=eps)
    if method == "exact":  # the others are approximations, of higher rank
        assert torch.linalg.matrix_rank(grouped_covariance(result), rtol=1e-6).tolist() == [[5], [5]]
    for grad in torch.autograd.grad(result.square().sum(), (content, style)):
        assert grad.isfinite().all()
    assert grad.norm() < 1e3 * style.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_computed_in_float32(dtype):
    content, style = maps(8, 6, 6).to(dtype), maps(8, 5, 5, seed=1).to(dtype)
    result = whitening_coloring(content, style)
    torch.testing.assert_close(result, whitening_coloring(content.float(), style.float()).to(dtype))
    results = []
    for enabled in (False, True):
        content, style = (x.float().requires_grad_() for x in (maps(8, 6, 6), maps(8, 5, 5, seed=1)))
        with torch.autocast("cpu", dtype, enabled=enabled):
            result = whitening_coloring(content, style, 0.5)
            results.append((result, *torch.autograd.grad(result.square().sum(), (content, style))))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.slow
def test_compiled_as_a_whole():
    content, style = (x.requires_grad_() for x in (maps(8, 6, 6), maps(8, 5, 5, seed=1)))
    compiled = torch.compile(whitening_coloring, fullgraph=True, backend="aot_eager")
    results = [f(content, style, groups=2) for f in (compiled, whitening_coloring)]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), (content, style)) for y in results))


@pytest.mark.parametrize("name", names("fms__WCT"))
def test_the_original(name):
    """It divides the style's covariance by the number of positions of the content: a style of another spread."""
    golden = load(name)
    content, style, alpha = (golden.arrays[key].requires_grad_() for key in ("content", "style", "param.alpha"))
    mean, positions = style.mean((2, 3), keepdim=True), [x[0, 0].numel() for x in (content, style)]
    spread = mean + (positions[1] / positions[0]) ** 0.5 * (style - mean)
    result = whitening_coloring(content, spread, alpha, "mpa", golden.meta["args"]["n_group"], eps=1e-5)
    # A style at one position has the covariance eps I there, and none here.
    assert max(sample_errors(result.detach(), golden.arrays["output"])) < (5e-5 if positions[1] > 1 else 1e-5**0.5)
    tolerances = {"param.alpha": 5e-4 if positions[1] > 1 else 2e-3, "style": 5e-4}
    if "deficient" not in name:  # its gradient of the inverse root has one norm for all samples, which moves it
        tolerances["content"] = 1e-2
    grads = torch.autograd.grad(result, (alpha, style, content), golden.arrays["grad_output"])
    for (key, tolerance), grad in zip(tolerances.items(), grads, strict=False):
        assert max(sample_errors(grad, golden.arrays[f"grad_{key}"])) < tolerance, key


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(content=torch.zeros(2, 8, 4)), ShapeError, r"content must be features \(B, C, H, W\), got .*2, 8, 4"),
        (dict(content=torch.zeros(2, 8, 4, 4).long()), DtypeError, "content must be real floating point"),
        (dict(style=torch.zeros(2, 6, 4, 4)), ShapeError, r"style must have the 8 channels .*\(2, 6, 4, 4\)"),
        (dict(style=torch.zeros(3, 8, 4, 4)), ShapeError, r"one image or 2, got shape \(3, 8, 4, 4\)"),
        (dict(alpha=1.5), OptionError, r"alpha must be a number in \[0, 1\], got 1.5"),
        (dict(alpha=torch.zeros(3)), ShapeError, r"alpha must be .*got shape \(3,\)"),
        (dict(groups=3), OptionError, "groups must divide the 8 channels, got 3"),
        (dict(groups=0), OptionError, "groups must be a positive integer, got 0"),
        (dict(eps=-1.0), OptionError, "eps must be a number in .*got -1.0"),
        (dict(method="mpaa"), UnknownNameError, "unknown method 'mpaa'; available: mpa"),
        (dict(method=Logarithm()), OptionError, "Logarithm.* is no method for sqrtm"),
    ],
)
def test_bad_input_is_named(change, error, words):
    arguments = dict(content=maps(8, 4, 4), style=maps(8, 4, 4)) | change
    with pytest.raises(error, match=words):
        whitening_coloring(**arguments)
