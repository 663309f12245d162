"""Forward mode, mapped gradients and Hessians by torch.func; leaves of torch.fx."""

import copy

import pytest
import torch
from support.matrices import features, relative_error
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

from covpool_plugins.pooling import create_pool, list_pools, pool_options

POOLS = list_pools()
# Their gradient is no derivative of what they compute.
APPROXIMATE = {"svdtaylor", "svdpi", "svdtrunc", "svdtopn", "svdoriginal", "svdnewton"}
EXACT = [name for name in POOLS if name not in APPROXIMATE]
POSITIONS = [3, pytest.param(6, marks=pytest.mark.slow)]  # fewer than channels, more


def represent_and_features(name, positions, channels=4):
    if name == "denman_beavers":
        positions = 6  # magnifies rounding in the null space
    options = {"reduce_channels": None} if "reduce_channels" in pool_options(name) else {}
    options |= {"projection": 8} if name == "cbp" else {}
    pool = create_pool(name, channels, **options).double().eval()
    X = features(channels, positions, batch=2) + 0.1
    if name == "moment":
        return lambda X: pool.represent(torch.cat([X, X], 1)), X
    return pool.represent, X


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", EXACT)
def test_forward_mode_is_the_adjoint_of_the_gradient(name, positions):
    represent, X = represent_and_features(name, positions)
    along = torch.randn_like(X)
    vectors, tangent = torch.func.jvp(represent, (X,), (along,))
    assert relative_error(vectors, represent(X)) < 1e-12
    direction = torch.randn_like(vectors)
    (grad,) = torch.func.vjp(represent, X)[1](direction)
    assert torch.allclose((tangent * direction).sum(), (grad * along).sum(), rtol=1e-6)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, along)
        assert relative_error(torch.autograd.forward_ad.unpack_dual(represent(dual)).tangent, tangent) < 1e-9
    one = X[:1]
    assert relative_error(torch.func.jacfwd(represent)(one), torch.func.jacrev(represent)(one)) < 1e-6


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", EXACT)
def test_hessians_by_forward_over_reverse(name, positions):
    """As by reverse over reverse, which test_transforms.py compares with differences."""
    represent, X = represent_and_features(name, positions, channels={"cbp": 4, "moment": 16}.get(name, 3))
    loss = lambda X: represent(X).sin().sum()  # noqa: E731
    expected = torch.autograd.functional.hessian(loss, X[:1])
    assert relative_error(torch.func.hessian(loss)(X[:1]), expected) < 1e-6


@pytest.mark.parametrize("name", POOLS)
def test_gradients_of_samples_by_vmap(name):
    represent, X = represent_and_features(name, 6)
    loss = lambda X: represent(X.unsqueeze(0)).sin().sum()  # noqa: E731
    leaf = X.clone().requires_grad_()
    represent(leaf).sin().sum().backward()
    assert relative_error(torch.func.vmap(torch.func.grad(loss))(X), leaf.grad) < 1e-9


@pytest.mark.parametrize("name", POOLS)
def test_the_pool_is_a_leaf_for_fx(name):
    pool = create_pool(name, 4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), pool, nn.Linear(pool.out_features, 2)).eval()
    x = torch.randn(2, 3, 4, 4)
    graph = torch.fx.symbolic_trace(model)
    assert [node.op for node in graph.graph.nodes].count("call_module") == 3
    assert torch.equal(graph(x), model(x))


@pytest.mark.filterwarnings("ignore")  # torch.ao is deprecated
@pytest.mark.parametrize("name", ["svdpade", "cbp"])
def test_quantisation_takes_the_pool_as_it_is(name):
    pool = create_pool(name, 4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), pool, nn.Linear(pool.out_features, 2)).eval()
    x = torch.randn(2, 3, 4, 4)
    prepared = quantize_fx.prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping("qnnpack"), (x,))
    assert relative_error(prepared(x), model(x)) < 0.1
