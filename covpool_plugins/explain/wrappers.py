"""The classifier inside of what training wraps around it, and what it says of its classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import OptionError
from .images import preprocessing_of

# Attributes under which torch.compile, (distributed) data parallel and averages of weights hold the model itself.
HOLDERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "MMDataParallel": "module",
    "MMDistributedDataParallel": "module",
    "AveragedModel": "module",
    "ModelEma": "module",
    "ModelEmaV2": "module",
    "ModelEmaV3": "module",
    "ExponentialMovingAverage": "module",
}


def classifier_inside(model: nn.Module) -> nn.Module:
    """The timm or MMPretrain classifier of a model: what a wrapper holds, or the only one in a module with its scores.

    Raises:
        OptionError: for what is no module, for a scripted or traced one, or for a module around a classifier that gives
            other scores, such as one that scales them.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(f"the model must be a torch.nn.Module or a ModelView, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise OptionError("a scripted or traced model has no layers to look into: pass the model that it was made of")
    model = _held(model)
    if _is_classifier(model):
        return model
    inside = {name: module for name, module in model.named_modules() if _is_classifier(module)}
    outermost = [name for name in inside if not any(name.startswith(f"{other}.") for other in inside if other != name)]
    if len(outermost) != 1:
        return model
    (name,) = outermost
    classifier = _held(inside[name])
    theirs, own = _outputs(model, classifier)
    if theirs is not None and own is not None and theirs.shape != own.shape:
        return model  # the classifier is its features, and something else gives the class scores
    if theirs is None or own is None or not torch.allclose(theirs, own):
        raise OptionError(
            f"{type(model).__name__} does not give the scores of the {type(classifier).__name__} in it: "
            f"pass model.{name} to explain those"
        )
    return classifier


def _held(model: nn.Module) -> nn.Module:
    """The module in the wrappers of :data:`HOLDERS`."""
    while holder := next((HOLDERS[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in HOLDERS), None):
        model = getattr(model, holder)
    return model


def _is_classifier(module: Any) -> bool:
    """Whether it is timm's or MMPretrain's, or has their attributes."""
    return hasattr(module, "pretrained_cfg") or hasattr(module, "data_preprocessor")


@torch.no_grad()
def _outputs(*models: nn.Module) -> list[torch.Tensor | None]:
    """What a module and then the classifier in it give for one input, in eval mode; ``None`` for what is no tensor."""
    training = [module for module in models[0].modules() if module.training]
    models[0].eval()
    preprocessing = preprocessing_of(models[1])
    shape = (1, preprocessing.channels, *preprocessing.input_size)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(next(models[1].parameters()))
    try:
        with torch.compiler.set_stance("force_eager"):
            outputs = [model(x) for model in models]
    except Exception:  # the caller's module may take anything else
        return [None, None]
    finally:
        for module in training:
            module.training = True
    return [output if isinstance(output, torch.Tensor) else None for output in outputs]


def known_names(model: Any, classes: int) -> tuple[str, ...]:
    """The names of the classes in timm's ``pretrained_cfg`` or MMPretrain's ``_dataset_meta``, if there are as many."""
    configured = getattr(model, "pretrained_cfg", None) or {}
    names = configured.get("label_names") or (getattr(model, "_dataset_meta", None) or {}).get("classes") or ()
    return tuple(map(str, names)) if len(names) == classes else ()


def is_multi_label(model: Any) -> bool:
    """Whether it is one of MMPretrain's with a multi-label head; told by name, so that MMPretrain is not imported."""
    kinds = type(getattr(model, "head", None)).__mro__
    return any(kind.__name__ in ("MultiLabelClsHead", "MultiLabelLinearClsHead") for kind in kinds)
