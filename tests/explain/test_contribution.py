"""The contribution map and the integrated head: complete, exact, blind to shifts, pointing at what makes the score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import timm
import torch
from support.explanations import decaying_features, heads
from torch import Tensor, nn

import covpool_plugins
from covpool_plugins.errors import NotApplicableError, OptionError
from covpool_plugins.explain import ModelView, explain
from covpool_plugins.explain.contribution import COMPLETE, by_entries, contributions
from covpool_plugins.explain.methods import explain_input
from covpool_plugins.explain.models import use_exact_gradient
from covpool_plugins.linalg import Exact, unpack_symmetric
from covpool_plugins.pooling import CovariancePool, Pool, create_pool, list_pools

HEADS = {name: create_pool(name, 4) for name in list_pools()}
SHIFT_BLIND = [name for name, pool in HEADS.items() if isinstance(pool, CovariancePool) and pool.centered]


@pytest.mark.parametrize("positions", [9, 60], ids=["fewer positions", "more positions"])
@heads()
def test_contributions_sum_to_the_score_in_float64(name: str, positions: int) -> None:
    """With the exact gradient, as a view has it: those that some methods train with do not sum to the score."""
    pool = create_pool(name, 16).double().eval()
    X = pool.features(decaying_features(16, positions, 2).unsqueeze(-1)).detach()
    use_exact_gradient(pool)
    weight = torch.randn(pool.out_features, dtype=torch.float64)
    shares, score, base = contributions(by_entries(pool, X), X, weight)
    assert shares.shape == (positions,)
    # Pools that are almost homogeneous, but for the eps of svPN, are taken for homogeneous.
    tolerance = COMPLETE if name in ("svpn", "crosscov") else 1e-5
    torch.testing.assert_close(shares.sum().item(), score - base, rtol=tolerance, atol=0)
    torch.testing.assert_close(score, (pool.represent(X) @ weight).item(), rtol=1e-12, atol=0)


@heads(SHIFT_BLIND)
def test_shifts_of_the_features_change_nothing_and_positions_keep_their_place(name: str) -> None:
    pool, X = create_pool(name, 16).double().eval(), decaying_features(16, 40, 2)
    weight = torch.randn(pool.out_features, dtype=torch.float64)
    shift, order = 5 * torch.randn(1, 16, 1, dtype=torch.float64), torch.randperm(40)
    before, shifted, permuted = (
        contributions(by_entries(pool, at), at, weight)[0] for at in (X, X + shift, X[..., order])
    )
    torch.testing.assert_close(shifted, before, rtol=1e-6, atol=1e-9 * before.abs().max().item())
    torch.testing.assert_close(permuted, before[order], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["exact", "svdpade"])
def test_agrees_with_the_closed_form(name: str) -> None:
    """c_i = (2/M) x̃_iᵀ G x̃_i where Q G + G Q = W, solved here as a linear system."""
    C, M = 5, 40
    pool, X = CovariancePool(C, name, reduce_channels=None), decaying_features(C, M, 2)
    weight = torch.randn(pool.out_features, dtype=torch.float64)
    shares, _, _ = contributions(by_entries(pool, X), X, weight)

    centred = X[0] - X[0].mean(dim=1, keepdim=True)
    W = 0.5 * (unpack_symmetric(weight, C) + torch.diag(unpack_symmetric(weight, C).diagonal()))
    values, U = torch.linalg.eigh(centred @ centred.T / M)
    Q, eye = U @ torch.diag(values.sqrt()) @ U.T, torch.eye(C, dtype=torch.float64)
    G = torch.linalg.solve(torch.kron(Q, eye) + torch.kron(eye, Q), W.flatten()).reshape(C, C)
    torch.testing.assert_close(shares, 2 / M * ((G @ centred) * centred).sum(dim=0), rtol=1e-8, atol=1e-12)


def patched_input(row: int, column: int, seed: int) -> Tensor:
    """Noise of one colour statistic, with 16 x 16 pixels (4 x 4 of 16 x 16 positions) of another."""
    generator = torch.Generator().manual_seed(seed)
    x = textured(64, 0, generator)
    x[..., row : row + 16, column : column + 16] = textured(16, 1, generator)
    return x


def textured(side: int, kind: int, generator: torch.Generator) -> Tensor:
    """Red and green noise in blocks of one position, or blue noise with a mean."""
    scales = torch.tensor([[1.0, 1.0, 0.2], [0.3, 0.3, 1.5]])[kind].view(1, 3, 1, 1)
    mean = torch.tensor([0.0, 0.0, 2.0 * kind]).view(1, 3, 1, 1)
    blocks = torch.randn(1, 3, side // 4, side // 4, generator=generator) * scales + mean
    return nn.functional.interpolate(blocks, scale_factor=4)


class PatchNet(nn.Module):
    """One fixed convolution; the classifier is the mean of pictures with a patch minus that of pictures without."""

    pretrained_cfg: ClassVar = dict(input_size=(3, 64, 64))

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 8, 4, stride=4)
        options = {"reduce_channels": None} if name in SHIFT_BLIND else {}
        self.head = nn.Module()
        self.head.global_pool = create_pool(name, 8, **options).eval()
        self.head.fc = nn.Linear(self.head.global_pool.out_features, 2, bias=False)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            without = torch.cat([textured(64, 0, generator) for _ in range(16)])
            patched = torch.cat([patched_input(4 * (i % 12), 4 * (i * 5 % 12), 100 + i) for i in range(16)])
            means = [self.head.global_pool(self.backbone(x)).mean(0) for x in (patched, without)]
            self.head.fc.weight[1] = means[0] - means[1]
            self.head.fc.weight[0] = -self.head.fc.weight[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.head.fc(self.head.global_pool(self.backbone(x)))


# The inverse of a covariance has less of what is in the picture.
@heads(
    [name for name in list_pools() if name != "precision"], ["svdpade", "isqrt", "logcov", "cbp", "democratic", "gap"]
)
def test_the_map_points_at_a_planted_patch(name: str) -> None:
    view = ModelView.of(PatchNet(name).eval())
    places = [(0, 0), (8, 40), (24, 24), (44, 4), (48, 48)]  # each 6 % of the picture
    for seed, (row, column) in enumerate(places):
        map = explain(view, patched_input(row, column, seed), "contribution", target=1).map
        inside = np.zeros((16, 16), dtype=bool)
        inside[row // 4 : row // 4 + 4, column // 4 : column // 4 + 4] = True
        assert inside.flat[map.argmax()]
        assert map[inside].mean() > 5 * abs(map[~inside].mean())


@dataclass(frozen=True)
class WrongOffDiagonal(Exact):
    """A gradient that is right for equal eigenvalues only, as the approximations of the papers are."""

    def factor(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.where(first == second, 1.0, 0.3)


def test_the_exact_gradient_replaces_the_training_gradient(small_net, image: Tensor) -> None:
    wrong, right = (
        small_net(CovariancePool(12, method, reduce_channels=8)) for method in (WrongOffDiagonal(), Exact())
    )
    right.load_state_dict(wrong.state_dict())
    expected = explain(right, image, "contribution", target=0)
    exact, training = (explain(wrong, image, "contribution", target=0, grad=grad) for grad in ("exact", "training"))
    np.testing.assert_allclose(exact.map, expected.map, rtol=1e-9)
    assert np.abs(training.map - expected.map).max() > 0.05 * np.abs(expected.map).max()
    np.testing.assert_allclose(training.map.sum(), exact.map.sum(), rtol=1e-9)  # which is why the sum cannot tell


def test_a_method_that_leaves_eigenvalues_out_keeps_its_root(small_net, image: Tensor) -> None:
    """Explained with all eigenvalues, the scores would be those of another model."""
    net = small_net("svdtopn", reduce_channels=None, n=3)
    with torch.no_grad():
        expected = (net(image)[0, 1] - net.head.fc.bias[1]).item()
    assert explain(net, image, "contribution", 1).map.sum() == pytest.approx(expected, rel=1e-3)


class SquashedPool(Pool):
    """Not homogeneous in the features, and not zero for none."""

    def __init__(self) -> None:
        super().__init__(12, pool_type="squashed")

    def represent(self, X: Tensor) -> Tensor:
        return (0.5 + X.var(dim=-1, correction=0)).log()


class UnitPool(SquashedPool):
    """Blind to the scale of the features."""

    def represent(self, X: Tensor) -> Tensor:
        return nn.functional.normalize(X.mean(dim=-1), dim=-1)


def test_pools_that_are_not_homogeneous(small_net, image: Tensor) -> None:
    net = small_net(SquashedPool())
    explanation = explain(net, image, "contribution", target=0)
    with torch.no_grad():
        vector = net.head.global_pool(net.forward_features(image))[0] - 0.5 * torch.ones(12).log() - np.log(0.5)
    assert explanation.contributions.sum() == pytest.approx((net.head.fc.weight[0] @ vector).item(), rel=1e-3)
    with pytest.raises(OptionError, match="miss the score"):
        explain(small_net(UnitPool()), image, "contribution", target=0)


@pytest.mark.fast_for("test_efficientnet")
@pytest.mark.parametrize(
    ("name", "size"), [("test_efficientnet", (96, 160)), ("swin_tiny_patch4_window7_224", (224, 224))]
)
def test_plain_timm_models(name: str, size: tuple[int, int]) -> None:
    net, x = timm.create_model(name, num_classes=6).eval(), torch.randn(1, 3, *size)
    explanation = explain(net, x, "contribution", target=2)
    with torch.no_grad():
        expected = (net(x)[0, 2] - net.get_classifier().bias[2]).item()
    assert explanation.map.sum() == pytest.approx(expected, rel=1e-3)
    assert explain(net, x, "grad_cam", target=2).map.shape == explanation.map.shape == (size[0] // 32, size[1] // 32)


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("test_convnext", 160, "more than a linear layer"),
        ("test_vit", 160, "neither a pool of this package"),
        ("test_resnet", 16, "one position only"),
    ],
)
def test_models_without_a_contribution_map_are_refused(name: str, side: int, message: str) -> None:
    with pytest.raises(NotApplicableError, match=message):
        explain(timm.create_model(name), torch.randn(1, 3, side, side), "contribution", target=1)


# Degree two or more in the features and no root or logarithm: a polynomial, which few points integrate exactly.
POLYNOMIALS = ["gap", "dropcov", "lrbp"]


@heads()
def test_the_integrated_head_is_the_contribution_map_and_complete(name: str, small_net, image: Tensor) -> None:
    """Of homogeneous pools the gradient is the same along the path; of others both are integrals."""
    net = small_net(name)
    single = explain(net, image, "contribution", 3)
    net, image = net.double(), image.double()
    integrated, contribution = (explain(net, image, method, 3) for method in ("integrated_head", "contribution"))
    with torch.no_grad():
        pool, maps = net.head.global_pool, net.forward_features(image)
        zero = pool.represent(torch.zeros_like(pool.features(maps)))  # which has a score, where the pool has biases
        expected = (net.head.fc(pool(maps)) - net.head.fc(zero))[0, 3].item()
        probability = net(image)[0].softmax(0)[3].item()
    assert integrated.map.shape == (8, 8) and integrated.signed
    assert integrated.completeness_target == pytest.approx(expected, rel=1e-8)
    assert abs(integrated.map.sum() - expected) < 1e-5 * np.abs(integrated.map).sum()
    tolerance = 1e-4 if name in ("svpn", "crosscov") else 1e-5  # their eps makes them not quite homogeneous
    np.testing.assert_allclose(
        integrated.map, contribution.map, rtol=0, atol=tolerance * np.abs(contribution.map).max()
    )
    assert single.completeness_gap < 1e-4 and single.map.sum() == pytest.approx(expected, rel=1e-3)
    assert single.probability == pytest.approx(probability, rel=1e-5)


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_two_points_are_enough_for_a_polynomial_of_low_degree(name: str, small_net, image: Tensor) -> None:
    net, image = small_net(name).double(), image.double()
    few, many = (explain(net, image, "integrated_head", 1, points=points).map for points in (2, 24))
    np.testing.assert_allclose(few, many, rtol=1e-9, atol=1e-12 * np.abs(many).max())


def test_too_few_points_are_noticed(small_net, image: Tensor) -> None:
    net = small_net("logcov", reduce_channels=None)
    with pytest.raises(OptionError, match=r"^integrated_head: with pool 'logcov' the shares miss the score"):
        explain(net, image, "integrated_head", 0, points=1)
    gaps = [explain(net, image, "integrated_head", 0, points=points).completeness_gap for points in (12, 48)]
    assert gaps[1] < 1e-6 and gaps[1] < 0.1 * gaps[0]


# A class token beside the pooled vector has a share of its own in these.
WITH_TOKEN = ["contribution", "eigen", "integrated_head", "channel_pairs"]


@pytest.fixture
def fused_net() -> nn.Module:
    torch.manual_seed(0)
    made = covpool_plugins.create_model("test_vit", "svdpade", fuse_class_token=True, num_classes=4)
    nn.init.normal_(made.head.fc.weight), nn.init.normal_(made.head.fc.bias)
    return made.eval()


@pytest.fixture
def picture() -> Tensor:
    return torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("method", WITH_TOKEN)
def test_shares_and_token_sum_to_the_score(method: str, fused_net: nn.Module, picture: Tensor, tmp_path: Path) -> None:
    net, picture = fused_net.double(), picture.double()
    explanation = explain(net, picture, method, target=2)
    with torch.no_grad():
        score = (net(picture)[0, 2] - net.head.fc.bias[2]).item()
        token = net.head.norm(net.forward_features(picture))[0, 0] @ net.head.fc.weight[2, -64:]
    assert explanation.extras["class_token"] == pytest.approx(token.item(), rel=1e-8)
    assert explanation.completeness_target == pytest.approx(score, rel=1e-8)
    size = np.abs(explanation.map).sum()
    assert abs(explanation.map.sum() + token.item() - score) < 1e-8 * size
    assert explanation.completeness_gap < 1e-8 * size / abs(score)
    assert f"class token {token.item():+.3g} = {score:+.3g}" in explanation.caption()[1]
    assert np.load(explanation.save(tmp_path, "a")[1])["class_token"] == explanation.extras["class_token"]


def test_the_token_does_not_change_the_map(fused_net: nn.Module, picture: Tensor) -> None:
    plain = covpool_plugins.create_model("test_vit", "svdpade", num_classes=4).eval()
    state = fused_net.state_dict()
    width = plain.head.fc.in_features
    plain.load_state_dict(state | {"head.fc.weight": state["head.fc.weight"][:, :width]})
    expected, map = (explain(model, picture, "contribution", target=1) for model in (plain, fused_net))
    np.testing.assert_allclose(map.map, expected.map, rtol=1e-9)
    assert "class_token" not in expected.extras and "class token" not in expected.caption()[1]


class Scaled(nn.Module):
    def forward(self, vector: Tensor) -> Tensor:
        return 1.5 * vector


def test_more_than_a_linear_layer_is_still_refused(fused_net: nn.Module, picture: Tensor) -> None:
    fused_net.head.dropout = Scaled()
    view = ModelView.of(fused_net)
    for method in WITH_TOKEN:
        with pytest.raises(NotApplicableError, match=r"^\w+: the model has more than a linear layer behind its pool"):
            explain(view, picture, method)


def test_several_classes_and_methods_share_one_forward_pass(fused_net: nn.Module, picture: Tensor) -> None:
    view, count = ModelView.of(fused_net), []
    view.classifier.register_forward_hook(lambda *_: count.append(1))
    passed = view.forward_pass(picture)
    maps = [explain_input(view, passed, method, 0).map for method in WITH_TOKEN]
    assert len(count) == 1 and all(np.isfinite(map).all() for map in maps)
    with torch.inference_mode():
        assert explain(view, picture.clone(), "energy", target=0).map.shape == (10, 10)
