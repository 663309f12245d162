"""A fitted probe as the head of a timm model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..timm_plugin import create_model

if TYPE_CHECKING:
    from .estimator import SecondOrderProbe


def model_with_probe(probe: SecondOrderProbe, backbone: str, **model_kwargs: Any) -> nn.Module:
    """A model of :func:`covpool_plugins.create_model` whose head is a fitted probe; ``save_for_hub`` can save it.

    Its scores are the probe's: for two classes, their difference is.

    Args:
        probe: fitted on what the backbone's pooling sees (``cached_features`` without ``layer``), with ``logistic``,
            ``ridge`` or a linear classifier.
        backbone: a timm model's name.
        model_kwargs: of ``create_model``, such as ``pretrained`` and ``pretrained_cfg_overlay``.

    Raises:
        OptionError: for a probe that a head cannot express: another classifier, ``attention``, features of another
            layer, or a backbone that normalises the features in front of its pooling.

    Examples:
        >>> X, y = torch.randn(8, 4, 512), torch.arange(8) % 2
        >>> probe = SecondOrderProbe("svdpade", channels=8).fit(X, y)
        >>> model = model_with_probe(probe, "resnet10t").eval()
        >>> scores = model.forward_head(X.mT.unflatten(2, (2, 2))).diff(dim=1)[:, 0]
        >>> torch.allclose(scores, torch.from_numpy(probe.decision_function(X)).float(), atol=1e-4)
        True
    """
    weight, bias = _linear(probe.classifier_)
    if len(weight) == 1:  # one score for two classes
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    options: dict[str, Any] = dict(probe.pool_options or {})
    reduction = probe.network_.reduction
    if isinstance(reduction, nn.Linear):
        options |= {"reduce_channels": reduction.out_features, "reduction": "projection"}
    elif probe.pool != "gap":
        options["reduce_channels"] = None
    if probe.pool == "attention":
        raise OptionError("pool 'attention' is no head of create_model")
    model: Any = create_model(backbone, probe.pool, num_classes=len(weight), head_kwargs=options, **model_kwargs)
    head = model.get_submodule("head")
    if not isinstance(head.norm, nn.Identity):
        raise OptionError(f"{backbone} normalises its features in front of the pooling, which the probe did not see")
    if head.in_features != probe.n_features_in_ or head.num_features != weight.shape[1]:
        found = f"{probe.n_features_in_} channels and vectors of {weight.shape[1]} numbers"
        raise OptionError(f"the head of {backbone} has {head.in_features} and {head.num_features}, the probe {found}")
    state: dict[str, Tensor] = dict(probe.network_.pool.state_dict())
    if isinstance(reduction, nn.Linear):
        state["reduction.weight"] = reduction.weight[:, :, None, None]
    head.global_pool.load_state_dict(state)
    head.fc.weight.data, head.fc.bias.data = (torch.from_numpy(part.astype(np.float32)) for part in (weight, bias))
    return model


def _linear(classifier: Any) -> tuple[np.ndarray, np.ndarray]:
    """Weights (K, D) and biases (K,) of a linear classifier, with the standardisation in front of it."""
    scaler, last = None, classifier
    if hasattr(classifier, "steps"):
        (*scalers, last) = [step for _, step in classifier.steps]
        scaler = scalers[0] if len(scalers) == 1 else None
        if not hasattr(scaler, "scale_"):
            raise OptionError(f"the probe's classifier is no linear one on standardised vectors: {classifier!r}")
    if not hasattr(last, "coef_"):
        raise OptionError(f"the probe's classifier is not linear: {last!r}")
    weight, bias = np.atleast_2d(last.coef_), np.atleast_1d(last.intercept_)
    if scaler is not None:
        weight = weight / scaler.scale_
        bias = bias - weight @ scaler.mean_
    return weight, bias
