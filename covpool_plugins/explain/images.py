"""From a picture to the input of a network, and back to the picture the network saw."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import OptionError, ShapeError
from ..pictures import Picture, read_picture, to_eight_bits

# Data sets of MMPretrain that give red, green, blue; its loader of files gives blue, green, red.
RED_FIRST = ("CIFAR10", "CIFAR100")


@dataclass(frozen=True)
class Preprocessing:
    """What the network was evaluated with.

    Args:
        input_size: height and width of the input.
        mean, std: of the channels (red, green, blue; or grey) in the scale 0..1.
        to_input: picture -> normalised input (C, H, W).
        bgr: whether the network's channels are blue, green, red.
        channels: C, which is 3, or 1 for a network that sees grey.
    """

    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    to_input: Callable[[Picture], Tensor]
    bgr: bool = False
    channels: int = 3

    def __call__(self, picture: Picture) -> Tensor:
        """Batch (1, C, H, W) in float32 for one picture."""
        return self.to_input(to_eight_bits(picture).convert("L" if self.channels == 1 else "RGB")).unsqueeze(0)

    def picture(self, x: Tensor) -> Picture:
        """The picture that an input (1, C, H, W) shows: cropped and resized as the network saw it."""
        rgb = x[0].detach().cpu().double()
        rgb = rgb.flip(0) if self.bgr else rgb
        mean, std = (torch.tensor(v, dtype=rgb.dtype).view(-1, 1, 1) for v in (self.mean, self.std))
        pixels = (rgb * std + mean).clamp(0, 1).mul(255).round().expand(3, -1, -1)
        return Image.fromarray(pixels.permute(1, 2, 0).numpy().astype(np.uint8))


def as_input(image: Path | str | Picture | np.ndarray | Tensor, preprocessing: Preprocessing) -> Tensor:
    """Network input (1, C, H, W) for a file, a picture, an array (H, W, 3) of uint8, or an input itself.

    Raises:
        ValueError: for a file that cannot be read.
        OptionError: for anything else, or a picture of 32 bits or without pixels.
        ShapeError: for an array or tensor of another shape or type.
    """
    if not isinstance(image, (str, Path, Image.Image, np.ndarray, Tensor)):
        raise OptionError(f"image must be a file, a picture, an array or a tensor, got {type(image).__name__}")
    if isinstance(image, Tensor):
        x = image.unsqueeze(0) if image.ndim == 3 else image
        channels = preprocessing.channels
        if x.ndim != 4 or x.shape[:2] != (1, channels) or x.numel() == 0 or not x.is_floating_point():
            raise ShapeError(
                f"an input must be (1, {channels}, H, W) floating point, got {image.dtype} {tuple(image.shape)}"
            )
        return x
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.size == 0 or image.dtype != np.uint8:
            raise ShapeError(f"an array must be (H, W, 3) of uint8, got {image.dtype} {image.shape}")
        image = Image.fromarray(image)
    return preprocessing(image if isinstance(image, Image.Image) else read_picture(image))


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """What a timm or MMPretrain classifier was evaluated with, see the functions below."""
    return mmpretrain_preprocessing(model) if hasattr(model, "data_preprocessor") else timm_preprocessing(model)


def timm_preprocessing(model: nn.Module) -> Preprocessing:
    """timm's evaluation transform for the model's own data configuration.

    A model with one channel gets the averages of the means and deviations of red, green and blue: timm makes its grey
    weights of the sum of the three.
    """
    from timm.data import create_transform, resolve_model_data_config

    config = resolve_model_data_config(model)
    channels = _input_channels(model)
    height, width = config["input_size"][1:]
    if channels == 1:
        config |= {key: (sum(config[key]) / len(config[key]),) for key in ("mean", "std")}
    transform = create_transform(**config, is_training=False)
    return Preprocessing((height, width), tuple(config["mean"]), tuple(config["std"]), transform, channels=channels)


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

    channels = _input_channels(model)
    red_first = config.test_dataloader.dataset.get("type") in RED_FIRST

    def to_input(picture: Picture) -> Tensor:
        pixels = np.asarray(picture)
        if channels == 3 and not red_first:
            pixels = np.ascontiguousarray(pixels[:, :, ::-1])  # as MMPretrain's loader gives it
        sample = pipeline(dict(img=pixels, img_shape=pixels.shape[:2], ori_shape=pixels.shape[:2]))
        return preprocessor({"inputs": [sample["inputs"]]})["inputs"][0].float().cpu()

    bgr = channels == 3 and getattr(preprocessor, "to_rgb", False) == red_first
    mean, std = (_unit_scale(preprocessor, name, default) for name, default in (("mean", 0.0), ("std", 1.0)))
    if bgr:
        mean, std = mean[::-1], std[::-1]
    pipeline_channels, height, width = to_input(Image.new("RGB" if channels == 3 else "L", (640, 480))).shape
    if pipeline_channels != channels:
        raise OptionError(
            f"the model takes {channels} channels, the test pipeline of its config gives {pipeline_channels}"
        )
    return Preprocessing((height, width), mean, std, to_input, bgr, channels)


def _unit_scale(preprocessor: Any, name: str, default: float) -> tuple[float, ...]:
    values = getattr(preprocessor, name, None)
    listed = [default] if values is None else values.flatten().tolist()
    return tuple(value / 255 for value in listed)


def _input_channels(model: nn.Module) -> int:
    """One for a network whose first convolution takes one channel, otherwise three.

    :meth:`ModelView.of` tries whether it takes three: the first convolution may lie behind a rearrangement of pixels.
    """
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return 1 if first is not None and first.in_channels == 1 else 3
