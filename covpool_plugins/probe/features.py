"""Features of a frozen network: computed once, kept on disk."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from tqdm import tqdm

from ..checks import check_integer
from ..errors import OptionError, ShapeError, UnknownNameError
from ..files import check_folder, write_atomically
from ..pictures import Picture, read_picture
from ..timm_plugin.backbones import input_size

VERSION = 1  # of what is kept; another one is computed anew


class Features(NamedTuple):
    """What a network makes of pictures.

    Attributes:
        values: (N, M, C) in float32: C channels at M positions, row by row.
        mask: (N, M), true where a position counts; ``None`` where all do.
        prefix: (N, P, C): class token and registers; ``None`` without.
        grid: height and width of the maps; ``None`` for tokens.
    """

    values: np.ndarray
    mask: np.ndarray | None = None
    prefix: np.ndarray | None = None
    grid: tuple[int, int] | None = None

    def maps(self) -> np.ndarray:
        """The values as maps (N, C, H, W), as the layer gave them.

        Raises:
            ShapeError: for tokens, which have no height and width.
        """
        if self.grid is None:
            raise ShapeError(f"features of shape {self.values.shape} are tokens, not maps")
        return self.values.transpose(0, 2, 1).reshape(len(self.values), -1, *self.grid)


def cached_features(
    model: nn.Module | Callable[[Tensor], Any] | str,
    pictures: Sequence[Path | str | Picture],
    *,
    layer: str | None = None,
    cache: Path | str | None = None,
    size: int | None = None,
    transform: Callable[[Picture], Tensor] | None = None,
    name: str | None = None,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
) -> Features:
    """Features of pictures from a frozen model, under a progress bar; with ``cache`` they are computed once.

    A file of the cache is named after what it depends on: the model and its weights, the layer, the size and the
    preparation, the contents of the pictures. It is written to a temporary name and moved into place.

    Args:
        model: a timm model, its name (with timm's pretrained weights), or any callable that takes pictures
            (B, 3, H, W) and gives maps (B, C, H, W), tokens (B, M, C), or a pair of tokens and mask (B, M). M may
            differ from batch to batch of tokens: what is missing at the end is masked.
        pictures: files or pictures.
        layer: a module of the model by its name, such as ``blocks.4``, whose output is taken; by default what the
            model's pooling sees (``forward_features``).
        cache: a folder.
        size: height and width of what the model sees; its own by default.
        transform: picture -> (3, H, W); by default timm's for the model, without augmentation.
        name: of a model that is no timm model, for the cache.
        batch_size: pictures at a time.
        device: where the model runs; it is moved there, and back to where it was.

    Raises:
        OptionError: for a callable without ``transform``, or with ``cache`` and without ``name``; for no pictures.
        UnknownNameError: for a layer or a model that does not exist.
        ShapeError: for what are no maps and no tokens.
        ValueError: for a picture that cannot be read.

    Examples:
        >>> from PIL import Image
        >>> pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green")]
        >>> model = timm.create_model("resnet10t")
        >>> features = cached_features(model, pictures, layer="layer3", size=64, cache="features")
        >>> features.values.shape, features.grid
        ((2, 16, 256), (4, 4))
    """
    check_integer("batch_size", batch_size)
    if size is not None:
        check_integer("size", size)
    if not pictures:
        raise OptionError("there are no pictures to take features of")
    network = timm.create_model(model, pretrained=True) if isinstance(model, str) else model
    prepare, preparation = _transform(network, size, transform)
    path = None
    if cache is not None:
        check_folder(cache)
        key = {"layer": layer, "preparation": preparation, **_identity(network, name)}
        path = Path(cache) / f"{_title(network, name)}-{_key(key, pictures)}.npz"
        kept = _read(path)
        if kept is not None:
            return kept
    features = _compute(network, layer, _batches(pictures, prepare, batch_size), len(pictures), torch.device(device))
    if path is not None:
        arrays = {key: np.asarray(value) for key, value in features._asdict().items() if value is not None}
        write_atomically(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    return features


def _transform(network: Any, size: int | None, transform: Any) -> tuple[Callable[[Picture], Tensor], Any]:
    """The preparation of a picture, and what tells it from others."""
    if transform is not None:
        return transform, repr(transform)
    if not hasattr(network, "pretrained_cfg"):
        raise OptionError("a model that is not timm's needs transform=, which makes (3, H, W) of a picture")
    config = resolve_model_data_config(network)
    config["input_size"] = input_size(network, config["input_size"][0]) if size is None else (3, size, size)
    return create_transform(**config, is_training=False), sorted((k, str(v)) for k, v in config.items())


def _title(network: Any, name: str | None) -> str:
    return (name or network.pretrained_cfg["architecture"]).replace("/", "_")


def _identity(network: Any, name: str | None) -> dict[str, Any]:
    """What tells a model from others: its name and the digest of its weights."""
    if name is None and not hasattr(network, "pretrained_cfg"):
        raise OptionError("a model that is not timm's needs name= to be kept in a cache")
    weights = hashlib.sha256()
    for key, value in network.state_dict().items() if isinstance(network, nn.Module) else ():
        weights.update(key.encode())
        weights.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {"model": _title(network, name), "weights": weights.hexdigest()}


def _key(parts: dict[str, Any], pictures: Sequence[Any]) -> str:
    digest = hashlib.sha256(json.dumps({"version": VERSION, **parts}, sort_keys=True).encode())
    for picture in pictures:
        content = picture.tobytes() + str(picture.size).encode() if isinstance(picture, Image.Image) else None
        digest.update(hashlib.sha256(content or Path(picture).read_bytes()).digest())
    return digest.hexdigest()[:16]


def _read(path: Path) -> Features | None:
    """What a file of the cache holds; nothing for one that is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in kept.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    if set(arrays) - set(Features._fields) or "values" not in arrays:
        return None
    grid = arrays.pop("grid", None)
    return Features(**arrays, grid=None if grid is None else (int(grid[0]), int(grid[1])))


def _batches(pictures: Sequence[Any], prepare: Callable[[Picture], Tensor], size: int) -> Iterator[Tensor]:
    for start in range(0, len(pictures), size):
        chosen = pictures[start : start + size]
        opened = [p if isinstance(p, Image.Image) else read_picture(p) for p in chosen]
        yield torch.stack([prepare(picture.convert("RGB")) for picture in opened])


def _compute(network: Any, layer: str | None, batches: Iterable[Tensor], count: int, device: torch.device) -> Features:
    parts: list[Features] = []
    is_module = isinstance(network, nn.Module)
    before = next(iter(network.parameters()), torch.empty(0)).device if is_module else device
    training = is_module and network.training
    if is_module:
        network.eval().to(device)
    try:
        with torch.inference_mode(), tqdm(total=count, desc="features", unit="picture", disable=None) as bar:
            for x in batches:
                parts.append(_features(network, *_outputs(network, layer, x.to(device))))
                bar.update(len(x))
    finally:
        if is_module:
            network.train(training).to(before)
    return _joined(parts)


def _outputs(network: Any, layer: str | None, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the model or its layer gives, and the mask if there is one."""
    if layer is not None:
        return _output_of_layer(network, layer, x), None
    output = network.forward_features(x) if hasattr(network, "forward_features") else network(x)
    if isinstance(output, (tuple, list)) and len(output) == 2 and getattr(output[1], "dtype", None) == torch.bool:
        return output[0], output[1]
    return output, None


def _output_of_layer(network: Any, layer: str, x: Tensor) -> Tensor:
    modules = dict(network.named_modules()) if isinstance(network, nn.Module) else {}
    modules.pop("", None)
    if layer not in modules:
        raise UnknownNameError("layer", layer, modules)
    outputs: list[Any] = []
    with modules[layer].register_forward_hook(lambda module, args, output: outputs.append(output)):
        network(x)
    if not outputs:
        raise OptionError(f"layer {layer!r} is not used by the model")
    return outputs[0]


def _features(network: Any, output: Any, mask: Tensor | None) -> Features:
    if not isinstance(output, Tensor) or output.ndim not in (3, 4) or not output.is_floating_point():
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ShapeError(f"features must be maps (B, C, H, W) or tokens (B, M, C), got {found}")
    if mask is not None and mask.shape != output.shape[:2]:
        raise ShapeError(f"the mask must be {tuple(output.shape[:2])}, as the tokens are, got {tuple(mask.shape)}")
    output = output.float().cpu()
    if output.ndim == 4:
        maps = output.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else output
        return Features(maps.flatten(2).mT.contiguous().numpy(), grid=(maps.shape[2], maps.shape[3]))
    count = getattr(network, "num_prefix_tokens", 0) if mask is None else 0
    tokens = output.numpy()
    prefix = tokens[:, :count] if count else None
    return Features(tokens[:, count:], None if mask is None else mask.cpu().numpy(), prefix)


def _joined(parts: Sequence[Features]) -> Features:
    """All batches in one; tokens are filled up to the longest, and what is filled up is masked."""
    if len({part.grid for part in parts}) > 1:
        raise ShapeError(f"all maps must be of one size, got {sorted({str(part.grid) for part in parts})}")
    most = max(part.values.shape[1] for part in parts)
    masks = [np.ones(part.values.shape[:2], bool) if part.mask is None else part.mask for part in parts]
    filled = [np.pad(m, ((0, 0), (0, most - m.shape[1]))) for m in masks]
    values = [np.pad(part.values, ((0, 0), (0, most - part.values.shape[1]), (0, 0))) for part in parts]
    mask = np.concatenate(filled)
    prefix = [part.prefix for part in parts if part.prefix is not None]
    return Features(
        np.concatenate(values), None if mask.all() else mask, np.concatenate(prefix) if prefix else None, parts[0].grid
    )
