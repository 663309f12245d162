"""Parity with the original layers: three training steps and an evaluation, with gradients and buffers.

What cannot agree is listed, with the reason: FAILING, LOOSE and NOISE below.
"""

import pytest
import torch
from support.golden import load, names

from covpool_plugins.whitening import PCANorm2d, convert_state, released_layer
from covpool_plugins.whitening.matrices import PowerIteration

STEPS = ("step1", "step2", "step3", "eval")
TOLERANCE = 1e-4

# The original raises, or its gradients are not finite; those cases that have an output are in NOISE too.
FAILING = {
    "dbn__BatchNorm_g2__well_4x8x4x4_f32",
    "pisvd__myPCANormSVDPI__well_4x8x4x4_f32",
    "pisvd__ZCANormSVDunstable_g1__repeated_4x8x4x4_f32",
    "pisvd__ZCANormSVDunstable_g1__zero_4x8x4x4_f32",
}
# Float32 inside the original, for float64 input too, on nearly or exactly singular matrices.
LOOSE = {
    ("dbn__ZCANormBatch_g1_rank__well_2x16x2x3_f32", "grad_input"): 3e-3,  # rank 11 of 16
    ("dbn__ZCANormBatch_g1_rank__well_2x16x2x3_f32", "grad_param"): 2e-4,
    ("pisvd__ZCANormSVDPI_g1_rank__well_2x16x2x3_f32", "grad_input"): 4e-4,  # rank 11 of 16
    ("pisvd__myPCANormSVDPI__well_4x16x4x4_f32", "grad_input"): 3e-4,  # two eigenvalues 2 % apart
}
# What is arbitrary, or rounding noise, in the original, by the beginning of the entries.
NOISE = {
    # All eigenvalues are equal (or zero): which eigenvectors are kept is arbitrary.
    "pisvd__ZCANormSVDPI_g1__repeated_4x8x4x4_f32": ("output", "grad_input", "grad_param", "running_subspace"),
    "pisvd__ZCANormSVDunstable_g1__repeated_4x8x4x4_f32": ("output", "grad_input", "grad_param", "running_subspace"),
    "pisvd__ZCANormSVDunstable_g1__zero_4x8x4x4_f32": ("grad_input", "running_subspace"),
    "pisvd__ZCANormPIunstable_g1__repeated_4x8x4x4_f32": ("output", "grad_input", "grad_param", "running_subspace"),
    "pisvd__ZCANormPIunstable_g1__zero_4x8x4x4_f32": ("grad_input", "running_subspace"),
    "pisvd__myPCANormSVDPI__zero_4x20x4x4_f32": ("grad_input", "running_subspace"),
    # Eigenvectors of the null space, amplified by 1 / √eps; which of them are kept is decided by rounding.
    "pisvd__ZCANormSVDunstable_g1_rank__well_2x16x2x3_f32": (
        "running_subspace",
        "output_eval",
        "grad_input_eval",
        "grad_param_eval",
    ),
    # Power iterations that have not converged: the original's gradient is neither that of its steps (up to 1.3e-2 away
    # on the first) nor the paper's formula with deflation (up to 2.6e-2); what it is was not found.
    "pisvd__ZCANormPIunstable_g1__well_4x8x4x4_f32": ("grad_input_step",),
    "pisvd__ZCANormPIunstable_g1__deficient_4x8x4x4_f32": ("grad_input_step",),
    "pisvd__ZCANormPIunstable_g1_rank__well_2x16x2x3_f32": ("grad_input_step",),
}


class GivenStarts(PowerIteration):
    """The starting vectors that the original drew."""

    vectors = None

    def starts(self, A):
        return type(self).vectors.to(A.dtype).expand_as(A)


def _layer(golden):
    C = golden.arrays["input_step1"].shape[1]
    layer = released_layer(golden.meta["method"], C, **golden.meta["args"], dtype=torch.float64)
    layer.load_state_dict(convert_state(golden.entries("param.") | golden.entries("buffer_before.")))
    return layer


def _relative(result, expected):
    norm = expected.norm()
    return float((result.detach() - expected).norm() / (norm if norm > 0 else 1.0))


def _results(layer, arrays, step):
    """All that a call gives, by the beginning of the name of its entry."""
    layer.train(step != "eval")
    if isinstance(layer._chosen, PowerIteration) and step != "eval":
        drawn = [k for k in arrays if k.startswith(f"buffer_after_{step}.eigenvector0-")]
        GivenStarts.vectors = torch.stack([arrays[k].flatten() for k in drawn], dim=-1)
        layer._chosen = GivenStarts()
    x = arrays[f"input_{step}"].clone().requires_grad_()
    y = layer(x)
    gradients = torch.autograd.grad(y, [x, layer.weight, layer.bias], arrays[f"grad_output_{step}"])
    results = {f"output_{step}": y, f"grad_input_{step}": gradients[0]}
    results |= {f"grad_param_{step}.weight": gradients[1], f"grad_param_{step}.bias": gradients[2]}
    return results


def _buffers(golden, step):
    return convert_state(golden.entries(f"buffer_after_{step}."))


CASES = [name for name in names("pisvd__", "dbn__ZCA") if name not in FAILING or "unstable" in name]


@pytest.mark.parametrize("name", CASES)
def test_four_calls(name):
    golden = load(name)
    layer, noise = _layer(golden), NOISE.get(name, ())
    for step in STEPS:
        results = _results(layer, golden.arrays, step)
        for entry, result in results.items():
            if entry.startswith(noise) and not entry.endswith(".bias"):
                assert torch.isfinite(result).all(), entry
                continue
            tolerance = LOOSE.get((name, entry.split("_step")[0]), TOLERANCE)
            assert _relative(result, golden.arrays[entry].view(result.shape)) < tolerance, entry
        for key, expected in _buffers(golden, step).items():
            if step != "eval" and key != "num_batches_tracked" and not key.startswith(noise):
                assert _relative(getattr(layer, key), expected) < TOLERANCE, (step, key)


def test_cases_are_all_listed():
    known = set(CASES) | FAILING | set(names("dbn__BatchNorm"))
    assert known == set(names("pisvd__", "dbn__"))
    assert known >= set(NOISE) | {name for name, _ in LOOSE}
    for name in known:
        assert bool(load(name).meta["original_fails"]) == (name in FAILING)


@pytest.mark.parametrize("method", ["ZCANormSVDPI", "ZCANormSVDunstable"])
def test_equal_eigenvalues_agree_up_to_a_rotation(method):
    golden = load(f"pisvd__{method}_g1__repeated_4x8x4x4_f32")
    layer = _layer(golden)
    _results(layer, golden.arrays, "step1")
    mine, theirs = layer.running_subspace, _buffers(golden, "step1")["running_subspace"]
    assert torch.allclose(torch.linalg.eigvalsh(mine), torch.linalg.eigvalsh(theirs), atol=1e-5)


@pytest.mark.parametrize("name", [n for n in names("dbn__BatchNorm") if n not in FAILING])
def test_the_batch_norm_beside_decorrelated_bn(name):
    """With all components PCA is a batch norm.

    The original's running statistics are wrong (the new mean weighs 0.9, and a tenth of the mean is added to the
    variance), so evaluation starts from its own.
    """
    arrays = load(name).arrays
    C = arrays["input_step1"].shape[1]
    layer = PCANorm2d(C, eps=1e-10, method="svdpi_released", dtype=torch.float64)
    state = {"weight": arrays["param.weight"], "bias": arrays["param.bias"]}
    for step in STEPS:
        state |= {f"running_{k}": arrays[f"buffer_after_step3.running_{k}"] for k in ("mean", "var")}
        layer.load_state_dict(convert_state(state | {"running_subspace": torch.eye(C)}))
        for entry, result in _results(layer, arrays, step).items():
            assert _relative(result, arrays[entry].view(result.shape)) < TOLERANCE, entry
