"""Parity with the original networks, by their weights under our names."""

import pytest
import torch
from support.golden_models import assert_equal, golden_input, golden_weight, load_models, original_centring
from support.matrices import exact_covariance_root, relative_error
from torch import nn

from covpool_plugins.pooling import create_pool
from covpool_plugins.timm_plugin.own_backbones import AlexNet, CifarResNet

MODELS = load_models("own_backbones")
CIFAR = "pisvd__resnet18__batchnorm__c10"

# Where the convolutions stand in the original sequence; batch norm, if any, stands behind each.
CONVOLUTIONS = {True: (0, 4, 8, 11, 14), False: (0, 3, 6, 8, 10)}
REDUCTION = {
    "representation.conv_dr_block.0": "pool.reduction.conv",
    "representation.conv_dr_block.1": "pool.reduction.norm",
}
HEADS = {"SVD_Pade": "svdpade", "MPNCOV": "isqrt", "GAvP": "gap"}
TOLERANCES = {"SVD_Pade": 1e-6, "MPNCOV": 1e-6, "GAvP": 1e-10}


def alexnet_keys(model, batch_norm):
    """Original key, without ``module``, to ours."""
    modules = dict(REDUCTION) | {"classifier": "backbone.fc" if model["route"]["representation"] == "GAvP" else "fc"}
    for number, index in enumerate(CONVOLUTIONS[batch_norm]):
        modules[f"features.{index}"] = f"backbone.layer{number}.0.conv" if number else "backbone.conv1"
        modules[f"features.{index + 1}"] = f"backbone.layer{number}.0.norm" if number else "backbone.bn1"
    keys = {}
    for key in model["state_dict"]:
        module, _, leaf = key.replace("module.", "").rpartition(".")
        keys[key] = f"{modules[module]}.{leaf}"
    return keys


def load(network, model, keys):
    """Every weight of the original, and no other."""
    ours = network.state_dict()
    assert {keys[key]: tuple(shape) for key, shape in model["state_dict"].items()} == {
        name: tuple(tensor.shape) for name, tensor in ours.items()
    }
    network.load_state_dict({keys[key]: golden_weight(key, shape) for key, shape in model["state_dict"].items()})


def with_head(model, batch_norm):
    """Our backbone with the pool and, where the original has a linear one, the classifier of a manifest."""
    route = model["route"]
    classes = route["num_classes"] if "logits" in model else 0
    if route["representation"] == "GAvP":
        return nn.ModuleDict({"backbone": AlexNet(classes, batch_norm=batch_norm, dtype=torch.float64)})
    backbone = AlexNet(0, global_pool="", batch_norm=batch_norm, dtype=torch.float64)
    reduced = {"reduce_channels": route["dimension_reduction"], "compute": "float64", "dtype": torch.float64}
    pool = create_pool(HEADS[route["representation"]], backbone.num_features, **reduced)
    classifier = nn.Linear(pool.out_features, classes, dtype=torch.float64) if classes else nn.Identity()
    return nn.ModuleDict({"backbone": backbone, "pool": pool, "fc": classifier})


@pytest.mark.parametrize("name", [name for name in MODELS if "alexnet" in name])
def test_alexnet(name):
    model = MODELS[name]
    batch_norm = "features.module.1.weight" in model["state_dict"]
    parts = with_head(model, batch_norm).eval()
    load(parts, model, alexnet_keys(model, batch_norm))
    tolerance = TOLERANCES[model["route"]["representation"]]
    with torch.no_grad():
        maps = parts["backbone"].forward_features(golden_input(model["input"]))
        vector, classify = pooled(parts, maps, model["route"]["representation"])
        assert_equal(vector, model["representation"], tolerance)
        if "logits" in model:
            assert_equal(classify(vector), model["logits"], tolerance)


def pooled(parts, maps, representation):
    """The vector of the original's head, and what classifies it."""
    if representation == "GAvP":
        return parts["backbone"].forward_head(maps, pre_logits=True), parts["backbone"].fc
    vector = parts["pool"](maps)
    if representation == "SVD_Pade":
        X = parts["pool"].features(maps)
        row, column = torch.triu_indices(X.shape[1], X.shape[1])
        assert relative_error(vector, exact_covariance_root(X)[:, row, column]) < 1e-6  # where ours is exact,
        theirs = root_with_original_centring(X)[:, row, column]  # theirs is off by its centring,
        assert relative_error(vector, theirs) < 1e-4  # but not far.
        vector = theirs
    return vector, parts["fc"]


def root_with_original_centring(X):
    values, vectors = torch.linalg.eigh(X @ original_centring(X.shape[-1]) @ X.mT)
    return (vectors * values.abs().sqrt().unsqueeze(-2)) @ vectors.mT


def cifar_keys(model):
    return {key: key.removeprefix("module.") for key in model["state_dict"]}


def test_cifar_resnet():
    model = MODELS[CIFAR]
    network = CifarResNet(dtype=torch.float64).eval()
    load(network, model, cifar_keys(model))
    with torch.no_grad():
        assert_equal(network(golden_input(model["input"])), model["logits"], 1e-10)


def test_cifar_resnet_in_training():
    """Batch statistics, and what the first norm keeps of them; the original computed these in float32."""
    model = MODELS[CIFAR]
    network = CifarResNet(dtype=torch.float64)
    load(network, model, cifar_keys(model))
    with torch.no_grad():
        logits = network(golden_input(model["train_mode"]["input"]))
    assert_equal(logits, model["train_mode"]["logits"], 1e-4)
    for name, stored in model["train_mode"]["bn1_after"].items():
        assert_equal(network.bn1.get_buffer(name), stored, 1e-5)


def test_keys_of_the_cifar_resnet_are_those_of_timm():
    import timm

    theirs = timm.create_model("resnet18", num_classes=10).state_dict()
    ours = CifarResNet().state_dict()
    assert list(ours) == list(theirs)
    different = [key for key in ours if ours[key].shape != theirs[key].shape]
    assert different == ["conv1.weight"]


def test_keys_of_the_first_alexnet():
    """Version 0.1 had five layers."""
    import re

    torch.manual_seed(0)
    network = AlexNet(num_classes=3)
    former = {}
    for key, value in network.state_dict().items():
        key = re.sub(r"^layer(\d)\.0", lambda m: f"layer{int(m[1]) + 1}", key)
        former[key.replace("conv1.", "layer1.conv.").replace("bn1.", "layer1.norm.")] = value
    again = AlexNet(num_classes=3)
    again.load_state_dict(former)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in again.state_dict().items())
