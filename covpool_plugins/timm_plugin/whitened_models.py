"""Networks with one whitening layer in place of a batch norm: ``timm.create_model('resnet18_cifar_zca')``.

It follows the first convolution of the first residual block, as in the experiments of Wang, Dang, Hu, Fua & Salzmann,
"Backpropagation-Friendly Eigendecomposition", NeurIPS 2019. In the models named after a method, such as
``resnet18_cifar_zca_mpa``, it follows the very first convolution, as in the decorrelated networks of Song, Sebe & Wang,
"Fast Differentiable Matrix Square Root", ICLR 2022. ``whiten`` is a pattern of the layers to replace, as in
:func:`covpool_plugins.whitening.swap_norm`, ``norm_kwargs`` are options of the whitening layers. Weights of the network
with batch norms can be loaded too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from ..whitening import PCANorm2d, ZCANorm2d, swap_norm
from .own_backbones import CifarResNet
from .weights import description_without_weights

FIRST_NORM = r"layer1\.0\.bn1"

__all__: list[str] = []
default_cfgs: dict[str, Any] = {}


@dataclass(frozen=True)
class Whitened:
    """A network, its arguments, and the norm that replaces one of its own."""

    backbone: str
    network: Callable[..., nn.Module]
    model_args: dict[str, Any]
    norm: type[nn.Module]
    norm_kwargs: dict[str, Any]
    feature_cfg: dict[str, Any]
    whiten: str = FIRST_NORM


GETTER: dict[str, Any] = dict(out_indices=(0, 1, 2, 3, 4), feature_cls="getter")
RESNET50: dict[str, Any] = dict(block=Bottleneck, layers=(3, 4, 6, 3))
CIFAR_RESNET50: dict[str, Any] = dict(block="bottleneck", layers=(3, 4, 6, 3))
# Matrices of 4x4 in ZCA, which did best in the paper.
MODELS = {
    "resnet18_cifar_zca": Whitened("resnet18_cifar", CifarResNet, {}, ZCANorm2d, dict(groups=16), GETTER),
    "resnet18_cifar_pca": Whitened("resnet18_cifar", CifarResNet, {}, PCANorm2d, dict(n_components=16), GETTER),
    "resnet50_cifar_zca": Whitened("resnet50_cifar", CifarResNet, CIFAR_RESNET50, ZCANorm2d, dict(groups=16), GETTER),
    "resnet50_cifar_pca": Whitened(
        "resnet50_cifar", CifarResNet, CIFAR_RESNET50, PCANorm2d, dict(n_components=16), GETTER
    ),
    "resnet50_zca": Whitened("resnet50", ResNet, RESNET50, ZCANorm2d, dict(groups=16), {}),
}

# Decorrelated batch norm of ICLR 2022: one matrix of 64x64 behind the first convolution.
for _name, _arguments in (("resnet18_cifar", {}), ("resnet50_cifar", CIFAR_RESNET50)):
    for _method in ("svdpi", "newton_schulz", "mpa", "mtp"):
        _options = dict(groups=1, eps=1e-2, method=_method)
        MODELS[f"{_name}_zca_{_method}"] = Whitened(
            _name, CifarResNet, _arguments, ZCANorm2d, _options, GETTER, whiten="bn1"
        )


def _entrypoint(name: str, row: Whitened) -> Callable[..., nn.Module]:
    def build(
        pretrained: bool = False,
        whiten: str = row.whiten,
        norm_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        rule = {"type": row.norm, **row.norm_kwargs, **(norm_kwargs or {})}
        return build_model_with_cfg(
            lambda **model_args: swap_norm(row.network(**model_args), {whiten: rule}),
            name,
            pretrained,
            feature_cfg=dict(row.feature_cfg),
            **{**row.model_args, **kwargs},
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"``{row.backbone}`` with a ``{row.norm.__name__}`` in place of the norms that match ``whiten``."
    return build


def _register_all() -> None:
    for name, row in MODELS.items():
        default_cfgs[name] = description_without_weights(name, row.backbone)  # for register_model
        globals()[name] = register_model(_entrypoint(name, row))


_register_all()
