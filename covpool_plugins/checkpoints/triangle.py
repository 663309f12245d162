"""The order of the numbers in the triangle of a symmetric matrix, which keys and shapes do not tell.

fast-MPN-COV's vector was the lower triangle by rows until December 2018 and is the upper one since, as ours is. With
the wrong order a classifier is as good as random. A name may tell, and a classifier of ImageNet's 1000 classes can be
asked: on photographs it is sure of its classes in the right order, and not in the wrong one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import check_choice
from ..errors import MissingExtraError, require_extra

ORDERS = ("upper", "lower")
# The file behind pretrained=True of fast-MPN-COV, by its issue 20.
LOWER_BY_NAME = "15991845"
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
ASKED_CLASSES = 1000
# The entropy in the right order is at most this part of that in the wrong one; information may fall by as many nats.
SURE = 0.75


def check_order(triangle: str | None) -> None:
    """Raise unless this is an order or ``None``."""
    check_choice("triangle", triangle, (*ORDERS, None))


def columns(width: int, order: str) -> Tensor:
    """For every number of the upper triangle by rows its place in the triangle of an order, or the other way around.

    Args:
        width: numbers of the triangle, n (n + 1) / 2.
        order: ``lower`` for the places in the lower triangle by rows, ``upper`` for the way back.
    """
    n = int((2 * width) ** 0.5)
    row, column = torch.triu_indices(n, n)
    places = column * (column + 1) // 2 + row
    return places if order == "lower" else places.argsort()


def order_of_name(file_name: str) -> str | None:
    """The order that the name of a released file tells."""
    return "lower" if LOWER_BY_NAME in file_name else None


def ask_network(model: Any, key: str, data: dict[str, Any]) -> tuple[str | None, str]:
    """The order in which a classifier is sure of what photographs show, if it is in one of them, and what it says.

    Args:
        model: a timm model with the weights, those of ``key`` in the file's order.
        key: of the weights behind the vector.
        data: what of timm's description of the data differs from the model's own.
    """
    try:
        entropies, informations = _entropies(model, key, data)
    except MissingExtraError as error:
        return None, f"photographs to ask the network are missing ({error})"
    said = ", ".join(f"{entropy:.2f} nats in the {order} order" for order, entropy in entropies.items())
    best, other = sorted(entropies, key=entropies.__getitem__)
    sure = entropies[best] < SURE * entropies[other] and informations[best] > informations[other] - SURE
    told = best if sure else None
    return told, f"on {len(PHOTOGRAPHS)} photographs the entropy of its classes is {said}"


@torch.no_grad()
def _entropies(model: Any, key: str, data: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """By order, the mean entropy of the classes, and how much the photographs tell of them.

    A classifier that gives every photograph the same class is sure, and of none.
    """
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    photographs = require_extra("skimage.data", "demo")
    transform: Any = create_transform(**resolve_data_config({}, pretrained_cfg={**model.pretrained_cfg, **data}))
    pictures = [transform(Image.fromarray(getattr(photographs, name)()[..., :3])) for name in PHOTOGRAPHS]
    features = model.float().forward_features(torch.stack(pictures))
    weight = model.get_parameter(key)
    entropies, informations = {}, {}
    for order in ORDERS:
        if order == "lower":
            weight.data = weight.data[:, columns(weight.shape[1], "lower")]
        p = model.forward_head(features).double().softmax(-1)
        entropies[order] = float(torch.special.entr(p).sum(-1).mean())
        informations[order] = float(torch.special.entr(p.mean(0)).sum()) - entropies[order]
    return entropies, informations
