"""Parity of the covariance heads of So-ViT: iSQRT (MPN), Padé root (PadeSqt), svPN, and the cross covariance.

Where the original fails its value is not compared: see the tests after ``test_heads``.
"""

import pytest
import torch
from support.golden import load, names, sample_errors
from support.matrices import relative_error

from covpool_plugins.errors import OptionError
from covpool_plugins.pooling import create_pool
from covpool_plugins.pooling.cross_covariance import CrossCovariancePool

POOLS = {"MPN": "isqrt", "PadeSqt": "mpa", "svPN": "svpn"}
ALL_TRIPLETS = "sovit__svPN_norm_alltop__well_2x8x16_f32"
CROSS_THROUGH_A_ROOT = names("sovit__PadeSqt_cross")
ZERO = [name for name in names("sovit__") if "zero" in name]
NOT_COMPARED = {ALL_TRIPLETS, *CROSS_THROUGH_A_ROOT}

# Of the output and of the gradients. The Padé polynomials of the original cancel, in float32 for float64 input too.
TOLERANCES = {"MPN": (1e-6, 3e-6), "svPN": (1e-6, 3e-6), "PadeSqt": (5e-5, 3e-4)}
# Its Lyapunov steps multiply what rounding leaves in the null space of a singular root by 1.5 each.
SINGULAR = {"sovit__PadeSqt_norm_nodr_nomean__deficient_2x8x6_f32": (5e-5, 1.5**9 * 5e-5)}
# The root is rounded to half precision.
HALF = {"sovit__PadeSqt_norm_half__well_2x16x25_f32": (2**-11, 2**-11)}


def _method(golden):
    return golden.meta["method"].split("_")[0]


def _tolerances(golden):
    return {**SINGULAR, **HALF}.get(golden.name, TOLERANCES[_method(golden)])


def _options(golden):
    """Options of our pool for the arguments of the original."""
    representation, normalization = golden.meta["args"]["representation"], golden.meta["args"]["normalization"]
    channels = representation["dimension_reduction"]
    options = {"reduce_channels": channels, "centered": representation["remove_mean"]}
    if representation["cov_type"] == "norm":
        # The second number of the original is not used.
        options["reduce_channels"] = channels and channels[0]
        options["vectorize"] = normalization.get("vec", "triu")
    if _method(golden) == "svPN":
        options["start"] = "ones" if normalization.get("init_weight") == "one" else "learned"
        options |= {ours: normalization[key] for ours, key in [("alpha", "alpha"), ("n", "svNum")]}
    if _method(golden) == "PadeSqt" and representation["cov_type"] == "norm":
        options["gradient"] = "lyapunov"
    if "iterNum" in normalization:
        options["iterations"] = normalization["iterNum"]
    return options


def _key(original):
    """Our name of a parameter or buffer of the original, whose reduction is a Sequential (or a list of two)."""
    parts = original.split(".")
    if parts[0] == "normalization":
        return original
    *which, layer, leaf = parts[2:]
    prefix = f"reductions.{which[0]}" if which else "reduction"
    return f"{prefix}.{('conv', 'norm')[int(layer)]}.{leaf}"


def _entries(golden, prefix):
    return {_key(name): value for name, value in golden.entries(prefix).items()}


def _pool(golden, dtype=torch.float64, **changes):
    cross = golden.meta["args"]["representation"]["cov_type"] == "cross"
    name = "crosscov" if cross else POOLS[_method(golden)]
    options = {**_options(golden), **changes}
    pool = create_pool(name, golden.arrays["input"].shape[1], dtype=dtype, **options)
    state = _entries(golden, "param.") | _entries(golden, "buffer_before.")
    missing, unexpected = pool.load_state_dict(state, strict=False)
    # PadeSqt has no start of a power iteration.
    assert not unexpected and set(missing) <= ({"normalization.weight"} if _method(golden) == "PadeSqt" else set())
    return pool.train(golden.meta["mode"] == "train")


def _errors(result, expected):
    return sample_errors(result.detach().flatten(1), expected.flatten(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [n for n in names("sovit__") if n not in NOT_COMPARED])
def test_heads(name, dtype):
    golden = load(name)
    pool = _pool(golden, dtype)
    x, out = golden.step(pool, dtype)
    of_output, of_gradients = _tolerances(golden)
    if dtype == torch.float32 and _method(golden) == "PadeSqt":
        of_gradients *= 2  # ours rounds as well
    right = slice(1, None) if name in ZERO else slice(None)  # zero features make the original NaN
    assert max(_errors(out, golden.arrays["output"])[right]) < of_output
    assert max(_errors(x.grad, golden.arrays["grad_input"])[right]) < of_gradients
    parameters = dict(pool.named_parameters())
    expected = {} if name in ZERO else _entries(golden, "grad_param.")
    assert name in ZERO or set(expected) == set(parameters)
    for key, grad in expected.items():
        assert relative_error(parameters[key].grad, grad) < of_gradients, key
    for key, value in _entries(golden, "buffer_after.").items():
        assert (pool.get_buffer(key) - value).abs().max() < 1e-6, key


@pytest.mark.parametrize("name", ZERO)
def test_zero_features_give_zeros(name):
    golden = load(name)
    pool = _pool(golden)
    x, out = golden.step(pool)
    assert not out[0].any() and not x.grad[0].any() and out[1].any()
    for parameter in pool.parameters():
        together = parameter.grad.clone()
        parameter.grad = None
        pool(x[1:]).backward(golden.arrays["grad_output"].view_as(out)[1:])
        assert relative_error(together, parameter.grad) < 1e-12 and together.any()


def test_one_iteration_finds_one_triplet():
    """u₀ᵀ R is zero after the first triplet: the original goes on with its rounding, we refuse to."""
    golden = load(ALL_TRIPLETS)
    with pytest.raises(OptionError, match="n=None needs iterations >= 2, got 1"):
        _pool(golden)
    # What its later triplets do not change is the share of the start: u₀ᵀ F = σ₁^(α-1) u₀ᵀ Q v₁ v₁ᵀ.
    first = _pool(golden, n=1, eps=0.0, vectorize="full")
    X = golden.arrays["input"].flatten(2)
    X = X - X.mean(-1, keepdim=True)
    Q = X @ X.mT / X.shape[-1]
    root = (Q.flatten(1).norm(dim=1) / first.represent(X).norm(dim=1)).detach()
    start = golden.arrays["param.normalization.weight"]
    v = torch.nn.functional.normalize(start @ Q, dim=-1)
    share = ((start @ Q) * v).sum(-1, keepdim=True) / root.unsqueeze(-1) * v
    theirs = torch.einsum("i,bij->bj", start, golden.arrays["output"].view_as(Q))
    assert max(sample_errors(theirs, share)) < 1e-5


def test_enough_iterations_give_what_it_is_meant_to_be():
    golden = load(ALL_TRIPLETS)
    X = golden.arrays["input"].flatten(2)
    X = X - X.mean(-1, keepdim=True)
    U, s, Vh = torch.linalg.svd(X @ X.mT / X.shape[-1])
    expected = (U * s.unsqueeze(-2) ** 0.5) @ Vh
    assert max(_errors(_pool(golden, iterations=60)(golden.arrays["input"]), expected)) < 1e-6


@pytest.mark.parametrize("name", CROSS_THROUGH_A_ROOT)
def test_cross_covariance_is_normalised_by_its_singular_values(name):
    """The original takes a symmetric root of a matrix that is not symmetric, or not square: NaN or an exception."""
    golden = load(name)
    assert golden.meta["original_fails"]
    pool = _pool(golden, n=None, iterations=100)
    assert isinstance(pool, CrossCovariancePool)
    x = golden.arrays["input"].requires_grad_()
    Y, Z = (_reduced(golden, i) for i in (0, 1))
    U, s, Vh = torch.linalg.svd(Y @ Z.mT / Y.shape[-1], full_matrices=False)
    expected = (U * s.unsqueeze(-2) ** 0.5) @ Vh
    out = pool(x)
    assert max(_errors(out, expected)) < 1e-6
    out.square().sum().backward()
    # ‖F‖² is the sum of the singular values.
    (of_norm,) = torch.autograd.grad(torch.linalg.svdvals(_cross(pool, x)).sum(), x)
    assert relative_error(x.grad, of_norm) < 1e-6


def _reduced(golden, i):
    arrays, prefix = golden.arrays, f"param.representation.conv_dr_block.{i}"
    Y = torch.einsum("oc,bcmn->bomn", arrays[f"{prefix}.0.weight"].flatten(1), arrays["input"]).flatten(2)
    mean, variance = Y.mean((0, 2), keepdim=True), Y.var((0, 2), correction=0, keepdim=True)
    scale, shift = (arrays[f"{prefix}.1.{leaf}"].unsqueeze(-1) for leaf in ("weight", "bias"))
    Y = ((Y - mean) / (variance + 1e-5).sqrt() * scale + shift).relu()
    return (Y - Y.mean(-1, keepdim=True)).detach()


def _cross(pool, x):
    Y, Z = (reduction(x).flatten(2) for reduction in pool.reductions)
    return (Y - Y.mean(-1, keepdim=True)) @ Z.mT / Y.shape[-1]
