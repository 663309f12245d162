"""Models from names, configs and files, the classifier in what training wraps around it, and what is found in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint_file import check_real_numbers, find_weights, read_checkpoint
from ..checkpoint_pickle import shown
from ..errors import OptionError, UnknownNameError, require_extra
from ..linalg import EigenMethod, Exact
from ..linalg.methods.svd_newton import SVDNewton
from ..pooling import Pool
from ..pooling.base import InputFormat
from .images import preprocessing_of

# What holds a model as ``module``: (distributed) data parallel and averages of weights, of torch, timm and MMEngine.
WRAPPERS = {
    "DataParallel",
    "DistributedDataParallel",
    "AveragedModel",
    "BaseAveragedModel",
    "ModelEmaV2",
    "ModelEmaV3",
}


def load_timm_model(
    name: str, checkpoint: Path | str | None = None, num_classes: int | None = None, **model_kwargs: Any
) -> nn.Module:
    """A registered timm model, timm's own or second-order, in eval mode.

    Args:
        name: what ``timm.create_model`` takes; ``local-dir:`` and ``hf-hub:`` names bring their weights with them.
        checkpoint: ``.safetensors`` or ``.pth`` file with all the model's weights; without one they are random.
        num_classes: classes of the checkpoint; the default is the model's own.
        model_kwargs: what the model was built with besides, for example ``reduce_channels=64``.

    Raises:
        UnknownNameError: for a model that timm does not know.
        OptionError: for a checkpoint that does not fit or holds more than weights.
        OSError: for a checkpoint that cannot be read.

    Examples:
        >>> load_timm_model("resnet18_svdpade", num_classes=3, reduce_channels=8).training
        False
    """
    import timm

    from .. import timm_plugin  # noqa: F401  registers the second-order models

    with_weights = ":" in name
    if not with_weights and not timm.is_model(name.partition(".")[0]):
        raise UnknownNameError("timm model", name, timm.list_models())
    if num_classes is not None:
        model_kwargs["num_classes"] = num_classes
    try:
        model = timm.create_model(name, pretrained=with_weights, **model_kwargs)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise OptionError(f"timm model {name!r}: {error}") from None
    if checkpoint is not None:
        _load_strictly(model, read_checkpoint(checkpoint), checkpoint)
    return model.eval()


def load_mmpretrain_model(config: Path | str, checkpoint: Path | str | None = None) -> nn.Module:
    """The classifier of an MMPretrain config, in eval mode.

    Args:
        config: a config file; it is Python and is run.
        checkpoint: file that MMEngine wrote for it; without one the weights are random.

    Raises:
        MissingExtraError: if MMPretrain is not installed.
        OptionError: for a file that is no config, or a checkpoint that does not fit or holds more than weights.
        OSError: for a file that cannot be read.

    Examples:
        >>> from pathlib import Path
        >>> written = Path("config.py").write_text("_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'")
        >>> load_mmpretrain_model("config.py").head.num_classes
        10
    """
    require_extra("mmpretrain", "mmpretrain")
    from mmengine.config import Config
    from mmpretrain import get_model

    from ..mmpretrain_plugin import CovariancePooling
    from ..mmpretrain_plugin.active_method import KEY
    from ..mmpretrain_plugin.safe_checkpoints import read_mmengine_checkpoint, weights_only_checkpoints

    with open(config, "rb"):
        pass  # which tells best why a file cannot be read
    try:
        cfg = Config.fromfile(config)
        if cfg.get("model") is None:
            raise OptionError("the config has no model")
        with weights_only_checkpoints():
            model = get_model(cfg, pretrained=False)
    except Exception as error:  # a config is code: anything may go wrong in it
        kind = "" if isinstance(error, OptionError) else f"{type(error).__name__}: "
        raise OptionError(f"{config}: {kind}{error}") from None
    if checkpoint is not None:
        necks = [name for name, module in model.named_modules() if isinstance(module, CovariancePooling)]
        methods = [f"{neck}.{KEY}" for neck in necks]  # of a run with SwitchMethodHook; the neck takes it
        _load_strictly(model, read_mmengine_checkpoint(checkpoint), checkpoint, methods)
    return model.eval()


def _load_strictly(model: nn.Module, content: Any, path: Path | str, more: Sequence[str] = ()) -> None:
    """Load every weight, and keys that may be there besides; weights left random would be explained as if learned."""
    wanted = model.state_dict()
    state_dict = find_weights(content, path, known=wanted).tensors
    check_real_numbers(state_dict, wanted, path)
    for key, value in wanted.items():
        if key not in state_dict:
            raise OptionError(f"{path} does not fit the model: it has no {key!r}")
        if state_dict[key].shape != value.shape:
            sizes = f"{tuple(state_dict[key].shape)} instead of {tuple(value.shape)}"
            raise OptionError(f"{path} does not fit the model: {key!r} is {sizes}")
    for key in state_dict:
        if key not in wanted and key not in more:
            raise OptionError(f"{path} does not fit the model: it has {shown(key)}, the model has not")
    model.load_state_dict(state_dict)


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
    inside = {name: module for name, module in model.named_modules() if _is_classifier(module)}
    outermost = [name for name in inside if not any(name.startswith(f"{other}.") for other in inside)]
    if _is_classifier(model) or len(outermost) != 1:
        return model
    (name,) = outermost
    classifier = _held(inside[name])
    theirs, own = _outputs(model, classifier)
    if theirs is None or own is None or (theirs.shape == own.shape and not torch.allclose(theirs, own)):
        raise OptionError(
            f"{type(model).__name__} does not give the scores of the {type(classifier).__name__} in it: "
            f"pass model.{name} to explain those"
        )
    # Of other shape, the classifier gives the features of what gives the class scores.
    return classifier if theirs.shape == own.shape else model


def _held(model: Any) -> nn.Module:
    """The module in its wrappers, torch.compile's and :data:`WRAPPERS`."""
    kinds = {kind.__name__ for kind in type(model).__mro__}
    if "OptimizedModule" in kinds:
        return _held(model._orig_mod)
    return _held(model.module) if kinds & WRAPPERS else model


def _is_classifier(module: Any) -> bool:
    """Whether it is timm's or MMPretrain's, or has their attributes."""
    return hasattr(module, "pretrained_cfg") or hasattr(module, "data_preprocessor")


@torch.no_grad()
def _outputs(*models: nn.Module) -> list[Tensor | None]:
    """What a module and then the classifier in it give for one input, in eval mode; ``None`` for what is no tensor."""
    training = [module for module in models[0].modules() if module.training]
    models[0].eval()
    x = preprocessing_of(models[1]).blank(next(models[1].parameters()))
    try:
        with torch.compiler.set_stance("force_eager"):
            outputs = [model(torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x)) for model in models]
    except Exception:  # the caller's module may take anything else
        return [None, None]
    finally:
        for module in training:
            module.training = True
    return [output if isinstance(output, Tensor) else None for output in outputs]


def known_names(model: Any, classes: int) -> tuple[str, ...]:
    """The names of the classes in timm's ``pretrained_cfg`` or MMPretrain's ``_dataset_meta``, if there are as many."""
    configured = getattr(model, "pretrained_cfg", None) or {}
    names = configured.get("label_names") or (getattr(model, "_dataset_meta", None) or {}).get("classes") or ()
    return tuple(map(str, names)) if len(names) == classes else ()


def is_multi_label(model: Any) -> bool:
    """Whether it is one of MMPretrain's with a multi-label head; told by name, so that MMPretrain is not imported."""
    kinds = type(getattr(model, "head", None)).__mro__
    return any(kind.__name__ in ("MultiLabelClsHead", "MultiLabelLinearClsHead") for kind in kinds)


def see_single_frames(model: Any) -> None:
    """Let a model of clips see one frame: the vectors of frames are averaged, so that each has its own share.

    Raises:
        OptionError: if the pool joins the frames of a clip.
    """
    for module in model.modules() if getattr(model, "frames", None) else ():
        if getattr(module, "frames_joined_by_pool", 1) > 1:
            raise OptionError("the pool of this model joins the frames of a clip: no single frame has a class score")
        for attribute in ("frames", "frames_averaged"):
            if getattr(module, attribute, None):
                setattr(module, attribute, 1)


def use_exact_gradient(model: nn.Module) -> None:
    """Let pools whose root is by eigen-decomposition have its true gradient, whichever they train with."""
    pools: list[Any] = [module for module in model.modules() if isinstance(module, Pool)]
    for pool in pools:
        method = getattr(pool, "method", None)
        # What leaves eigenvalues out computes another root, and has the exact gradient of that one.
        whole = isinstance(method, EigenMethod) and type(method).truncate is EigenMethod.truncate
        if whole or isinstance(method, SVDNewton):
            pool.method = Exact()


def find_classifier(model: Any) -> nn.Linear | None:
    """The linear layer of the class scores, if there is one."""
    if hasattr(model, "get_classifier"):
        classifier = model.get_classifier()
    else:
        classifier = getattr(getattr(model, "head", None), "fc", None)
    return classifier if isinstance(classifier, nn.Linear) else None


def find_pool_site(model: nn.Module) -> nn.Module | None:
    """The last pool of this package, or the only global average pooling of timm or MMPretrain."""
    pools: list[nn.Module] = [module for module in model.modules() if isinstance(module, Pool)]
    if pools:
        return pools[-1]
    averages = [average for module in model.modules() if (average := _global_average(module)) is not None]
    return averages[0] if len(averages) == 1 else None


def _global_average(module: Any) -> nn.Module | None:
    """The module that averages in a pooling; told by name, so that neither timm nor MMPretrain is imported."""
    kind = type(module).__name__
    if kind == "SelectAdaptivePool2d" and module.pool_type in ("avg", "fast", "fastavg"):
        return module
    return module.gap if kind == "GlobalAveragePooling" else None


def input_format(site: Any) -> InputFormat:
    """The layout of the maps that a pool takes."""
    if isinstance(site, Pool):
        return site.input_fmt
    return "NHWC" if getattr(getattr(site, "pool", None), "dim", None) == (1, 2) else "NCHW"
