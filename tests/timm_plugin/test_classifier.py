"""The classifier as users of the plain backbone handle it, and what is new in a model."""

import copy
import pickle

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

import covpool_plugins
from covpool_plugins.errors import OptionError

# One backbone for each name that timm's families give to their classifiers.
BACKBONES = {
    "resnet10t": "fc",
    "test_efficientnet": "classifier",
    "mobilenetv3_small_050": "classifier",
    "test_vit": "head",
    "test_convnext": "head.fc",
    "levit_128s": "head.linear",
    "inception_next_atto": "head.fc2",
    "shvit_s1": "head.l",
    "legacy_seresnet18": "last_linear",
    "selecsls42": "fc",
    "hrnet_w18_small": "classifier",
    "deit_tiny_distilled_patch16_224": "head",
}
pytestmark = pytest.mark.fast_for("resnet10t", "test_efficientnet", "test_vit", "test_convnext", "levit_128s")
NARROW = {"channels": (4, 4, 4, 24), "stem_width": 8}
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def small(backbone="resnet10t", head="isqrt", **options):
    size = {"resnet10t": NARROW, "test_vit": {"img_size": 64}}.get(backbone, {})
    return covpool_plugins.create_model(backbone, head, **{"num_classes": 5, "reduce_channels": 8, **size, **options})


def set_by_name(model, name, value):
    """``model.NAME = value``, where NAME has dots."""
    *owners, last = name.split(".")
    setattr(model.get_submodule(".".join(owners)), last, value)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_backbones_name_of_the_classifier_stands_for_the_heads(backbone):
    name, given = BACKBONES[backbone], timm.get_pretrained_cfg(backbone).classifier
    assert given.startswith(name) if isinstance(given, str) else given[0] == name
    model = small(backbone, device="meta")
    keys, fresh = list(model.state_dict()), nn.Linear(model.get_classifier().in_features, 3, device="meta")
    if name != "head":  # of a ViT it is pool and classifier
        assert model.get_submodule(name) is model.get_classifier()
    set_by_name(model, name, fresh)
    assert model.get_classifier() is fresh and model.num_classes == 3 and list(model.state_dict()) == keys
    assert [module for module in model.modules() if module is fresh] == [fresh]
    model.get_submodule(name).requires_grad_(False)
    assert not fresh.weight.requires_grad and next(model.parameters()).requires_grad
    set_by_name(model, name, nn.Identity())
    assert model.num_classes == 0 and list(model.state_dict()) == [
        k for k in keys if not k.endswith(("head.fc.weight", "head.fc.bias"))
    ]
    model.reset_classifier(4)
    assert model.num_classes == 4 and list(model.state_dict()) == keys


@pytest.mark.parametrize("backbone", ["resnet10t", "test_vit"])
def test_the_tutorials_lines(backbone):
    model = small(backbone).eval()
    vector = model.forward_head(model.forward_features(X), pre_logits=True)
    set_by_name(model, BACKBONES[backbone], nn.Linear(model.get_classifier().in_features, 3))
    assert torch.equal(model(X), model.get_classifier()(vector))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(X), model(X)) and type(twin) is type(model) and twin.num_classes == 3
        set_by_name(twin, BACKBONES[backbone], nn.Identity())
        assert torch.equal(twin(X), vector)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), model(X))
    graph = torch.fx.symbolic_trace(small().eval())
    assert graph(X).shape == (2, 5)


def test_classifiers_of_other_kinds():
    model = small()
    model.fc = nn.Sequential(nn.Dropout(0.1), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 7))
    assert model.num_classes == 7 and model(X).shape == (2, 7)
    model.fc = nn.LazyLinear(6)
    assert model(X).shape == (2, 6) and model.num_classes == 6
    model.fc, model.num_classes = nn.Bilinear(36, 36, 4), 4
    assert model.num_classes == 4
    model.fc, model.num_classes = nn.Softmax(1), 36  # tells no width
    assert model.num_classes == 36 and model(X).shape == (2, 36)
    model.head = torch.nn.Sequential(model.head)  # what wraps the head is not taken for a classifier
    assert isinstance(model.head, nn.Sequential)


@pytest.mark.parametrize(
    "backbone, name, message",
    [
        ("resnet10t", "fc", r"fc: the classifier takes vectors of 36 numbers .*, got Linear\(in_features=24\)"),
        ("test_vit", "head", r"head: the classifier takes vectors of 36 numbers .*, got Linear\(in_features=24\)"),
        ("resnet10t", "head", r"head holds pool and classifier, got Linear: assign head.fc or reset_classifier"),
    ],
)
def test_what_does_not_fit_is_refused_where_it_is_assigned(backbone, name, message):
    model = small(backbone)
    with pytest.raises(OptionError, match=message):
        setattr(model, name, nn.Linear(24, 5))
    assert model(X).shape == (2, 5)


@pytest.mark.parametrize("backbone, name", [("caformer_s18", "head.fc.fc2"), ("test_convnext", "head.fc.fc2")])
def test_a_name_inside_the_classifier_is_refused_where_it_is_used(backbone, name):
    """MetaFormer's own classifier is ``head.fc.fc2``, and torch lets a linear layer hold another one."""
    head = small(backbone, device="meta").head
    set_by_name(nn.ModuleDict({"head": head}), name, nn.Linear(36, 3, device="meta"))
    with pytest.raises(OptionError, match=r"head.fc is the classifier and cannot hold 'fc2': assign head.fc"):
        head(torch.empty(2, head.in_features, 7, 7, device="meta"))
    head.reset(3)
    assert head(torch.empty(2, head.in_features, 7, 7, device="meta")).shape == (2, 3)


@pytest.mark.parametrize("name", ["classifier", "head", "last_linear"])
def test_a_part_that_the_head_does_not_have_is_refused(name):
    """``head.classifier.linear`` of CPUBone, ``head.head.l`` of RepViT and iFormer."""
    model = small(device="meta")
    with pytest.raises(OptionError, match=f"a second-order head has no part '{name}'; its classifier is head.fc"):
        setattr(model.head, name, nn.Linear(36, 3, device="meta"))


def test_the_dropout_rate_is_the_heads():
    model = small(drop_rate=0.3)
    assert model.drop_rate == model.head.dropout.p == 0.3
    model.drop_rate = 0.5
    assert model.drop_rate == model.head.dropout.p == 0.5
    maps = model.forward_features(X)
    vector = model.head.global_pool(maps)
    dropped = model.forward_head(maps, pre_logits=True)
    assert torch.equal(dropped, torch.where(dropped == 0, 0.0, 2 * vector))  # once


@pytest.mark.parametrize("backbone", BACKBONES)
def test_new_parameters_are_those_that_no_pretrained_backbone_has(backbone):
    model = covpool_plugins.create_model(backbone, "isqrt", device="meta")
    plain = {key: value.shape for key, value in timm.create_model(backbone, device="meta").named_parameters()}
    new = {id(parameter) for parameter in model.new_parameters()}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in new]
    assert any("reduction" in name for name in names) and any(name.endswith("fc.bias") for name in names)
    pretrained = [name for name, _ in model.named_parameters() if name not in names]
    assert set(pretrained) <= set(plain) and not {name for name in names if name in plain and "fc" not in name}


def test_only_what_is_new_is_trained():
    model = small(layer_groups="new").train()
    model.requires_grad_(False)
    for parameter in model.new_parameters():
        parameter.requires_grad_()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.new_parameters(), lr=1.0)
    model(X).square().sum().backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if name.startswith("head.")}
    two = covpool_plugins.create_two_stream_model(
        "resnet10t", num_classes=3, head_kwargs={"reduce_channels": 4}, **NARROW
    )
    assert {id(p) for p in two.new_parameters()} == {id(p) for n, p in two.named_parameters() if "stream" not in n}
    two = covpool_plugins.create_two_stream_model("test_vit", psrp=True, head_kwargs={"reduce_channels": 8})
    new = {id(p) for n, p in two.named_parameters() if "stream" not in n or ".psrp." in n}
    assert {id(p) for p in two.new_parameters()} == new


@pytest.mark.parametrize("backbone", ["resnet10t", "test_convnext"])
def test_layer_groups_of_what_is_new(backbone):
    model = small(backbone, layer_groups="new", device="meta")
    new = {id(parameter) for parameter in model.new_parameters()}
    for group in param_groups_layer_decay(model, layer_decay=0.1):
        assert {id(parameter) in new for parameter in group["params"]} == {group["lr_scale"] == 1.0}
