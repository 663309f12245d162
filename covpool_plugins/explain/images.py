"""From a picture to the input of a network, and back to the picture the network saw."""

from __future__ import annotations

import copy
import math
import warnings
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
BLUR = 0.05  # standard deviation of the blur, as a part of the shorter side
SIGMAS = 3  # how far the Gaussian reaches


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

    def blank(self, like: Tensor) -> Tensor:
        """An input of zeros (1, C, H, W), with the dtype and on the device of a tensor."""
        return like.new_zeros((1, self.channels, *self.input_size))

    def normalized(self, pixels: Tensor) -> Tensor:
        """Inputs (B, C, H, W) for pixels in 0..1, red, green, blue or grey."""
        mean, std = (pixels.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        x = (pixels - mean) / std
        return x.flip(1) if self.bgr else x

    def picture(self, x: Tensor) -> Picture:
        """The picture that an input (1, C, H, W) shows: cropped and resized as the network saw it."""
        rgb = x[0].detach().cpu().double()
        rgb = rgb.flip(0) if self.bgr else rgb
        mean, std = (rgb.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        pixels = (rgb * std + mean).clamp(0, 1).mul(255).round().expand(3, -1, -1)
        return Image.fromarray(pixels.permute(1, 2, 0).numpy().astype(np.uint8))


ImageLike = Path | str | Picture | np.ndarray | Tensor


def as_input(image: ImageLike, preprocessing: Preprocessing) -> Tensor:
    """Network input (1, C, H, W) for a file, a picture, an array, a tensor of pixels, or an input itself.

    Arrays are (H, W) or (H, W, C) with C = 1, 3 or 4 (red, green, blue, opacity, which is left out), of uint8 or of
    floating point numbers in [0, 1]. A tensor of uint8 (C, H, W) holds pixels; one of floating point numbers,
    (C, H, W) or (1, C, H, W), is taken as the network's input: normalised.

    Raises:
        ValueError: for a file that cannot be read.
        OptionError: for anything else, or a picture of 32 bits or without pixels.
        ShapeError: for an array or tensor of another shape, type or range.
    """
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8:
            return _checked_input(image, preprocessing)
        pixels = image[0] if image.ndim == 4 and image.shape[0] == 1 else image
        image = (pixels.movedim(0, -1) if pixels.ndim == 3 else pixels).cpu().numpy()
    if isinstance(image, np.ndarray):
        image = _picture(image)
    if isinstance(image, (str, Path)):
        image = read_picture(image)
    if not isinstance(image, Image.Image):
        raise OptionError(f"image must be a file, a picture, an array or a tensor, got {type(image).__name__}")
    return preprocessing(image)


def images_of(image: Any) -> tuple[list[Any], bool]:
    """The images of a list or a batch, and whether it is one: a batch may have a single image, too.

    Batches are tensors (B, C, H, W) and arrays (B, H, W, C); a tensor (1, C, H, W) is one image. The images of clips, a
    tensor (B, T, C, H, W), are their frames.

    Raises:
        OptionError: for none at all.
    """
    if isinstance(image, Tensor) and image.ndim == 5:
        return list(image.flatten(0, 1)), True
    batch = isinstance(image, (Tensor, np.ndarray)) and image.ndim == 4
    several = isinstance(image, (list, tuple)) or (batch and not (isinstance(image, Tensor) and len(image) == 1))
    if several and not len(image):
        raise OptionError("image must not be an empty list or batch")
    return (list(image) if several else [image]), several


def _checked_input(x: Tensor, preprocessing: Preprocessing) -> Tensor:
    batch = x.unsqueeze(0) if x.ndim == 3 else x
    channels = preprocessing.channels
    if batch.ndim != 4 or batch.shape[:2] != (1, channels) or batch.numel() == 0 or not batch.is_floating_point():
        raise ShapeError(f"an input must be (1, {channels}, H, W) floating point, got {x.dtype} {tuple(x.shape)}")
    low, high = batch.aminmax()
    normalised = any(preprocessing.mean) or any(deviation != 1 for deviation in preprocessing.std)
    if normalised and 0 <= low < high <= 1:
        warnings.warn(
            "all values of the tensor lie in [0, 1]: a floating point tensor is taken as normalised input; "
            "pass pixels as an array, a picture or a tensor of uint8",
            stacklevel=4,
        )
    return batch.detach()


def _picture(array: np.ndarray) -> Picture:
    """A picture of an array (H, W) or (H, W, 1 | 3 | 4) of uint8 or floating point numbers in [0, 1]."""
    floating = np.issubdtype(array.dtype, np.floating)
    layout = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not layout or array.size == 0 or not (floating or array.dtype == np.uint8):
        raise ShapeError(
            f"an array must be (H, W) or (H, W, 1, 3 or 4) of uint8 or floats in [0, 1], "
            f"got {array.dtype} {array.shape}"
        )
    if floating:
        if not (array.min() >= 0 and array.max() <= 1):
            raise ShapeError(f"an array of floats must lie in [0, 1], got {array.min():.3g} to {array.max():.3g}")
        array = np.round(255 * array).astype(np.uint8)
    pixels = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """What a timm or MMPretrain classifier was evaluated with, see the functions below."""
    return mmpretrain_preprocessing(model) if hasattr(model, "data_preprocessor") else timm_preprocessing(model)


def timm_preprocessing(model: nn.Module) -> Preprocessing:
    """timm's evaluation transform for the model's own data configuration, in the size that the model was built for.

    A model with one channel gets the averages of the means and deviations of red, green and blue: timm makes its grey
    weights of the sum of the three.
    """
    from timm.data import create_transform, resolve_model_data_config

    from ..timm_plugin.backbones import input_size

    config = resolve_model_data_config(model)
    if "input_size" in (getattr(model, "pretrained_cfg", None) or {}):
        config["input_size"] = input_size(model)  # timm's configuration does not know of img_size=
    channels = 1 if first_channels(model) == 1 else 3
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

    channels = 1 if first_channels(model) == 1 else 3
    red_first = config.test_dataloader.dataset.get("type") in RED_FIRST

    def to_input(picture: Picture) -> Tensor:
        pixels = np.asarray(picture)
        if channels == 3 and not red_first:
            pixels = np.ascontiguousarray(pixels[:, :, ::-1])  # as MMPretrain's loader gives it
        sample = pipeline(dict(img=pixels, img_shape=pixels.shape[:2], ori_shape=pixels.shape[:2]))
        return preprocessor({"inputs": [sample["inputs"]]})["inputs"][0].float().cpu()

    bgr = channels == 3 and getattr(preprocessor, "to_rgb", False) == red_first

    def unit_scale(name: str, default: float) -> tuple[float, ...]:
        values = getattr(preprocessor, name, None)
        listed = [default] if values is None else values.flatten().tolist()
        return tuple(value / 255 for value in (listed[::-1] if bgr else listed))

    pipeline_channels, height, width = to_input(Image.new("RGB" if channels == 3 else "L", (640, 480))).shape
    if pipeline_channels != channels:
        raise OptionError(
            f"the model takes {channels} channels, the test pipeline of its config gives {pipeline_channels}"
        )
    mean, std = unit_scale("mean", 0.0), unit_scale("std", 1.0)
    return Preprocessing((height, width), mean, std, to_input, bgr, channels)


def first_channels(model: nn.Module) -> int | None:
    """The channels that a network's first convolution takes, if there is one."""
    return next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), None)


def blur(x: Tensor) -> Tensor:
    """Pictures (B, C, H, W), smoothed by a Gaussian of 5 % of the shorter side."""
    return gaussian(x, BLUR * min(x.shape[-2:]))


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """Maps (B, C, H, W), smoothed by a Gaussian of that deviation in pixels; their edges are continued."""
    reach = math.ceil(SIGMAS * sigma)
    steps = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (steps / sigma).square())
    weights = (weights / weights.sum()).view(1, 1, -1, 1)
    rows = nn.functional.pad(x.flatten(0, 1)[:, None], (reach, reach, reach, reach), mode="replicate")
    smooth = nn.functional.conv2d(nn.functional.conv2d(rows, weights), weights.mT)
    return smooth.view(x.shape)
