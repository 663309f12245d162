"""The kinds of checkpoints there are: how each is told by its keys, and where its tensors go.

A row is a function of the weights and of what the user says. It returns a plan, or ``None`` if the checkpoint is
of another kind. The order matters: the first row that knows a checkpoint has it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import timm
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..errors import OptionError
from ..timm_plugin.psrp import PART_OF_KEYS as PART_OF_PSRP
from ..whitening.compatibility import RELEASED_LAYERS, STARTING_VECTOR, place_entry
from .backbones import STAGES, Backbone, recognise_backbone, resnet_name
from .heads import IDENTITY, Head, recognise_head
from .network import Network, allowed_settings
from .original_state import OriginalState
from .placement import LAYOUTS, Dropped, Hints, Place, Placement, Places, Plan, RefusedError, by_modules
from .transformers import moment_probing, so_vit, sot

POOL = "head.global_pool"
CONVOLUTION, NORM = f"{POOL}.reduction.conv", f"{POOL}.reduction.norm"
WITHOUT_STRIDE = "mpncovresnet"
IMAGENET_CLASSES = 1000
PCA, START = "myPCANormSVDPI", "starting vector"
# main.py normalises the pictures alike for every network; timm describes Inception otherwise.
IMAGENET = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "crop_pct": 0.875, "interpolation": "bilinear"}


def timm_model(state: OriginalState, hints: Hints) -> Plan | None:
    """A registered model, as timm's train.py saves it: its name is in the file, or given."""
    name = hints.arch or state.settings.get("model") or state.settings.get("arch")
    if name is None or not timm.is_model(name):
        return None
    if re.fullmatch(r"resnet\d+", name):
        return None  # a plain ResNet or its backbone: a row of its own
    arguments, notes = allowed_settings(state.settings.get("model_kwargs") or {})
    if "model_kwargs" not in state.settings and not hints.arch:
        notes.append("the model's arguments are not in the file")
    weights = [shape for key, shape in state.under("").items() if key.endswith("fc.weight") and len(shape) == 2]
    if not weights:
        return None
    if f"{CONVOLUTION}.weight" in state.tensors:
        arguments.setdefault("reduce_channels", state.shape(f"{CONVOLUTION}.weight")[0])
    if any(PART_OF_PSRP in key for key in state.tensors):
        arguments.setdefault("psrp", True)
    network = Network.of_model(name, weights[-1][0], arguments)
    known = network.build("meta").state_dict()
    if sum(key in known for key in state.tensors) < len(state.tensors) / 2:
        return None  # the same name in an original repository
    if hints.head not in (None, network.head):
        raise RefusedError(f"--head {hints.head}: {name} has the head {network.head}; --arch names both at once")
    return Plan("timm", network, by_modules([("", "")]), notes, named=True)


def main_py(state: OriginalState, hints: Hints) -> Plan | None:
    """main.py of fast-MPN-COV, and what derives from it: a sequence of features, a representation, a classifier."""
    if not state.has("features.", "classifier.") or state.has("head."):
        return None
    backbone = recognise_backbone(state.under("features."))
    if backbone is None:
        return None
    linear = [key for key, shape in state.under("classifier.").items() if len(shape) == 2]
    if not linear or (state.has("features.denseblock") and not state.has("features.conv0.")):
        return None
    arch = hints.arch or state.settings.get("arch")
    pairs = [(f"features.{theirs}" if theirs else "features", ours) for theirs, ours in backbone.pairs]
    reduced, reduction = _reduction(state, backbone)
    layers = [f"classifier.{key}".removesuffix("weight").rstrip(".") for key in linear]
    widths = [state.shape(f"{layer}.weight") for layer in layers]
    hidden = tuple(shape[0] for shape in widths[:-1])
    if backbone.name.startswith("vgg") and reduced is None and widths[0][1] == 7 * 7 * backbone.channels:
        raise OptionError(
            "the weights of a plain VGG with its fully connected layers, which takes the place of no head"
        )
    head = recognise_head(backbone.channels, reduced, widths[0][1], state, arch, hints.head)
    notes = [*head.notes]
    if head.name == "seb" and reduced is None:
        notes.append(
            "the release lifts eigenvalues below float32's epsilon to it; with unreduced channels that moves the scale "
            "of seb, and the logits, by about 2e-3 of what this model computes"
        )
    if arch is not None and _plain(arch) != _plain(backbone.name) and hints.arch is None:
        notes.append(f"the file says {arch}, keys and shapes are those of {backbone.name}")
    last_stride = _last_stride(state, backbone, arch, notes)
    pairs += [*reduction, *zip(layers, [*(f"head.hidden.{3 * i}" for i in range(len(hidden))), "head.fc"], strict=True)]
    network = Network(
        backbone.name, widths[-1][0], head.name, head.options, last_stride, hidden, dict(backbone.arguments)
    )
    channels = reduced or backbone.channels
    dropped = {re.escape(IDENTITY): Dropped("an identity, which the head makes itself", (channels, channels))}
    source = "main.py of fast-MPN-COV, DifferentiableSVD, RiemGCP or iSICE"
    return Plan(source, network, by_modules(pairs), notes, dropped, any_order=_any_order(head), data=dict(IMAGENET))


def _any_order(head: Head) -> bool:
    """Whether the vector may be from before December 2018: DifferentiableSVD and its own heads came later."""
    return head.guessed or head.name == "isqrt"


def _reduction(state: OriginalState, backbone: Backbone) -> tuple[int | None, list[tuple[str, str]]]:
    """Channels behind the reduction, and where its modules are called."""
    for convolution, norm in (
        ("representation.conv_dr_block.0", "representation.conv_dr_block.1"),
        ("features.8", "features.9"),  # mpncovresnet, which has it among its features, when it is fine-tuned
    ):
        shape = state.shape(f"{convolution}.weight")
        if shape[1:] == (backbone.channels, 1, 1):
            return shape[0], [(convolution, CONVOLUTION), (norm, NORM)]
    return None, []


def _last_stride(state: OriginalState, backbone: Backbone, arch: str | None, notes: list[str]) -> int | None:
    """1 for mpncovresnet, whose last stage has no stride; its keys and shapes are those of ResNet."""
    if not backbone.name.startswith("resnet"):
        return backbone.last_stride
    if arch is not None:
        return 1 if arch.lower().startswith(WITHOUT_STRIDE) else None
    if state.has("features.8."):
        return 1
    parts = list(dict.fromkeys(key.split(".")[0] for key in state.tensors))
    if WITHOUT_STRIDE in state.file_name.lower() or parts[-2:] == ["classifier", "representation"]:
        notes.append("last stage without stride: the file's name or the order of its keys is that of mpncovresnet")
        return 1
    notes.append(
        f"last stage with stride is a guess: mpncov{backbone.name}, which has none there, has the same keys; "
        f"name it by --arch mpncov{backbone.name}"
    )
    return None


def mpncov_resnet(state: OriginalState, hints: Hints) -> Plan | None:
    """A ResNet with ``layer_reduce``: the released mpncovresnet50 and mpncovresnet101, and those of DropCov."""
    if not state.has("conv1.", "layer_reduce.", "layer_reduce_bn.", "fc."):
        return None
    resnet = resnet_name(state.under(""), STAGES)
    if resnet is None:
        return None
    reduced, (classes, width) = state.shape("layer_reduce.weight")[0], state.shape("fc.weight")
    dropcov = state.has("eca_layer.")
    wanted = hints.head or ("dropcov" if dropcov else "isqrt")
    head = recognise_head(resnet[1], reduced, width, state, WITHOUT_STRIDE + resnet[0][6:], wanted)
    pairs = [("layer_reduce", CONVOLUTION), ("layer_reduce_bn", NORM), ("fc", "head.fc")]
    pairs += [("eca_layer.conv", f"{POOL}.weighting")]
    pairs += [(part, part) for part in ("conv1", "bn1", *STAGES)]
    network = Network(resnet[0], classes, head.name, head.options, last_stride=1)
    source = "DropCov" if dropcov else "mpncovresnet of fast-MPN-COV"
    return Plan(source, network, by_modules(pairs), head.notes, any_order=_any_order(head), data=dict(IMAGENET))


def cifar(state: OriginalState, hints: Hints) -> Plan | None:
    """The nets of Power-Iteration-SVD and decorrelated BN: a ResNet for CIFAR, whose first norm may whiten."""
    if not state.has("conv1.", "bn1.", "layer4.", "fc.") or state.shape("conv1.weight")[2:] != (3, 3):
        return None
    resnet = resnet_name(state.under(""), STAGES)
    if resnet is None or f"{resnet[0]}_cifar" not in timm.list_models("*_cifar"):
        return None
    name, classes = f"{resnet[0]}_cifar", state.shape("fc.weight")[0]
    source = "Power-Iteration-SVD or decorrelated BN"
    pairs = [(part, part) for part in ("conv1", "bn1", "fc", *STAGES)]
    layer = _released_layer(state)
    if layer is None:
        return Plan(source, Network(name, classes), by_modules(pairs))
    kind, groups, note = layer
    made = RELEASED_LAYERS[kind]
    options: dict[str, Any] = {**made.keywords, "groups": groups}  # type: ignore[attr-defined]
    suffix = "pca" if kind == PCA else "zca"
    if suffix == "pca":
        del options["groups"]
    network = Network(f"{name}_{suffix}", classes, backbone_kwargs={"whiten": "bn1", "norm_kwargs": options})
    place = _with_whitening(by_modules(pairs), kind, state.shape("conv1.weight")[0], groups)
    return Plan(f"{source}, {kind}", network, place, [note] if note else [])


def _released_layer(state: OriginalState) -> tuple[str, int, str | None] | None:
    """The released whitening layer in place of ``bn1``, its groups, and what there is to say."""
    shapes = state.under("bn1.")
    numbered = [key for key in shapes if re.fullmatch(r"running_subspace\d+", key)]
    subspace = shapes.get("running_subspace", ())
    if "running_var" in shapes and len(subspace) == 3:
        raise OptionError(
            f"{state.file_name}: bn1 is decorrelated BN's own batch norm, with a subspace and a variance, "
            "which no layer here is"
        )
    if "running_var" in shapes and subspace:
        return "myPCANormSVDPI", 1, None
    if subspace:
        return "ZCANormBatch", subspace[0], None
    if not numbered:
        return None
    if not any(STARTING_VECTOR.fullmatch(key) for key in shapes):
        return "ZCANormSVDunstable", len(numbered), None
    note = (
        "whitening layer ZCANormSVDPI is a guess: ZCANormPIunstable has the same keys; the two differ only in training"
    )
    return "ZCANormSVDPI", len(numbered), note


def _released_shapes(kind: str, channels: int, groups: int) -> Callable[[str], tuple[int, ...]]:
    """Shapes of the tensors of a released layer, by the name in ours; all that is no subspace is a vector."""
    size = channels // groups
    batch = kind == "ZCANormBatch"

    def shape(name: str) -> tuple[int, ...]:
        if name == "running_subspace":
            return (groups, size, size) if batch else (size, size)
        if name == START:
            return (1, channels) if batch else (size, 1)
        return (1, channels, 1) if batch else (channels, 1)

    return shape


def _with_whitening(others: Place, kind: str, channels: int, groups: int) -> Place:
    shape = _released_shapes(kind, channels, groups)

    def place(key: str) -> Places:
        if key != "u" and not key.startswith("bn1."):
            return others(key)
        entry = None if key == "u" else place_entry(key.removeprefix("bn1."), kind == PCA)
        if entry is None:
            return Dropped("starting vector of a power iteration", shape(START))
        counter = entry.name == "num_batches_tracked"
        return Placement(f"bn1.{entry.name}", entry.part, entry.transposed, None if counter else shape(entry.name))

    return place


def second_order_resnet(state: OriginalState, hints: Hints) -> Plan | None:
    """A ResNet of this package without its name."""
    resnet = resnet_name(state.under(""), STAGES)
    if resnet is None or not state.has("conv1.", "head.fc.") or state.shape("conv1.weight")[2:] != (7, 7):
        return None
    reduced = state.shape(f"{CONVOLUTION}.weight")[:1] or (None,)
    classes, width = state.shape("head.fc.weight")
    head = recognise_head(resnet[1], reduced[0], width, state, hints.arch, hints.head)
    notes = [*head.notes, "the model's other arguments are not in the file"]
    network = Network(resnet[0], classes, head.name, head.options, _given_stride(hints))
    return Plan("timm, without the model's name", network, by_modules([("", "")]), notes)


def plain_resnet(state: OriginalState, hints: Hints) -> Plan | None:
    """A ResNet of torchvision or timm, with average pooling or, with fresh weights, another head."""
    if not state.has("conv1.", "bn1.", "layer4.") or state.shape("conv1.weight")[2:] != (7, 7):
        return None
    resnet = resnet_name(state.under(""), STAGES)
    if resnet is None or state.has("head."):
        return None
    pairs = [(part, part) for part in ("conv1", "bn1", *STAGES)]
    classes = state.shape("fc.weight")[0] if state.has("fc.") else IMAGENET_CLASSES
    if hints.head in (None, "gap") and state.has("fc."):
        network = Network(resnet[0], classes, "gap", last_stride=_given_stride(hints))
        return Plan("ResNet of torchvision or timm", network, by_modules([*pairs, ("fc", "head.fc")]))
    head = hints.head or "svdpade"

    shapes = {r"fc\.weight": (classes, resnet[1]), r"fc\.bias": (classes,)}
    dropped = {key: Dropped("classifier of the averaged map", shape) for key, shape in shapes.items()}
    network = Network(resnet[0], classes, head, last_stride=_given_stride(hints))
    notes = [f"head {head!r} for {classes} classes starts with fresh weights, drawn with seed 0"]
    return Plan("ResNet of torchvision or timm, backbone only", network, by_modules(pairs), notes, dropped, fresh=True)


def _given_stride(hints: Hints) -> int | None:
    return 1 if (hints.arch or "").lower().startswith(WITHOUT_STRIDE) else None


def check_arch(plan: Plan, hints: Hints) -> None:
    """Raise if the user says another architecture than that of a plan."""
    if hints.arch is None:
        return
    fitting = {plan.network.backbone, plan.network.model_name, plan.network.backbone.split("_cifar")[0]}
    if _plain(hints.arch) not in {_plain(name) for name in fitting}:
        raise OptionError(f"--arch {hints.arch}: the keys and shapes are those of {plan.network.backbone}")


def _plain(arch: str) -> str:
    """A name of an architecture as the repositories and timm have it, made alike."""
    return re.sub(r"[^a-z0-9]", "", arch.lower().removeprefix("mpncov").removesuffix("_acd"))


LAYOUTS.add("moment probing", moment_probing)
LAYOUTS.add("sot", sot)
LAYOUTS.add("timm", timm_model)
LAYOUTS.add("so-vit", so_vit)
LAYOUTS.add("main.py", main_py)
LAYOUTS.add("mpncovresnet", mpncov_resnet)
LAYOUTS.add("cifar", cifar)
LAYOUTS.add("second-order resnet", second_order_resnet)
LAYOUTS.add("resnet", plain_resnet)
