"""The timm API on models with our heads."""

import copy
import logging
import re
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.matrices import relative_error
from timm.layers import apply_test_time_pool
from timm.models.resnet import ResNet
from torch import nn

import covpool_plugins
from covpool_plugins.errors import ExportError
from covpool_plugins.timm_plugin import SecondOrderModel, registered_models

HEADS = covpool_plugins.list_heads()
SMALL = "resnet10t"  # a ResNet that no registered name covers
ONE_OF_EACH_FAMILY = (
    *("gap", "svdpade", "isqrt", "seb", "bcnn", "cbp", "lrbp", "democratic", "logcov", "dropcov", "moment", "svpn"),
    *("crosscov", "temporal"),
)
NARROW = {"channels": (4, 4, 4, 24), "stem_width": 8}


def small(head="svdpade", seed=0, **kwargs):
    torch.manual_seed(seed)
    if head != "gap":
        kwargs.setdefault("reduce_channels", 16)
    return covpool_plugins.create_model(SMALL, head, **{"num_classes": 5, **NARROW, **kwargs})


def plain_small(**kwargs):
    return timm.create_model(SMALL, **NARROW, **kwargs)


def photos(size=64, channels=3):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.fast_for("svdpade", "cbp")
@pytest.mark.parametrize("name, backbone, head", [r for r in registered_models() if r[1] == "resnet18"])
def test_registered_models_train(name, backbone, head):
    model = timm.create_model(name, num_classes=7)
    model(photos(32)).square().mean().backward()
    assert isinstance(model, ResNet) and isinstance(model, SecondOrderModel)
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    plain = timm.create_model(backbone, num_classes=0).state_dict()
    assert [k for k in model.state_dict() if not k.startswith("head.")] == list(plain)


def test_registered_names():
    backbones = {name: backbone for name, backbone, _ in registered_models()}
    names = list(backbones)
    assert set(names) >= {f"{b}_{h}" for b in ("resnet18", "resnet50") for h in HEADS}
    assert set(timm.list_models(names)) == set(names)
    assert timm.list_models(names, pretrained=True) == []
    for name in names:
        cfg = timm.get_pretrained_cfg(name)
        assert (cfg.architecture, cfg.classifier) == (name, "head.fc") and not cfg.has_weights
        assert cfg.first_conv == timm.get_pretrained_cfg(backbones[name]).first_conv


def test_an_unknown_option_is_a_type_error_too():
    """As of timm's own models, which its tests ask for."""
    with pytest.raises(TypeError, match="backbone 'resnet18' has no option 'not_a_model_arg'"):
        timm.create_model("resnet18_isqrt", device="meta", not_a_model_arg=1)


@pytest.mark.slow
def test_import_takes_no_optional_package_warns_of_nothing_and_overwrites_no_name():
    code = (
        "import sys, timm; before = set(timm.list_models())\n"
        "import covpool_plugins\n"
        "from covpool_plugins.timm_plugin import own_backbones, registered_models\n"
        "from covpool_plugins.timm_plugin import token_transformers, whitened_models\n"
        "ours = {name for name, *_ in registered_models()}.union(own_backbones.__all__)\n"
        "ours = ours.union(token_transformers.MODELS, whitened_models.MODELS)\n"
        "optional = {'mmengine', 'mmpretrain', 'torchray', 'matplotlib', 'skimage'} & set(sys.modules)\n"
        "print(before & ours, ours <= set(timm.list_models()), optional)"
    )
    run = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, "set() True set()"), run.stderr


@pytest.mark.fast_for(*ONE_OF_EACH_FAMILY)
@pytest.mark.parametrize("head", HEADS)
def test_forward_stages_and_resets(head):
    model, x = small(head).eval(), photos()
    features = model.forward_features(x)
    vector = model.forward_head(features, pre_logits=True)
    assert features.shape == (2, model.num_features, 2, 2)
    assert vector.shape == (2, model.head_hidden_size)
    assert torch.equal(model.get_classifier()(vector), model(x))
    assert model.get_submodule(model.get_classifier(name_only=True)) is model.get_classifier()
    model.reset_classifier(0)
    assert torch.equal(model(x), vector)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)
    model.reset_classifier(4, head)
    assert model(x).shape == (2, 4)


def test_reset_keeps_what_the_head_has_learned_its_dtype_mode_and_options():
    model, x = small("isqrt", head_kwargs={"iterations": 3}, hidden_features=(24, 12)).double().eval(), photos()
    learned, hidden = model.head.global_pool.reduction, model.head.hidden[0].weight
    model.reset_classifier(3)
    assert model.head.global_pool.reduction is learned and model.head.hidden[0].weight is hidden
    assert model.head.fc.weight.dtype == torch.float64 and not model.head.fc.training
    model.reset_classifier(3, "svdpi")
    assert model.head.global_pool.method.iterations == 19 and model.head.global_pool.reduction is learned
    assert model(x.double()).shape == (2, 3) and not model.head.global_pool.training
    model.reset_classifier(3, "temporal")  # reduces twice
    assert model.head.global_pool.reduction is not learned
    model.reset_classifier(3, "gap")  # takes no reduction by default
    assert model.head.hidden[0].in_features == model.num_features and model.num_classes == 3


def test_a_head_without_pool_gets_its_own_again():
    model = small("isqrt", head_kwargs={"iterations": 3})
    model.reset_classifier(0, "")
    assert model(photos()).shape == (2, model.num_features, 2, 2)
    model.reset_classifier(4)
    assert model(photos()).shape == (2, 4) and model.head.global_pool.method.iterations == 3
    model = small("isqrt", num_classes=0, global_pool="")
    model.reset_classifier(4)
    assert model.head.pool_type == "isqrt"


def test_hidden_layers_stand_between_pool_and_classifier():
    """As AlexNet and VGG of CVPR 2018 have them."""
    model = small(hidden_features=(24, 12), reduce_channels=8, drop_rate=0.5)
    assert model.forward_head(model.forward_features(photos()), pre_logits=True).shape == (2, 12)
    assert model.head_hidden_size == 12
    model(photos()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.head.parameters())
    layers = model.head.hidden
    assert [tuple(layer.weight.shape) for layer in layers if hasattr(layer, "weight")] == [(24, 36), (12, 24)]
    assert [layer.p for layer in layers if isinstance(layer, nn.Dropout)] == [0.5]


@pytest.mark.parametrize("arguments", [(3, ""), (-3,), (3, "svdpad")])
def test_a_refused_reset_changes_nothing(arguments):
    model = small().eval()
    expected = model(photos())
    with pytest.raises(ValueError):
        model.reset_classifier(*arguments)
    assert torch.equal(model(photos()), expected) and model.num_classes == 5


def test_in_chans_and_options():
    assert small(in_chans=1)(photos(channels=1)).shape == (2, 5)
    model = small("isqrt", head_kwargs={"iterations": 3, "vectorize": "full"}, drop_rate=0.4)
    assert model.head_hidden_size == 256 and model.head.global_pool.method.iterations == 3
    assert model.head.dropout.p == 0.4 == model.drop_rate


def test_last_stride_is_the_stock_network_with_one_stride_removed():
    torch.manual_seed(0)
    model = timm.create_model("resnet18_svdpade", last_stride=1, reduce_channels=16).eval()
    torch.manual_seed(0)
    by_hand = timm.create_model("resnet18_svdpade", reduce_channels=16).eval()
    for module in by_hand.layer4.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    assert model.forward_features(photos()).shape == (2, 512, 4, 4)
    assert torch.equal(model(photos()), by_hand(photos()))
    assert model.feature_info[-1]["reduction"] == 16


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_pretrained_weights_of_a_plain_backbone(tmp_path, suffix, caplog):
    plain = plain_small(num_classes=5).eval()
    path = tmp_path / f"plain.{suffix}"
    torch.save(plain.state_dict(), path) if suffix == "pth" else save_file(plain.state_dict(), path)
    arguments = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    with caplog.at_level(logging.INFO, "covpool_plugins"):
        state = small(**arguments).state_dict()
    assert all(torch.equal(state[k], v) for k, v in plain.state_dict().items() if not k.startswith("fc."))
    assert "loaded nothing; fresh head.global_pool.reduction.conv.weight" in caplog.text
    # Average pooling goes on with the plain classifier.
    assert relative_error(small("gap", **arguments).eval()(photos()), plain(photos())) < 1e-6


def test_the_description_of_a_model_stands_for_its_backbones_weights(tmp_path, monkeypatch):
    """As timm's train.py hands it over with --pretrained."""
    plain = timm.create_model("resnet18").state_dict()
    torch.save(plain, tmp_path / "plain.pth")
    backbones, resolve = timm.get_pretrained_cfg("resnet18"), timm.models.resolve_pretrained_cfg
    monkeypatch.setattr(backbones, "file", str(tmp_path / "plain.pth"))
    monkeypatch.setattr(
        "covpool_plugins.timm_plugin.builder.resolve_pretrained_cfg",
        lambda name, cfg, overlay: resolve(name, cfg, overlay) if cfg else backbones,
    )
    description = timm.get_pretrained_cfg("resnet18_svdpade").to_dict()
    model = timm.create_model("resnet18_svdpade", pretrained=True, pretrained_cfg=description, reduce_channels=8)
    assert torch.equal(model.layer1[0].conv1.weight, plain["layer1.0.conv1.weight"])


def test_weights_of_another_network(tmp_path, caplog):
    overlay = {"file": str(tmp_path / "other.pth")}
    torch.save({k: v for k, v in small().state_dict().items() if not k.startswith("layer4.")}, overlay["file"])
    with caplog.at_level(logging.INFO):
        small(pretrained=True, pretrained_cfg_overlay=overlay)
    assert "Missing keys (layer4.0.conv1.weight" in caplog.text
    torch.save(nn.Linear(2, 2).state_dict(), overlay["file"])
    with pytest.raises(ValueError, match=r"other.pth fit no tensor of the backbone, whose first is 'conv1"):
        small(pretrained=True, pretrained_cfg_overlay=overlay)


def test_pretrained_weights_of_a_whole_model_and_of_the_parts_of_its_head_that_fit(tmp_path, caplog):
    whole = small().eval()
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    arguments = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "whole.pth")}}
    again = small(**arguments, seed=9).eval()
    assert torch.equal(again(photos()), whole(photos()))
    assert caplog.text == "" and again.pretrained_cfg["state_dict"] is None and again.pretrained_cfg["file"]
    with caplog.at_level(logging.INFO, "covpool_plugins"):
        other = small(num_classes=3, **arguments)
        assert torch.equal(other.head.global_pool.reduction.conv.weight, whole.head.global_pool.reduction.conv.weight)
        assert caplog.text.rstrip().endswith("fresh head.fc.weight, head.fc.bias")
        small(reduce_channels=8, **arguments)
        assert "head.fc.bias" in caplog.text.splitlines()[-1].split("fresh")[1]  # not without its weight
        small("cbp", reduce_channels=8, **arguments)
        assert "nothing of the pool in them fits this head" in caplog.text


def test_copies_and_pickles(tmp_path, monkeypatch):
    model = small().eval()
    expected = model(photos())
    assert torch.equal(copy.deepcopy(model)(photos()), expected)
    torch.save(model, tmp_path / "model.pt")
    monkeypatch.setattr("covpool_plugins.timm_plugin.subclass._classes", {})  # as in another process
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(again(photos()), expected)
    assert type(again).__name__ == "SecondOrderResNet" and type(again) is not type(model)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"head": "svdpad"}, "unknown pool 'svdpad'; available: svdpade, "),
        ({"backbone": "resnet81"}, "unknown timm backbone 'resnet81'; available: resnet18, "),
        (
            {"backbone": "resnet18_isqrt"},
            r"is a backbone with a head already: .*create_model\('resnet18', head='isqrt'\)",
        ),
        ({"backbone": "resnet10t_mpa"}, "is not registered: .*--model-kwargs backbone=resnet10t head=mpa"),
        ({"reduce_channel": 8}, "backbone 'resnet10t' has no option 'reduce_channel'; did you mean 'reduce_channels'?"),
        ({"head": "isqrt", "iterations": 8}, r"'iterations'; of pool 'isqrt' it is one: head_kwargs=dict\(iterations"),
        ({"nonsense": 8}, "backbone 'resnet10t' has no option 'nonsense'$"),
        (
            {"global_pool": "avg"},
            "global_pool='avg' is no pool of a second-order head; average pooling is called 'gap'",
        ),
        ({"backbone": "resnet18.nope"}, "unknown timm weights 'resnet18.nope'; available: "),
        ({"backbone": "local-dir:hub"}, "use timm.create_model for 'local-dir:hub'"),
        ({"backbone": "pit_ti_224"}, r"'pit_ti_224' hands its head the shape \(B, 1, 256\)"),
        ({"backbone": "crossvit_9_240"}, "'crossvit_9_240' hands 2 tensors to its head"),
        ({"backbone": "test_vit", "last_stride": 1}, "'test_vit' has no last stride"),
        ({"last_stride": 3}, "last_stride must be one of None, 1, 2, got 3"),
        ({"last_stride": 1, "output_stride": 8}, "stands for an output_stride, got output_stride=8 too"),
        ({"num_classes": -1}, "num_classes must be an integer >= 0, got -1"),
        ({"global_pool": ""}, "use num_classes=0, got 1000"),
        ({"fuse_class_token": True}, "fuse_class_token needs a backbone with a class token, got 'resnet10t'"),
        ({"fuse_class_token": "yes"}, "fuse_class_token must be True or False, got 'yes'"),
        ({"drop_rate": 1.5}, r"drop_rate must be a number in \[0, 1\), got 1.5"),
        ({"layer_groups": "all"}, "layer_groups must be one of None, head, new, got 'all'"),
        ({"hidden_features": (0,)}, "hidden_features"),
        ({"hidden_features": (2.5,)}, "hidden_features"),
        ({"head_kwargs": 3}, "head_kwargs must be a dictionary of options, got 3"),
        ({"head_kwargs": {"iterations": 3}}, "pool 'svdpade' has no option 'iterations'; its options: route"),
        ({"head_kwargs": {"input_fmt": "NHWC"}}, "head_kwargs have 'input_fmt', which follows from"),
        ({"head_kwargs": {"reduce_channels": 4}, "reduce_channels": 16}, "=16, but head_kwargs have reduce_channels=4"),
        ({"pretrained": True, "pretrained_cfg_overlay": {"file": "no.pth"}}, "no weights at 'no.pth'"),
        ({"pretrained": True, "pretrained_cfg_overlay": {"file": __file__}}, "test_models.py is no checkpoint"),
    ],
)
def test_bad_input(options, message):
    options = {"backbone": SMALL, "head": "svdpade", **options}
    where = {} if options.get("pretrained") else {"device": "meta"}
    with pytest.raises(ValueError, match=message) as caught:
        covpool_plugins.create_model(options.pop("backbone"), options.pop("head"), **options, **where)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, message",
    [
        ("resnet10t_isqrt", "--model second_order --model-kwargs backbone=resnet10t head=isqrt"),
        ("vit_tiny_patch16_224_newton_schulz_lyapunov", "backbone=vit_tiny_patch16_224 head=newton_schulz_lyapunov"),
        ("resnet18_isqt", "unknown model 'resnet18_isqt'; did you mean 'resnet18_isqrt'"),
        ("resnet18_isqrt_", "did you mean 'resnet18_isqrt'"),
        ("second_ordr", "did you mean 'second_order'"),
        ("nothing_like_it", r"Unknown model \(nothing_like_it\)"),  # timm's own words
    ],
)
def test_names_that_are_not_registered(name, message):
    with pytest.raises(RuntimeError, match=message):
        timm.create_model(name)


def test_any_combination_from_a_script():
    arguments = dict(backbone="resnet10t", head="isqrt", reduce_channels=8, num_classes=5)
    assert timm.create_model("second_order", **arguments)(photos()).shape == (2, 5)
    arguments = dict(backbone_a="resnet10t", head_kwargs={"reduce_channels": 8}, num_classes=5)
    assert timm.create_model("two_stream", **arguments)(photos()).shape == (2, 5)
    with pytest.raises(ValueError, match="average pooling is called 'gap'"):
        small().reset_classifier(3, "avg")


def test_pooling_at_test_time_is_refused_for_vectors_and_left_to_timm_for_averages():
    model, larger = timm.create_model("resnet18_isqrt", num_classes=5, reduce_channels=8), {"input_size": (3, 288, 288)}
    with pytest.raises(ValueError, match="vectors of 36: leave it out, for the model takes pictures of any size"):
        apply_test_time_pool(model, larger)
    assert apply_test_time_pool(model, {"input_size": (3, 224, 224)}) == (model, False)
    plain, pooled = apply_test_time_pool(timm.create_model("resnet18", num_classes=5), larger)
    assert pooled and plain.eval()(photos(288)).shape == (2, 5)


@pytest.mark.parametrize("family", ["mobilenetv3_small_050", "test_convnext", "test_vit", "renamed test_convnext"])
def test_weights_of_other_families(family, tmp_path):
    """One that sets strictness itself, one whose head has a norm that is kept, one whose description asks for JAX's.

    And a file in the names of another library, which timm's families read; none of its names is one of the model's.
    """
    backbone = family.split()[-1]
    plain = timm.create_model(backbone, num_classes=5).state_dict()
    stored = dict(plain)
    if family.startswith("renamed"):
        names = {
            "stem": "downsample_layers.0",
            r"stages.(\d).downsample": r"downsample_layers.\1",
            ".blocks": "",
            "head.norm": "norm",
            "head.fc": "head",
            "conv_dw": "dwconv",
            "mlp.fc": "pwconv",
        }
        for ours, theirs in names.items():
            stored = {re.sub(ours, theirs, key): value for key, value in stored.items()}
    torch.save(stored, tmp_path / "plain.pth")
    overlay = {"file": str(tmp_path / "plain.pth"), "custom_load": backbone == "test_vit"}
    options = {"reduce_channels": 8, "pretrained": True, "pretrained_cfg_overlay": overlay}
    state = covpool_plugins.create_model(backbone, "isqrt", **options).state_dict()
    assert not family.startswith("renamed") or not set(stored) & set(state)
    classifier = timm.get_pretrained_cfg(backbone).classifier
    assert all(torch.equal(state[key], value) for key, value in plain.items() if not key.startswith(classifier))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripts_are_refused_in_one_line():
    message = r"torch.jit.script cannot take the isqrt pool.*; use torch.jit.trace"
    with pytest.raises(ExportError, match=message) as caught:
        torch.jit.script(small("isqrt"))
    assert "\n" not in str(caught.value)
