"""A map of one position has no covariance: a new user is told, once, and nobody else."""

import warnings

import pytest
import torch

from covpool_plugins.pooling import CovariancePool, create_pool, list_pools

POOLS = list_pools()


def count_warnings(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    texts = [str(warning.message) for warning in caught if "1 position" in str(warning.message)]
    assert all("last_stride=1" in text and "resnet18_cifar" in text for text in texts)
    return len(texts)


@pytest.mark.parametrize("name", POOLS)
def test_one_warning_in_training_where_the_vectors_are_the_same_for_all(name):
    pool, x = create_pool(name, 8).train(), torch.randn(3, 8, 1, 1)
    counts = [count_warnings(lambda: pool(x)) for _ in range(2)]
    assert counts[1] == 0
    pool.eval()
    vectors = pool(torch.randn(3, 8, 1, 1))
    assert counts[0] == int(bool((vectors == vectors[0]).all()))
    quiet = create_pool(name, 8)
    assert count_warnings(lambda: quiet.train()(torch.randn(3, 8, 2, 1))) == 0
    assert count_warnings(lambda: quiet.eval()(x)) == 0


@pytest.mark.filterwarnings("ignore")
def test_no_warning_for_a_program():
    pool, x = CovariancePool(8, "isqrt", reduce_channels=None).train(), torch.randn(3, 8, 1, 1)
    programs = [
        lambda: torch.compile(pool, backend="eager", fullgraph=True)(x),
        lambda: torch.jit.trace(pool, x, check_trace=False),
        lambda: torch.export.export(pool, (x,)),
        lambda: torch.func.vmap(pool)(x.unsqueeze(1)),
    ]
    assert [count_warnings(program) for program in programs] == [0] * len(programs)
    assert count_warnings(lambda: create_pool("isqrt", 8, centered=False)(x)) == 0
