"""Style transfer by whitening and colouring, with a decoder that is trained on the two pictures themselves.

A timm backbone makes features of both pictures, those of the content get the mean and covariance of the style's, and a
small decoder makes a picture of them. Nothing is downloaded: the decoder learns on patches of the two pictures, and the
batch norms of a backbone without weights take their statistics from them. The result has the style's colours and small
textures; a decoder trained on a large collection gives better pictures.

Sources: Li et al., "Universal Style Transfer via Feature Transforms", NeurIPS 2017; Song, Sebe & Wang, "Fast
Differentiable Matrix Square Root", ICLR 2022.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN as MEAN
from timm.data.constants import IMAGENET_DEFAULT_STD as STD
from torch import Tensor, nn

from covpool_plugins.checks import check_integer, check_number
from covpool_plugins.errors import OptionError, UnknownNameError, one_line, require_extra
from covpool_plugins.linalg import NewtonSchulz, covariance
from covpool_plugins.pictures import read_picture
from covpool_plugins.whitening import whitening_coloring

SHIPPED = ("astronaut", "chelsea", "coffee", "immunohistochemistry", "hubble_deep_field", "rocket")
NARROWEST = 16
FEATURE_LOSS = 0.1
# Added to the content's covariance, as a part of its largest eigenvalue; it bounds what can be reached.
EPS = 1e-9
CONVERGED = 20  # Newton-Schulz iterations for condition numbers up to 1e6 or so


@dataclass(frozen=True)
class Settings:
    """Settings of a transfer.

    Args:
        model: timm backbone.
        pretrained: with timm's weights, which are downloaded.
        stages: of the backbone, from 0; one transfer after the other, the deepest first.
        steps: of the decoder's training, for each stage.
        size: shorter side of the pictures in pixels.
        patch: side of the patches in pixels.
        batch: patches in a step.
        alpha: how much of the style, in [0, 1].
        seed: of everything random.

    Raises:
        OptionError: for a number out of its range.
    """

    model: str = "resnet18"
    pretrained: bool = False
    stages: Sequence[int] = (0,)
    steps: int = 300
    size: int = 256
    patch: int = 96
    batch: int = 8
    alpha: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "size", "patch", "batch"):
            check_integer(name, getattr(self, name))
        check_integer("seed", self.seed, 0)
        check_number("alpha", self.alpha, "[0, 1]")
        if not self.stages:
            raise OptionError("stages must name at least one stage, got none")
        for stage in self.stages:
            check_integer("stages", stage, 0)


@dataclass(frozen=True)
class Transfer:
    """A picture in another one's style.

    Args:
        picture: the result.
        mean_error: distance of the transferred features' mean from the style's, relative to it.
        covariance_error: the same of the covariance; both are the largest over the stages.
        milliseconds: of all transfers, without encoder and decoder.
    """

    picture: Image.Image
    mean_error: float
    covariance_error: float
    milliseconds: float


def open_picture(name: str | Path, size: int) -> Tensor:
    """A picture (1, 3, H, W) in 0..1 with a shorter side of ``size``: a file, or one that scikit-image ships.

    Raises:
        UnknownNameError: for what is neither.
        ValueError: for a file that cannot be read.
    """
    if Path(name).exists():
        picture = read_picture(name)
    elif str(name) in SHIPPED:
        picture = Image.fromarray(getattr(require_extra("skimage.data", "demo"), str(name))()[..., :3])
    else:
        raise UnknownNameError("picture", str(name), SHIPPED)
    scale = size / min(picture.size)
    smaller = picture.resize((round(scale * picture.width), round(scale * picture.height)), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(smaller, dtype=np.float32) / 255).permute(2, 0, 1)[None]


class Stylist:
    """Encoder and decoders for two pictures; :meth:`transfer` puts one in the style of the other.

    Args:
        content: picture (1, 3, H, W) in 0..1.
        style: picture (1, 3, H', W').
        settings: how to transfer.
        progress: called after every step of training.

    Attributes:
        reconstruction: peak signal-to-noise ratio in dB of the content through encoder and decoder, by stage.
    """

    def __init__(
        self, content: Tensor, style: Tensor, settings: Settings, progress: Callable[[], object] = lambda: None
    ) -> None:
        self.content, self.style, self.settings = content, style, settings
        self.reconstruction: dict[int, float] = {}
        self.encoders: dict[int, nn.Module] = {}
        self.decoders: dict[int, nn.Module] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            for stage in sorted(settings.stages, reverse=True):
                encoder = _encoder(settings, stage)
                _calibrate(encoder, [content, style], settings)
                self.encoders[stage] = encoder
                self.decoders[stage] = self._train_decoder(encoder, progress)
                with torch.no_grad():
                    decoded = self.decoders[stage](_features(encoder, content))
                error = (decoded.clamp(0, 1) - _resized(content, decoded)).square().mean()
                self.reconstruction[stage] = float(-10 * error.log10())

    def _train_decoder(self, encoder: Any, progress: Callable[[], object]) -> nn.Module:
        decoder = _decoder(encoder.feature_info.channels()[0], encoder.feature_info.reduction()[0])
        optimizer = torch.optim.Adam(decoder.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.settings.steps)
        for patches in _patches([self.content, self.style], self.settings):
            with torch.no_grad():
                features = _features(encoder, patches)
            decoded = decoder(features)
            loss = (decoded - _resized(patches, decoded)).abs().mean()
            loss = loss + FEATURE_LOSS * (_features(encoder, decoded) - features).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress()
        return decoder.eval()

    @torch.no_grad()
    def transfer(self, method: str = "exact") -> Transfer:
        """The content in the style of the other picture.

        Args:
            method: of the inverse root, see :func:`covpool_plugins.whitening.whitening_coloring`.

        Raises:
            UnknownNameError: for a method that does not exist.
        """
        picture, spent, errors = self.content, 0.0, [(0.0, 0.0)]
        for stage, encoder in self.encoders.items():
            X, Y = (_features(encoder, image).double() for image in (picture, self.style))
            started = time.perf_counter()
            root = NewtonSchulz(iterations=CONVERGED) if method == "newton_schulz" else method
            coloured = whitening_coloring(X, Y, method=root, eps=EPS * float(covariance(X.flatten(2)).norm()))
            spent += time.perf_counter() - started
            errors.append(statistics_errors(coloured, Y))
            mixed = self.settings.alpha * coloured + (1 - self.settings.alpha) * X
            picture = self.decoders[stage](mixed.to(picture.dtype)).clamp(0, 1)
        mean_error, covariance_error = (max(error) for error in zip(*errors, strict=True))
        return Transfer(_as_image(picture), mean_error, covariance_error, 1000 * spent)


def statistics_errors(features: Tensor, style: Tensor) -> tuple[float, float]:
    """Relative distances of mean and covariance of features (1, C, H, W) from those of the style."""
    X, Y = features.flatten(2), style.flatten(2)
    pairs = ((X.mean(-1), Y.mean(-1)), (covariance(X), covariance(Y)))
    mean, second = (float((ours - theirs).norm() / theirs.norm()) for ours, theirs in pairs)
    return mean, second


def _encoder(settings: Settings, stage: int) -> nn.Module:
    if not timm.is_model(settings.model):
        raise UnknownNameError("timm model", settings.model, timm.list_models())
    try:
        encoder: Any = timm.create_model(
            settings.model, pretrained=settings.pretrained, features_only=True, out_indices=(stage,)
        )
        encoder.eval().requires_grad_(False)(torch.zeros(1, 3, settings.size, settings.size))
    except IndexError:
        raise OptionError(f"stage must be one of {settings.model!r}, which has fewer, got {stage}") from None
    except (RuntimeError, AssertionError, TypeError, AttributeError) as error:
        reason = one_line(error)[:120]
        raise OptionError(f"stage {stage} of {settings.model!r} at {settings.size} pixels: {reason}") from None
    return encoder


def _features(encoder: nn.Module, pictures: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, dtype=pictures.dtype).view(1, 3, 1, 1) for values in (MEAN, STD))
    return encoder((pictures - mean) / std)[0]


@torch.no_grad()
def _calibrate(encoder: nn.Module, pictures: Sequence[Tensor], settings: Settings) -> None:
    """Set the statistics of batch norms that have none of their own on the two pictures."""
    if settings.pretrained:
        return
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = None  # the plain mean
        norm.reset_running_stats()
    for picture in pictures:
        _features(encoder, picture)
    encoder.eval()


def _decoder(channels: int, reduction: int) -> nn.Module:
    """Convolutions with doublings in between, back to three channels."""
    layers: list[nn.Module] = []
    while reduction > 1:
        narrower = max(NARROWEST, channels // 2)
        layers += [nn.Conv2d(channels, narrower, 3, padding=1, padding_mode="reflect"), nn.ReLU()]
        layers += [nn.Upsample(scale_factor=2, mode="bilinear")]
        channels, reduction = narrower, reduction // 2
    layers += [nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect"), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(channels, 3, 3, padding=1, padding_mode="reflect"))


def _patches(pictures: Sequence[Tensor], settings: Settings) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.steps):
        batch = []
        for number in range(settings.batch):
            picture = pictures[number % len(pictures)][0]
            side = min(settings.patch, *picture.shape[1:])
            top, left = (int(torch.randint(extent - side + 1, (), generator=generator)) for extent in picture.shape[1:])
            patch = picture[:, top : top + side, left : left + side]
            batch.append(patch.flip(-1) if torch.rand((), generator=generator) < 0.5 else patch)
        side = min(patch.shape[-1] for patch in batch)
        yield torch.stack([patch[:, :side, :side] for patch in batch])


def _resized(pictures: Tensor, like: Tensor) -> Tensor:
    """Pictures in the size of the decoder's, which is a multiple of the backbone's stride."""
    return nn.functional.interpolate(pictures, like.shape[-2:], mode="bilinear", antialias=True)


def _as_image(picture: Tensor) -> Image.Image:
    pixels = (255 * picture[0].permute(1, 2, 0)).round().numpy().astype(np.uint8)
    return Image.fromarray(pixels)
