"""Checkpoints of moment probing, SoT and DropCov's transformers: what they are, and what of them is refused."""

import re

import pytest
import timm
import torch
from support.checkpoints import saved, small

from covpool_plugins.checkpoints import load_original, write
from covpool_plugins.checkpoints.transformers import PROBED
from covpool_plugins.errors import OptionError


@pytest.mark.parametrize(
    "name, reason",
    [
        ("mp__as_base_patch4_window7_224__linear_probe", "AS-MLP, a backbone that timm does not have"),
        ("isice__swin_t__SICE", "Swin: the release cannot run it"),
    ],
)
def test_networks_that_are_refused_by_name(name, reason, tmp_path):
    few = {key: tensor[:1] for key, tensor in small(name).items() if key.count(".") < 7 and tensor.ndim}
    with pytest.raises(OptionError, match=reason):
        load_original(saved(few, tmp_path))


def probed():
    """A checkpoint of moment probing on timm's ViT, of 3 classes."""
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    shapes = {"proj.weight": (512, 192), "proj.bias": (512,), "ln.weight": (128,), "ln.bias": (128,)}
    shapes |= {"classifier1.weight": (3, 192), "classifier1.bias": (3,), "classifier2.weight": (3, 2883)}
    shapes |= {"classifier2.bias": (3,), "downblocks.0.0.weight": (3, 3, 3, 3), "downblocks.0.2.weight": (3, 3, 3, 3)}
    generator = torch.Generator().manual_seed(0)
    head = {f"head.{key}": torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    return {**{key: torch.zeros(tensor.shape) for key, tensor in model.state_dict().items()}, **head}


def test_two_classifiers_are_one_and_two_again(tmp_path):
    """Bit by bit, although a mean of two biases is one number; a classifier that was trained on is shared out."""
    state = probed()
    converted = load_original(saved(state, tmp_path, "mp.pth"))
    weight, bias = (converted.state_dict[f"head.fc.{name}"] for name in ("weight", "bias"))
    first, second = (state[f"head.classifier{i}.weight"] for i in (1, 2))
    assert torch.equal(weight, torch.cat([first, second], 1) / 2)
    assert torch.equal(bias, (state["head.classifier1.bias"] + state["head.classifier2.bias"]) / 2)
    assert sorted(converted.left_out) == ["head.classifier1.bias", "head.classifier2.bias"]
    write(converted, "timm", tmp_path / "timm")
    for trained in (False, True):
        again = load_original(tmp_path / "timm")
        if trained:
            again.state_dict["head.fc.bias"] += 1
        write(again, "original", tmp_path / f"{trained}")
        back = torch.load(tmp_path / f"{trained}" / "mp.pth")
        assert list(back) == list(state)
        if trained:
            assert torch.equal(back.pop("head.classifier1.bias"), bias + 1)
            assert torch.equal(back.pop("head.classifier2.bias"), bias + 1)
        assert all(torch.equal(tensor, state[key]) for key, tensor in back.items())


def test_moment_probing_that_does_not_fit(tmp_path):
    state = probed()
    del state["head.classifier1.bias"]
    with pytest.raises(OptionError, match=r"parts of 'head.fc.bias' are not complete"):
        load_original(saved(state, tmp_path))
    with pytest.raises(OptionError, match="--head isqrt: keys and shapes are those of the head moment"):
        load_original(saved(probed(), tmp_path), head="isqrt")
    with pytest.raises(OptionError, match=r"'head.global_pool.norm.weight' \[128\] would be lost"):
        load_original(saved({**probed(), "head.global_pool.norm.weight": torch.zeros(128)}, tmp_path))
    with pytest.raises(OptionError, match="none of timm's ViT, CLIP, Swin, ConvNeXt"):
        load_original(saved({key: t for key, t in probed().items() if "blocks.0.attn" not in key}, tmp_path))
    with pytest.raises(OptionError, match="none of timm's ViT, CLIP, Swin, ConvNeXt"):
        load_original(saved({key: t for key, t in probed().items() if not key.startswith("blocks.11.")}, tmp_path))
    with pytest.raises(OptionError, match=r"head.global_pool.reduction.weight. would be \[512, 192, 2\]"):
        load_original(saved({**probed(), "head.proj.weight": torch.zeros(512, 192, 2)}, tmp_path))


@pytest.mark.slow
def test_a_module_in_every_block_is_told_from_the_keys(tmp_path):
    """Of a model of this package, whose arguments are not in the file."""
    name = "vit_small_patch16_224_moment"
    state = timm.create_model(name, num_classes=3, psrp=True).state_dict()
    converted = load_original(saved(state, tmp_path), arch=name)
    assert converted.model_kwargs == {"num_classes": 3, "psrp": True}
    write(converted, "timm", tmp_path / "timm")
    again = load_original(tmp_path / "timm")
    assert again.model_kwargs == converted.model_kwargs
    assert all(torch.equal(again.state_dict[key], tensor) for key, tensor in state.items())


NAMES_IN_TIMM_06 = {r"^stem\.0\.": "stem.proj.", r"^stem\.1\.": "stem.norm."}


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch32_224",
        "vit_large_patch16_384",
        "swin_tiny_patch4_window7_224",
        "swin_large_patch4_window12_384",
        "convnext_small",
        "convnext_xlarge",
    ],
)
def test_sizes_of_probed_backbones(name):
    """Told from widths, blocks, patches, positions, windows."""
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=0).state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    for today, before in NAMES_IN_TIMM_06.items():
        shapes = {re.sub(today, before, key): shape for key, shape in shapes.items()}
    (row,) = [row for row in PROBED if any(key.startswith(row.mark) for key in shapes)]
    assert row.name(shapes) == name


@pytest.mark.parametrize(
    "name, backbone", [("sot__SoT_Small", "sot_small"), ("dropcov__T2T_ViT_14", "dropcov_t2t_vit_14")]
)
def test_transformers_of_sot_and_dropcov(name, backbone, tmp_path):
    """The blocks tell which; DropCov's third projection goes nowhere."""
    state = small(name)
    (projection,) = [key for key in state if ".wr." in key]
    state[projection] += torch.arange(len(state[projection]))[:, None]
    converted = load_original(saved(state, tmp_path))
    assert converted.model_name == backbone
    firsts = [converted.state_dict[f"head.global_pool.reductions.{i}.weight"][0, 0, 0, 0] for i in range(2)]
    assert firsts == [0, 144]
    assert list(converted.left_out) == [projection] * (backbone != "sot_small")
    fewer = {key: tensor for key, tensor in state.items() if not key.startswith("blocks.13.")}
    with pytest.raises(
        OptionError, match=f"384 channels x 13 blocks are no SoT or DropCov; known: sot_tiny.*{backbone}"
    ):
        load_original(saved(fewer, tmp_path))
    wide = {**state, "norm.weight": torch.zeros(5)}
    with pytest.raises(OptionError, match=r"'norm.weight' would be \[5\], the model needs \[384\]"):
        load_original(saved(wide, tmp_path))
    with pytest.raises(OptionError, match="--head mpa"):
        load_original(saved(state, tmp_path), head="mpa")


def test_so_vit_of_another_depth(tmp_path):
    fewer = {key: tensor for key, tensor in small("sovit__So_vit_7").items() if not key.startswith("blocks.6.")}
    with pytest.raises(OptionError, match="6 blocks are no So-ViT; known: so_vit_7, so_vit_10, so_vit_14, so_vit_19"):
        load_original(saved(fewer, tmp_path))
