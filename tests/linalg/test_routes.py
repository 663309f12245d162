"""eigh and matrix products are two routes to one root; which is taken is measured, remembered and overridable."""

import pytest
import torch
from support.matrices import features, relative_error

from covpool_plugins.errors import OptionError
from covpool_plugins.linalg import covariance, covariance_sqrt, inv_sqrtm, measured_routes, routes, sqrtm

FUNCTIONS = {
    "fused dual": (lambda X, **o: covariance_sqrt(X, **o), (8, 5)),
    "fused primal": (lambda X, **o: covariance_sqrt(X, vectorize="triu", **o), (5, 9)),
    "exact fused": (lambda X, **o: covariance_sqrt(X, "exact", **o), (8, 5)),
    "root": (lambda X, **o: sqrtm(covariance(X), "svdpade", **o), (5, 9)),
    "inverse root": (lambda X, **o: inv_sqrtm(covariance(X), **o), (5, 9)),
}


@pytest.fixture(params=FUNCTIONS)
def function_and_shape(request):
    return FUNCTIONS[request.param]


@pytest.fixture
def measured_on_cpu(monkeypatch):
    """The device on which a measurement is possible everywhere."""
    monkeypatch.setattr(routes, "MEASURED_DEVICES", {"cpu"})
    monkeypatch.setattr(routes, "_fastest", {})
    ran = []
    monkeypatch.setattr(routes, "_seconds", lambda run, X, method, route: ran.append(route) or len(ran))
    return ran


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 2e-4)])
def test_both_routes_give_the_same_root_and_gradient(function_and_shape, dtype, tolerance):
    function, shape = function_and_shape
    X = features(*shape).to(dtype)
    results = []
    for route in routes.ROUTES:
        leaf = X.clone().requires_grad_()
        out = function(leaf, route=route)
        results.append((out.detach(), *torch.autograd.grad(out.sin().sum(), leaf)))
    for eigh, products in zip(*results, strict=True):
        assert relative_error(products, eigh) < tolerance


@pytest.mark.parametrize("compute, tolerance", [("mixed", 1e-6), ("float64", 1e-6), ("float32", 2e-4)])
def test_products_keep_the_precision_that_was_asked_for(compute, tolerance):
    X = features(24, 49).float()
    exact = covariance_sqrt(X.double(), "exact")
    assert relative_error(covariance_sqrt(X, "svdpade", compute=compute, route="products"), exact) < tolerance


def test_products_have_second_derivatives():
    A = covariance(features(4, 40)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda A: sqrtm(A, route="products"), (A,), atol=1e-6)


def test_nothing_is_measured_where_eigh_is_known_to_be_the_faster(function_and_shape, monkeypatch):
    monkeypatch.setattr(routes, "_fastest", {})
    function, shape = function_and_shape
    function(features(*shape))
    assert measured_routes() == {}


def test_a_measurement_is_made_once_for_each_size(function_and_shape, measured_on_cpu):
    function, shape = function_and_shape
    for batch in (3, 4, 3):  # 3 counts as 4
        function(features(*shape, batch=batch))
    assert measured_on_cpu == list(routes.ROUTES)
    function(features(*shape, batch=5))
    assert len(measured_on_cpu) == 2 * len(routes.ROUTES) == 2 * len(measured_routes())


def test_the_faster_route_is_taken(function_and_shape, monkeypatch):
    monkeypatch.setattr(routes, "MEASURED_DEVICES", {"cpu"})
    function, shape = function_and_shape
    X = features(*shape)
    for fastest in routes.ROUTES:
        monkeypatch.setattr(routes, "_fastest", {})
        monkeypatch.setattr(routes, "_seconds", lambda run, X, method, route, fastest=fastest: route != fastest)
        assert torch.equal(function(X), function(X, route=fastest))


def test_the_real_measurement_runs_both_routes(monkeypatch):
    monkeypatch.setattr(routes, "MEASURED_DEVICES", {"cpu"})
    monkeypatch.setattr(routes, "_fastest", {})
    state = torch.random.get_rng_state()
    with torch.inference_mode():
        covariance_sqrt(features(8, 5), "svdpade")
    assert next(iter(measured_routes().values())) in routes.ROUTES
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_explicit_route_is_not_measured(function_and_shape, measured_on_cpu):
    function, shape = function_and_shape
    for route in routes.ROUTES:
        function(features(*shape), route=route)
    assert not measured_on_cpu


def test_a_recorded_graph_measures_nothing(function_and_shape, measured_on_cpu):
    function, shape = function_and_shape
    torch.compiler.reset()
    torch.compile(function, fullgraph=True, backend="aot_eager")(features(*shape))
    assert not measured_on_cpu


def test_unknown_route():
    with pytest.raises(OptionError, match="route must be one of auto, eigh, products, got 'gpu'"):
        sqrtm(torch.eye(3), route="gpu")
