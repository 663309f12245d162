"""Every head and norm layer of both ecosystems on every hostile input: nothing fails; and what counts as a failure."""

import pytest
import torch
from support.examination import CHANNELS, ECOSYSTEMS, SIDE, Subject, examine, failures, norm_layers, outcome_table
from support.hostile_inputs import INPUTS, ordinary_features
from torch import nn

from covpool_plugins.errors import OptionError
from covpool_plugins.pooling import create_pool
from covpool_plugins.timm_plugin import list_heads
from covpool_plugins.whitening import PCANorm2d, ZCANorm2d, list_whitening_methods

TIMM = {subject.name: subject for subject in ECOSYSTEMS["timm"]()}
# One of each family; test_all_cases takes all, in all precisions of both ecosystems.
FAST = ["svdpade", "isqrt", "seb", "cbp", "gap", "ZCANorm2d exact", "PCANorm2d exact"]
IMPOSSIBLE = {"another number of channels", "integers"}


def test_nothing_is_left_out():
    assert list(TIMM) == [*list_heads(), *(f"{kind.__name__} {method}" for kind, method in norm_layers())]
    for method in set(list_whitening_methods()) - set(list_whitening_methods(eigenvectors=True)):
        with pytest.raises(OptionError, match=f"'{method}'"):
            PCANorm2d(CHANNELS, method=method)


def check_refusals(subject, outcomes):
    """By an error of this package that says what is wrong, or by torch's batch norm in the words of torch."""
    refused = {outcome.input: outcome.message for outcome in outcomes if outcome.kind == "refused"}
    always = IMPOSSIBLE | ({"no positions"} if subject.is_head else set())
    assert always <= set(refused) <= always | {"one sample of 1x1"}
    for name, message in refused.items():
        of_torch = name == "one sample of 1x1" and "Expected more than 1 value per channel when training" in message
        assert of_torch or message.startswith(("ShapeError: ", "DtypeError: ")), message
    assert subject.is_head or "needs more than one sample per channel in training" in refused["one sample of 1x1"]


@pytest.mark.parametrize("name", FAST)
def test_a_training_step(name):
    outcomes = list(examine(TIMM[name], ["float32"], modes=[True]))
    assert failures(outcomes) == ""
    assert {outcome.input for outcome in outcomes} == set(INPUTS)
    check_refusals(TIMM[name], outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("ecosystem", ECOSYSTEMS)
def test_all_cases(ecosystem, capsys):
    """Prints the counts; only what float16 cannot hold is left out."""
    subjects = ECOSYSTEMS[ecosystem]()
    assert [subject.name for subject in subjects] == list(TIMM)
    outcomes = []
    for subject in subjects:
        of_subject = list(examine(subject))
        outcomes += of_subject
        check_refusals(subject, of_subject)
        everything = len(subject.variants) * len(INPUTS) * 2
        for precision in ("float32", "bfloat16", "autocast"):
            assert sum(outcome.precision == precision for outcome in of_subject) == everything
        assert 0.8 * everything < sum(outcome.precision == "float16" for outcome in of_subject) < everything
    with capsys.disabled():
        print(f"\n\n{ecosystem}\n\n{outcome_table(outcomes)}\n")
    assert failures(outcomes) == ""


class Broken(nn.Module):
    """Passes maps on, with a fault."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def forward(self, x):
        return self.fault(x)


def refuses_in_two_lines(x):
    if not x.is_floating_point():
        raise ValueError("one\ntwo")
    return 1 * x


FAULTS = {
    "not finite: output": (lambda x: x / x.amax(dim=(1, 2, 3), keepdim=True), "zeros"),
    "not finite: gradient": (lambda x: x.abs().sqrt(), "zeros"),
    "NaN or infinity is lost": (lambda x: x.nan_to_num(), "NaN"),
    "other samples have another output and gradient": (lambda x: x * x.mean(), "scale 1e18"),
    "other samples have another output": (lambda x: x + x.mean().detach(), "constant"),
    "not refused": (lambda x: 1 * x, "another number of channels"),
    "ValueError: one two": (refuses_in_two_lines, "integers"),
    "_LinAlgError": (lambda x: torch.linalg.eigh(x).eigenvectors, "NaN"),
    "shapes": (lambda x: x.sum(0, keepdim=True), "ordinary"),
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_are_found(message):
    fault, name = FAULTS[message]
    subject = Subject("broken", False, {"default": lambda: Broken(fault)})
    outcomes = list(examine(subject, ["float32"], [name]))
    assert len(outcomes) == 2
    assert all(outcome.kind == "failed" and outcome.message.startswith(message) for outcome in outcomes)


def test_other_groups_have_to_be_finite():
    class Leaking(ZCANorm2d):
        def forward(self, x):
            return super().forward(x) + 0 * x.sum()

    subject = Subject("leaking", False, {"default": lambda: Leaking(CHANNELS, 2)})
    (outcome,) = examine(subject, ["float32"], ["NaN"], modes=[True])
    assert outcome.message == "other groups are not finite"


def test_outliers_of_float16_are_left_out_and_nothing_else():
    subject = Subject("square", False, {"default": lambda: Broken(lambda x: 1e4 * x)})
    outcomes = examine(subject, ["float16"], ["ordinary", "zeros", "large mean"])
    assert {outcome.input: outcome.kind for outcome in outcomes} == {"ordinary": "finite", "zeros": "finite"}
    broken = Subject("broken", False, {"default": lambda: Broken(lambda x: x / (x - x))})
    assert {outcome.kind for outcome in examine(broken, ["float16"], ["ordinary"])} == {"failed"}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_are_what_they_say(name):
    hostile, x = INPUTS[name], ordinary_features(3, CHANNELS, SIDE)
    before = x.clone()
    spoiled = (hostile.spoil or hostile.reshape)(x)
    assert torch.equal(x, before)
    assert hostile.spoil is None or (spoiled.shape == x.shape and spoiled.dtype == x.dtype)
    assert hostile.poisoned == (not spoiled.isfinite().all())
    assert name == "ordinary" or spoiled.shape != x.shape or not torch.equal(spoiled, x)


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("scale", [1e2, 1e8, 1e15])
def test_the_scaling_branch_ends_where_no_eigenvalue_is_small(scale, side):
    """exp(-A) leaves nothing of large eigenvalues; it took the rounding of A for small ones."""
    results = []
    for name in ("seb", "exact"):
        x = (scale * ordinary_features(3, CHANNELS, side)).requires_grad_()
        out = create_pool(name, CHANNELS, reduce_channels=None)(x)
        (torch.linspace(-1, 1, out.numel()).view_as(out) * out).sum().backward()
        results.append((out / scale, x.grad))
    for values, expected in zip(*results, strict=True):
        assert (values - expected).norm() < 1e-5 * expected.norm()
