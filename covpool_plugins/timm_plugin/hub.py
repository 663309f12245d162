"""Folders that ``timm.create_model('local-dir:...')`` loads: weights as safetensors, and how to build the model."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
from timm.models._hub import save_config_for_hf
from timm.utils import unwrap_model
from torch import nn

from ..errors import OptionError
from ..files import write_file_atomically, write_json
from .subclass import SecondOrderModel, reconstruction


def save_for_hub(model: nn.Module, directory: Path | str) -> Path:
    """Write ``config.json`` and ``model.safetensors``.

    ``timm.create_model('local-dir:DIR', pretrained=True)`` gives the model with the same logits. The folder can be
    loaded with another number of classes or of input channels too, and pushed to a hub as it is. Dropout rates are not
    kept, and a model of another dtype than float32 needs ``dtype=`` when it is loaded. It is what timm's
    ``save_for_hf`` writes, after a check that the folder will load.

    Args:
        model: of timm or of this package, compiled or in a wrapper for several processes too.
        directory: created as needed; files of these names in it are replaced.

    Raises:
        OptionError: for another model, one that its arguments do not build again (changed by hand, reparameterized, or
            with an argument that JSON cannot express), one on the meta device, or a ``directory`` that is a file.

    Examples:
        >>> model = covpool_plugins.create_model("test_resnet", "svdpade", num_classes=5, reduce_channels=16).eval()
        >>> save_for_hub(model, "hub").name
        'hub'
        >>> again = timm.create_model("local-dir:hub", pretrained=True).eval()
        >>> x = torch.randn(2, 3, 64, 64)
        >>> torch.equal(again(x), model(x))
        True
    """
    model = unwrap_model(model)
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if name is None or not timm.is_model(name):
        raise OptionError(f"save_for_hub takes models of timm and of this package, got {type(model).__name__}")
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise OptionError(f"save_for_hub: {str(directory)!r} is no folder")
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise OptionError("save_for_hub: the model is on the meta device and has no data")
    if isinstance(model, SecondOrderModel):
        name, arguments = reconstruction(model)
    else:
        arguments = _config(model, name).get("model_args", {})
    _check_that_it_builds_again(model, name, arguments)
    return write_hub_folder(model, directory, name, arguments)


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


def _check_that_it_builds_again(model: Any, architecture: str, arguments: dict[str, Any]) -> None:
    arguments = {"num_classes": model.num_classes, **arguments}
    again = timm.create_model(architecture, device="meta", **arguments)
    saved, built = ({k: v.shape for k, v in m.state_dict().items()} for m in (model, again))
    for key in [*saved, *built]:
        if saved.get(key) != built.get(key):
            raise OptionError(
                f"save_for_hub: {architecture!r} with the arguments of this model builds another, see {key!r}; build "
                "it as it has to be by timm.create_model and load the state_dict of this one, or save that"
            )


def _config(model: nn.Module, architecture: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    """What timm writes into ``config.json``; with other arguments than timm knows of."""
    described = copy.copy(model)
    described.pretrained_cfg = {**model.pretrained_cfg, "architecture": architecture}  # type: ignore[dict-item, assignment]
    if arguments is not None:
        described._model_args = {}  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        try:
            save_config_for_hf(described, path, model_args=arguments)  # type: ignore[arg-type]  # 1.0.26 needs a Path
        except ValueError as error:
            raise OptionError(f"save_for_hub: {error}") from None
        config = json.loads(path.read_text())
    if arguments is not None:
        config["model_args"] = arguments  # timm adds the backbone's own pooling, which is switched off
    return config
