"""Models from names, configs and checkpoint files; of a file, only the weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint_file import check_real_numbers, find_weights, read_checkpoint
from ..checkpoint_pickle import shown
from ..errors import OptionError, UnknownNameError, require_extra


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

    from ..mmpretrain_plugin.safe_checkpoints import read_mmengine_checkpoint, weights_only_checkpoints

    _check_file(config)
    try:
        cfg = Config.fromfile(config)
        if cfg.get("model") is None:
            raise OptionError(f"{config}: the config has no model")
        with weights_only_checkpoints():
            model = get_model(cfg, pretrained=False)
    except OptionError:
        raise
    except Exception as error:  # a config is code: anything may go wrong in it
        raise OptionError(f"{config}: {type(error).__name__}: {error}") from None
    if checkpoint is not None:
        _load_strictly(model, read_mmengine_checkpoint(checkpoint), checkpoint)
    return model.eval()


def _check_file(path: Path | str) -> None:
    with open(path, "rb"):
        pass


def _load_strictly(model: nn.Module, content: Any, path: Path | str) -> None:
    """Load every weight; weights that were left random would be explained as if they meant something."""
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
        if key not in wanted:
            raise OptionError(f"{path} does not fit the model: it has {shown(key)}, the model has not")
    model.load_state_dict(state_dict)
