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
from typing import Any, NamedTuple

from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from ..whitening import PCANorm2d, ZCANorm2d, swap_norm
from .own_backbones import MODELS as OWN_NETWORKS
from .weights import description_without_weights

FIRST_NORM = r"layer1\.0\.bn1"

__all__: list[str] = []
default_cfgs: dict[str, Any] = {}


class Whitened(NamedTuple):
    """A network by its name, the norm that replaces one of its own, and that norm's options."""

    backbone: str
    norm: type[nn.Module]
    norm_kwargs: dict[str, Any]
    whiten: str = FIRST_NORM


# Class and arguments of each network.
NETWORKS: dict[str, tuple[type[ResNet], dict[str, Any]]] = {
    **OWN_NETWORKS,
    "resnet50": (ResNet, dict(block=Bottleneck, layers=(3, 4, 6, 3))),
}
# Matrices of 4x4 in ZCA, which did best in the paper.
MODELS = {
    "resnet18_cifar_zca": Whitened("resnet18_cifar", ZCANorm2d, dict(groups=16)),
    "resnet18_cifar_pca": Whitened("resnet18_cifar", PCANorm2d, dict(n_components=16)),
    "resnet50_cifar_zca": Whitened("resnet50_cifar", ZCANorm2d, dict(groups=16)),
    "resnet50_cifar_pca": Whitened("resnet50_cifar", PCANorm2d, dict(n_components=16)),
    "resnet50_zca": Whitened("resnet50", ZCANorm2d, dict(groups=16)),
    # Decorrelated batch norm of ICLR 2022: one matrix of 64x64 behind the first convolution.
    **{
        f"{name}_zca_{method}": Whitened(name, ZCANorm2d, dict(groups=1, eps=1e-2, method=method), whiten="bn1")
        for name in ("resnet18_cifar", "resnet50_cifar")
        for method in ("svdpi", "newton_schulz", "mpa", "mtp")
    },
}


def _entrypoint(name: str, row: Whitened) -> Callable[..., nn.Module]:
    def build(
        pretrained: bool = False,
        whiten: str = row.whiten,
        norm_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        rule = {"type": row.norm, **row.norm_kwargs, **(norm_kwargs or {})}
        network, arguments = NETWORKS[row.backbone]
        return build_model_with_cfg(
            lambda **model_args: swap_norm(network(**model_args), {whiten: rule}),
            name,
            pretrained,
            feature_cfg=dict(out_indices=(0, 1, 2, 3, 4), feature_cls="getter"),
            **{**arguments, **kwargs},
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"``{row.backbone}`` with a ``{row.norm.__name__}`` in place of the norms that match ``whiten``."
    return build


def _register_all() -> None:
    for name, row in MODELS.items():
        default_cfgs[name] = description_without_weights(name, row.backbone)  # for register_model
        globals()[name] = register_model(_entrypoint(name, row))


_register_all()
