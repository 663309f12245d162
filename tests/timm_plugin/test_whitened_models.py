"""Networks that whiten, under timm's names."""

from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2

from covpool_plugins.errors import OptionError
from covpool_plugins.timm_plugin.whitened_models import MODELS
from covpool_plugins.whitening import PCANorm2d, ZCANorm2d, swap_norm

SIZES = {name: 64 if name == "resnet50_zca" else 16 for name in MODELS}
# One of each kind of layer is enough for a start.
SLOW = [name for name in MODELS if name.startswith("resnet50") or name.endswith(("_mtp", "_svdpi", "_newton_schulz"))]
each_model = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MODELS]
)


def whitened(model):
    return [name for name, module in model.named_modules() if isinstance(module, (ZCANorm2d, PCANorm2d))]


@each_model
def test_weights_of_batch_norms_give_the_same_network_and_it_trains(name, tmp_path):
    assert name in timm.list_models(module="whitened_models") and name not in timm.list_models(pretrained=True)
    plain = timm.create_model(MODELS[name].backbone, num_classes=3)
    x, target = torch.randn(8, 3, SIZES[name], SIZES[name]), torch.arange(8) % 3
    plain(x)  # running statistics that are not zero and one
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    overlay = dict(file=str(tmp_path / "plain.safetensors"), num_classes=3)
    options = dict(num_classes=3, norm_kwargs=dict(eps=plain.bn1.eps))
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    (place,) = whitened(model)
    assert place == {"bn1": "bn1"}.get(MODELS[name].whiten, "layer1.0.bn1") and not model.pretrained_cfg["url"]
    # PCA keeps 16 of 64 components of what it sees; before it sees anything, all.
    torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)
    model = timm.create_model(name, num_classes=3)
    layer, optimizer = model.get_submodule(place), create_optimizer_v2(model, opt="sgd", lr=0.01)
    before = layer.running_subspace.clone()
    torch.nn.functional.cross_entropy(model(x), target).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    # timm's residual branches begin with zeros.
    assert layer.weight.grad.any() or not model.layer1[0].bn3.weight.any()
    optimizer.step()
    assert not torch.equal(layer.running_subspace, before)
    assert model.eval()(x).isfinite().all()
    features = timm.create_model(name, features_only=True)
    assert [f.shape[1] for f in features(x)] == features.feature_info.channels() and len(whitened(features)) == 1


def test_options():
    model = timm.create_model("resnet18_cifar_zca", whiten=r"bn1|layer1.*bn1", norm_kwargs=dict(groups=8, method="mpa"))
    assert whitened(model) == ["bn1", "layer1.0.bn1", "layer1.1.bn1"]
    assert {model.get_submodule(name).groups for name in whitened(model)} == {8}
    assert timm.create_model("resnet18_cifar_pca", norm_kwargs=dict(n_components=4)).layer1[0].bn1.n_components == 4
    with pytest.raises(OptionError, match="'layer9' matches no layer; the closest"):
        timm.create_model("resnet18_cifar_zca", whiten="layer9")
    with pytest.raises(OptionError, match="groups must divide"):
        timm.create_model("resnet18_cifar_zca", norm_kwargs=dict(groups=7))


def test_a_hub_folder_comes_back_the_same(tmp_path):
    model = timm.create_model("resnet18_cifar_zca", num_classes=3, norm_kwargs=dict(groups=8))
    x = torch.randn(4, 3, 16, 16)
    model(x)
    save_for_hf(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, norm_kwargs=dict(groups=8))
    assert torch.equal(again.eval()(x), model.eval()(x))


@pytest.mark.parametrize(
    "backbone",
    ["resnet18", *(pytest.param(b, marks=pytest.mark.slow) for b in ("resnetv2_18", "vgg11_bn", "efficientnet_b0"))],
)
def test_norms_of_other_backbones(backbone):
    """The swap of a norm wherever there are some, and a class as timm's ``norm_layer`` where timm takes one."""
    x = torch.randn(2, 3, 64, 64)
    model = timm.create_model(backbone, num_classes=3)
    last = [n for n, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)][-1]
    swap_norm(model, {last.replace(".", r"\."): dict(type="ZCANorm2d", groups=2)})
    assert whitened(model) == [last]
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    if backbone == "resnet18":
        model = timm.create_model(backbone, norm_layer=partial(ZCANorm2d, groups=16))
        assert len(whitened(model)) == 20 and model(x).isfinite().all()
