"""Pictures in, network inputs out, and back to the picture the network saw."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from ..errors import OptionError, ShapeError

Picture = Image.Image


def read_picture(path: Path | str) -> Picture:
    """An RGB picture from a file, completely read.

    Raises:
        ValueError: if the file is missing, no picture, or cut short; the message is one line with the path.
    """
    try:
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not a picture that can be read") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's decoders raise
        raise ValueError(f"{path}: not a picture that can be read ({error})") from None


@dataclass(frozen=True)
class Preprocessing:
    """What the network was evaluated with.

    Args:
        input_size: height and width of the input.
        mean, std: of the RGB channels in the scale 0..1, as three numbers each.
        to_input: picture -> normalised input (3, H, W).
        bgr: whether the network's channels are blue, green, red.
    """

    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    to_input: Callable[[Picture], Tensor]
    bgr: bool = False

    def __call__(self, picture: Picture) -> Tensor:
        """Batch (1, 3, H, W) in float32 for one picture."""
        return self.to_input(picture.convert("RGB")).unsqueeze(0)

    def picture(self, x: Tensor) -> Picture:
        """The picture that an input (1, 3, H, W) shows: cropped and resized as the network saw it."""
        rgb = x[0].detach().cpu().double()
        rgb = rgb.flip(0) if self.bgr else rgb
        mean, std = (torch.tensor(v, dtype=rgb.dtype).view(3, 1, 1) for v in (self.mean, self.std))
        pixels = (rgb * std + mean).clamp(0, 1).mul(255).round()
        return Image.fromarray(pixels.permute(1, 2, 0).numpy().astype(np.uint8))


def as_input(image: Path | str | Picture | np.ndarray | Tensor, preprocessing: Preprocessing) -> Tensor:
    """Network input (1, 3, H, W) for a file, a picture, an array (H, W, 3) of uint8, or an input itself.

    Raises:
        ValueError: for a file that cannot be read.
        ShapeError: for an array or tensor of another shape or type.
    """
    if isinstance(image, Tensor):
        x = image.unsqueeze(0) if image.ndim == 3 else image
        if x.ndim != 4 or x.shape[:2] != (1, 3) or not x.is_floating_point():
            raise ShapeError(f"an input must be (1, 3, H, W) floating point, got {image.dtype} {tuple(image.shape)}")
        return x
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ShapeError(f"an array must be (H, W, 3) of uint8, got {image.dtype} {image.shape}")
        image = Image.fromarray(image)
    return preprocessing(image if isinstance(image, Image.Image) else read_picture(image))


def timm_preprocessing(model: nn.Module) -> Preprocessing:
    """timm's evaluation transform for the model's own data configuration."""
    from timm.data import create_transform, resolve_model_data_config

    config = resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    if channels != 3:
        raise OptionError(f"only models of 3 input channels can be explained, this one takes {channels}")
    transform = create_transform(**config, is_training=False)
    return Preprocessing((height, width), tuple(config["mean"]), tuple(config["std"]), transform)


def mmpretrain_preprocessing(model: Any) -> Preprocessing:
    """The test pipeline of the model's config, then its data preprocessor.

    Raises:
        OptionError: if the model was not built from a config with a test pipeline (``mmpretrain.get_model``).
    """
    from mmengine.dataset import Compose
    from mmpretrain.datasets import remove_transform
    from mmpretrain.registry import TRANSFORMS

    config = getattr(model, "_config", None)
    if config is None or "test_dataloader" not in config:
        raise OptionError("the model has no config with a test_dataloader: build it with mmpretrain.get_model(CONFIG)")
    steps = remove_transform(config.test_dataloader.dataset.pipeline, "LoadImageFromFile")
    pipeline = Compose([TRANSFORMS.build(step) for step in steps])
    preprocessor = copy.deepcopy(model.data_preprocessor)

    def to_input(picture: Picture) -> Tensor:
        bgr = np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])  # as MMPretrain's loader gives it
        sample = pipeline(dict(img=bgr, img_shape=bgr.shape[:2], ori_shape=bgr.shape[:2]))
        return preprocessor({"inputs": [sample["inputs"]]})["inputs"][0].float().cpu()

    to_rgb = bool(getattr(preprocessor, "to_rgb", False))
    mean, std = (_unit_scale(preprocessor, name, default) for name, default in (("mean", 0.0), ("std", 1.0)))
    if not to_rgb:
        mean, std = mean[::-1], std[::-1]
    height, width = to_input(Image.new("RGB", (640, 480))).shape[-2:]
    return Preprocessing((height, width), mean, std, to_input, bgr=not to_rgb)


def _unit_scale(preprocessor: Any, name: str, default: float) -> tuple[float, ...]:
    values = getattr(preprocessor, name, None)
    listed = [default] * 3 if values is None else values.flatten().tolist()
    return tuple(value / 255 for value in listed)
