"""Two processes equal one with the joined batch."""

import pytest
import torch
from support.two_processes import LAYERS, SIZES, in_two_processes, inputs, run

pytestmark = pytest.mark.slow  # two processes


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return in_two_processes(tmp_path_factory.mktemp("processes"))


def _close(result, expected):
    return torch.allclose(result, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layer", [name for name in LAYERS if name != "apart"])
def test_two_processes_equal_one(both, layer, size):
    first, second = (results[layer, size] for results in both)
    joined = run(layer, inputs(layer, size)[0])
    for entry in ("output", "grad_input"):
        for a, b, expected in zip(first[entry], second[entry], joined[entry], strict=True):
            assert _close(torch.cat([a, b]), expected), entry
    for a, b, expected in zip(first["grad_param"], second["grad_param"], joined["grad_param"], strict=True):
        assert _close(a + b, expected)
    for name, expected in joined["buffers"].items():
        assert torch.equal(first["buffers"][name], second["buffers"][name])
        assert _close(first["buffers"][name], expected), name
    assert _close(torch.cat([first["evaluated"], second["evaluated"]]), joined["evaluated"])


@pytest.mark.parametrize("size", ["equal", "unequal"])
def test_without_sync_they_stay_apart(both, size):
    batches, begin = inputs("apart", size)
    for results, share in zip(both, (slice(None, begin), slice(begin, None)), strict=True):
        alone = run("apart", [(x[share].clone(), g[share].clone()) for x, g in batches])
        for entry in ("output", "grad_input", "grad_param"):
            for mine, expected in zip(results["apart", size][entry], alone[entry], strict=True):
                assert torch.equal(mine, expected)
    means = [results["apart", size]["buffers"]["running_mean"] for results in both]
    assert not torch.allclose(*means)
