"""Batch norms of built networks become other layers, and nothing else changes."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from covpool_plugins.errors import OptionError
from covpool_plugins.whitening import PCANorm2d, ZCANorm1d, ZCANorm2d, ZCANorm3d
from covpool_plugins.whitening.swap import layer_types, swap_norm

ZCA = dict(type="ZCANorm2d", groups=2)


def small(norm=nn.BatchNorm2d, **options):
    torch.manual_seed(0)
    model = nn.Sequential()
    model.conv1, model.bn1 = nn.Conv2d(3, 4, 3), norm(4, **options)
    model.block = nn.Sequential(nn.Conv2d(4, 6, 3), norm(6, **options), nn.ReLU())
    return experienced(model)


def experienced(model):
    """Statistics and affine parameters as after some training."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.num_batches_tracked.fill_(7)
            if module.weight is not None:
                module.weight.data.uniform_(0.5, 2, generator=generator)
                module.bias.data.normal_(generator=generator)
    return model


@pytest.mark.parametrize("rule", [ZCA, dict(type=ZCANorm2d, groups=2), lambda width: ZCANorm2d(width, groups=2)])
def test_a_layer_is_replaced(rule):
    model = small()
    parameters, second, keys = dict(model.named_parameters()), model.block[1], set(model.state_dict())
    assert swap_norm(model, {"bn1": rule}) is model
    assert type(model.bn1) is ZCANorm2d and model.bn1.groups == 2 and model.block[1] is second
    assert set(model.state_dict()) == keys - {"bn1.running_var"} | {"bn1.running_subspace"}
    after = dict(model.named_parameters())
    assert after.keys() == parameters.keys()
    assert all(after[key] is parameters[key] for key in after)  # an optimizer keeps them


@pytest.mark.parametrize("rule", [dict(ZCA, eps=1e-5), dict(type="PCANorm2d", eps=1e-5), nn.BatchNorm2d], ids=str)
def test_the_network_gives_what_it_gave_and_a_checkpoint_loads(rule):
    source, images = small().eval(), torch.randn(2, 3, 8, 8)
    model = swap_norm(small().eval(), {"bn1": rule})
    torch.testing.assert_close(model(images), source(images))
    assert model.bn1.num_batches_tracked == 7
    model = small().eval()
    for value in model.state_dict().values():
        value.zero_()
    swap_norm(model, {"bn1": rule, r"block\.1": dict(type="PCANorm2d", eps=1e-5)})
    model.load_state_dict(source.state_dict(), strict=True)
    torch.testing.assert_close(model(images), source(images))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_modes_device_and_dtype_stay(dtype, training):
    model = small().train(training).to(dtype)
    model.bn1.weight.requires_grad_(training)
    layer = swap_norm(model, {"bn1": ZCA}).bn1
    assert (layer.training, layer.weight.requires_grad, layer.bias.requires_grad) == (training, training, True)
    assert {t.dtype for t in layer.state_dict().values()} == {dtype, torch.int64}
    meta = swap_norm(small().to("meta"), {"bn1": ZCA})
    assert {t.device.type for t in meta.bn1.state_dict().values()} == {"meta"}


@pytest.mark.parametrize(
    "options, rule, weight",
    [
        (dict(affine=False), ZCA, False),
        (dict(affine=False), dict(ZCA, affine=True), True),
        (dict(affine=True), dict(ZCA, affine=False), False),
        (dict(track_running_stats=False), ZCA, True),
        (dict(affine=False, track_running_stats=False), ZCA, False),
    ],
)
def test_what_a_layer_has_not(options, rule, weight):
    model = swap_norm(small(**options), {"bn1": rule})
    assert (model.bn1.weight is not None) == weight
    assert (model.bn1.running_mean is None) == (options.get("track_running_stats") is False)
    assert model(torch.randn(4, 3, 8, 8)).isfinite().all()


RANKS = {1: (nn.BatchNorm1d, ZCANorm1d), 2: (nn.BatchNorm2d, ZCANorm2d), 3: (nn.BatchNorm3d, ZCANorm3d)}


@pytest.mark.parametrize("old", ["own", nn.SyncBatchNorm], ids=str)
@pytest.mark.parametrize("rank", RANKS)
def test_every_batch_norm(rank, old):
    assert set(layer_types()) == {f"{kind}Norm{rank}d" for kind in ("ZCA", "PCA") for rank in RANKS}
    batch_norm, kind = RANKS[rank]
    model = experienced(nn.Sequential((batch_norm if old == "own" else old)(4)))
    weight = model[0].weight
    swap_norm(model, {"0": dict(type=kind.__name__, groups=2)})
    assert type(model[0]) is kind and model[0].weight is weight
    assert model(torch.randn(4, 4, *[5] * rank)).isfinite().all()


def test_a_layer_with_two_names_is_replaced_once_by_the_first_pattern():
    model = small()
    model.again = model.bn1
    model.twice = model.block
    swap_norm(model, {"bn1": ZCA, r"bn1|twice\.1": dict(type="PCANorm2d")})
    assert type(model.bn1) is ZCANorm2d and model.again is model.bn1
    assert type(model.block[1]) is PCANorm2d and model.twice is model.block


def efficientnet(**options):
    torch.manual_seed(0)
    return experienced(timm.create_model("test_efficientnet", num_classes=3, **options))


def test_activation_and_dropout_of_timm_survive():
    model, images = efficientnet().eval(), torch.randn(2, 3, 32, 32)
    before, keys = model(images), set(dict(model.named_parameters()))
    names = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    swap_norm(model, {r".*bn\d": dict(type="ZCANorm2d", groups=1, eps=1e-5)})
    assert {type(model.get_submodule(name)) for name in names} == {ZCANorm2d}
    assert set(dict(model.named_parameters())) == keys
    torch.testing.assert_close(model(images), before, rtol=1e-2, atol=1e-4)
    assert (model.bn1(torch.randn(2, model.bn1.num_features, 4, 4)) > -0.3).all()  # SiLU is nowhere below -0.28
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(images), model(images))
    torch.testing.assert_close(copy.deepcopy(model)(images), model(images))


def test_dropout_within_a_batch_norm():
    class Dropped(nn.BatchNorm2d):
        def __init__(self, channels):
            super().__init__(channels)
            self.drop = nn.Dropout(0.5)
            self.act = nn.ReLU()

    model = swap_norm(small(Dropped), {"bn1": ZCA})
    x = torch.randn(8, 4, 8, 8)
    assert (model.train().bn1(x) == 0).float().mean() > 0.6  # half are dropped, half of the others negative
    assert (model.eval().bn1(x) == 0).float().mean() < 0.9
    assert not model.bn1.drop.training


def test_a_swapped_network_trains():
    model = swap_norm(efficientnet().train(), {r"blocks\.0\.0\.bn1": ZCA})
    model.bn1.act = nn.ReLU(inplace=True)  # an activation in place may follow
    loss = model(torch.randn(4, 3, 32, 32)).square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.blocks[0][0].bn1.num_batches_tracked == 8


@pytest.mark.parametrize(
    "rules, words",
    [
        ({"bn7": ZCA}, r"^rules: 'bn7' matches no layer; the closest of 2 batch norms: bn1, block\.1$"),
        ({"bn(1": ZCA}, r"^rules: 'bn\(1' is no regular expression: missing \)"),
        ({"conv1": ZCA}, "^rules: 'conv1' matches 'conv1', a Conv2d and no batch norm$"),
        ({"bn1": dict(type="ZCANorm")}, "^rules: 'bn1': bn1: unknown layer 'ZCANorm'; available: ZCANorm"),
        ({"bn1": dict(groups=2)}, r"^rules: 'bn1': bn1: must have a type, .*'groups': 2"),
        ({"bn1": "ZCANorm2d"}, r"^rules: 'bn1': bn1: must be dict\(type=…\) or .*, got 'ZCANorm2d'"),
        ({"bn1": dict(ZCA, grups=2)}, "bn1: ZCANorm2d has no option 'grups'; its options: .*groups"),
        ({"bn1": dict(type="ZCANorm2d", groups=3)}, "bn1: groups must divide num_features 4, got 3"),
        ({"bn1": lambda width: None}, "bn1: the function must return a layer, it returned None"),
        ({"bn1": lambda width: nn.BatchNorm2d(6)}, r"the weight for bn1 has shape \(6,\) instead of \(4,\)"),
        ({"bn1": dict(type="ZCANorm1d")}, "^rules: 'bn1': bn1: ZCANorm1d takes 2 or 3 dimensions, BatchNorm2d 4$"),
    ],
)
def test_bad_rules_are_named(rules, words):
    model = small()
    with pytest.raises(OptionError, match=words) as info:
        swap_norm(model, rules)
    assert "\n" not in str(info.value)
    assert {type(model.bn1), type(model.block[1])} == {nn.BatchNorm2d}
    with pytest.raises(OptionError, match="matches no layer; there is no batch norm"):
        swap_norm(nn.Sequential(nn.Conv2d(3, 4, 3)), {"bn1": ZCA})


@pytest.mark.parametrize("eps", [1e-4, 1e-2])
def test_small_variances_and_another_eps_change_nothing(eps):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    model[1].running_var.uniform_(1e-6, 1e-4)
    x = torch.randn(2, 3, 6, 6)
    before = model(x)
    after = swap_norm(model, {"1": dict(type="covpool_plugins.ZCANorm2d", groups=2, eps=eps)})(x)
    torch.testing.assert_close(after, before)


def test_placeholders_of_norms_are_passed_over():
    model = nn.ModuleDict({"a": nn.ModuleDict({"bn": nn.BatchNorm2d(4)}), "b": nn.ModuleDict({"bn": nn.Identity()})})
    swap_norm(model, {r".*\.bn": dict(type="ZCANorm2d")})
    assert type(model["a"]["bn"]) is ZCANorm2d and type(model["b"]["bn"]) is nn.Identity
