"""Folders that ``timm.create_model('local-dir:...')`` loads: weights as safetensors, and how to build the model."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
from timm.models import register_model
from timm.models._hub import save_config_for_hf
from torch import nn

from ..errors import OptionError
from ..files import write_file_atomically, write_json
from .builder import SECOND_ORDER_NAMES, create_model
from .second_order_models import default_cfgs
from .subclass import SecondOrderModel, head_name

# Arguments that do not describe the network, but its place, its weights or its classifier.
NOT_SAVED = ("device", "dtype", "pretrained_model_args", "pretrained_strict", "num_classes", "global_pool")


SECOND_ORDER_NAMES.add("second_order")


@register_model
def second_order(
    pretrained: bool = False, backbone: str = "resnet18", head: str = "svdpade", **kwargs: Any
) -> nn.Module:
    """Any timm backbone with any head, for ``local-dir:`` folders of combinations that have no name of their own."""
    return create_model(backbone, head, pretrained=pretrained, **kwargs)


def save_for_hub(model: nn.Module, directory: Path | str) -> Path:
    """Write ``config.json`` and ``model.safetensors``.

    ``timm.create_model('local-dir:DIR', pretrained=True)`` gives the model with the same logits. The folder can be
    loaded with another number of classes or of input channels too, and pushed to a hub as it is. Dropout rates are not
    kept, and a model of another dtype than float32 needs ``dtype=`` when it is loaded.

    Args:
        model: of :func:`covpool_plugins.create_model` or a registered name.
        directory: created as needed; files of these names in it are replaced.

    Raises:
        OptionError: for another model, one that its arguments do not build again (reparameterized, or with an argument
            that JSON cannot express), one on the meta device, or a ``directory`` that is a file.

    Examples:
        >>> model = create_model("test_resnet", "svdpade", num_classes=5, reduce_channels=16).eval()
        >>> save_for_hub(model, "hub").name
        'hub'
        >>> again = timm.create_model("local-dir:hub", pretrained=True).eval()
        >>> x = torch.randn(2, 3, 64, 64)
        >>> torch.equal(again(x), model(x))
        True
    """
    if not isinstance(model, SecondOrderModel):
        kind = type(model).__name__
        raise OptionError(f"save_for_hub takes models of create_model and of names <backbone>_<head>, got {kind}")
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise OptionError(f"save_for_hub: {str(directory)!r} is no folder")
    if any(tensor.is_meta for tensor in model.state_dict().values()):  # type: ignore[attr-defined]
        raise OptionError("save_for_hub: the model is on the meta device and has no data")
    architecture, arguments = _reconstruction(model)
    _check_that_it_builds_again(model, architecture, arguments)
    return write_hub_folder(model, directory, architecture, arguments)


def write_hub_folder(model: nn.Module, directory: Path, architecture: str, arguments: dict[str, Any]) -> Path:
    """Write a registered model as a folder for ``local-dir:``, given the name and the arguments that build it again."""
    config = _config(model, architecture, arguments)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # By file name: bytes of them all would take as much memory again.
    write_file_atomically(
        directory / "model.safetensors",
        lambda path: safetensors.torch.save_file(tensors, path, metadata={"format": "pt"}),
    )
    write_json(directory / "config.json", config)  # last: a folder without it is not taken for a model
    return directory


def _reconstruction(model: Any) -> tuple[str, dict[str, Any]]:
    """The registered name to build the model by, and its arguments."""
    head = getattr(model, head_name(model))
    pool_type = head.pool_type or head.own_pool_type
    arguments = {k: v for k, v in model.second_order_arguments.items() if k not in NOT_SAVED}
    backbone = arguments.pop("backbone")
    arguments["head_kwargs"] = head.options_for(pool_type)
    if not head.pool_type:
        arguments["global_pool"] = ""
    arguments = {k: v for k, v in arguments.items() if v is not None and v is not False and v not in ({}, [])}
    name = f"{backbone}_{pool_type}"
    if name in default_cfgs and timm.is_model(name):
        return name, arguments
    return "second_order", {"backbone": backbone, "head": pool_type, **arguments}


def _check_that_it_builds_again(model: Any, architecture: str, arguments: dict[str, Any]) -> None:
    again = timm.create_model(architecture, num_classes=model.num_classes, device="meta", **arguments)
    saved, built = ({k: v.shape for k, v in m.state_dict().items()} for m in (model, again))
    for key in [*saved, *built]:
        if saved.get(key) != built.get(key):
            raise OptionError(f"save_for_hub: {architecture!r} builds another model than this one, see {key!r}")


def _config(model: Any, architecture: str, arguments: dict[str, Any]) -> dict[str, Any]:
    described = copy.copy(model)
    described._model_args = {}
    described.pretrained_cfg = {**model.pretrained_cfg, "architecture": architecture}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        try:
            save_config_for_hf(described, path, model_args=arguments)  # type: ignore[arg-type]  # 1.0.26 needs a Path
        except ValueError as error:
            raise OptionError(f"save_for_hub: {error}") from None
        config = json.loads(path.read_text())
    config["model_args"] = arguments  # timm adds the backbone's own pooling, which is switched off
    return config
