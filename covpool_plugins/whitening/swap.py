"""Other normalisation layers in a network that is built already."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checks import check_known
from ..errors import OptionError, UnknownNameError
from .grouped import wide_dtype
from .norm import PCANorm1d, PCANorm2d, PCANorm3d, WhiteningNorm, ZCANorm1d, ZCANorm2d, ZCANorm3d

# Of the input that batch norms take; a SyncBatchNorm takes any.
DIMENSIONS = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}

Rule = Mapping[str, Any] | Callable[[int], nn.Module]


def layer_types() -> dict[str, type[WhiteningNorm]]:
    """The whitening layers, by name."""
    return {kind.__name__: kind for kind in (PCANorm1d, PCANorm2d, PCANorm3d, ZCANorm1d, ZCANorm2d, ZCANorm3d)}


def swap_norm(model: nn.Module, rules: Mapping[str, Rule]) -> nn.Module:
    """Replace batch norms of a network, in place, by other layers.

    The new layers stand under the names of the old ones: keys of state dicts stay. They take over the parameters
    ``weight`` and ``bias`` (the same objects: an optimizer keeps them), the running statistics, the mode of training,
    device and dtype, and what timm runs within a batch norm (dropout, activation). The whitening matrix of a ZCA layer
    begins with the variances, so that the network gives what it gave before until it is trained on; so does a PCA
    layer that has the old one's ``eps``. Other options (``eps``, ``momentum``) are the new layer's own. A layer with
    two names is replaced once, under both; placeholders (``nn.Identity``) are passed over.

    Args:
        model: any network with batch norms (``BatchNorm1d``, ``2d``, ``3d``, ``SyncBatchNorm``, timm's
            ``BatchNormAct2d``).
        rules: from a pattern to what comes instead. The pattern is a regular expression for the *whole* dotted name,
            for example ``r'layer1\\.0\\.bn1'`` or ``r'.*\\.bn\\d'``; the first that matches counts. What comes
            instead is ``dict(type=…, **options)``, with the name of a layer of ``covpool_plugins.whitening`` or a
            class, or a function from the number of channels to a layer.

    Returns:
        The model.

    Raises:
        OptionError: for a pattern that is no regular expression, that matches nothing, or that matches something
            else than a batch norm; for a type that does not exist, and an option that the layer does not have or take.

    Examples:
        >>> model = timm.create_model("test_resnet")
        >>> swap_norm(model, {"bn1": dict(type="ZCANorm2d", groups=4)}).bn1.groups
        4
    """
    modules = list(_candidates(model))
    chosen: dict[_BatchNorm, tuple[str, str]] = {}
    for pattern in rules:
        for name, layer in _matches(pattern, modules):
            chosen.setdefault(layer, (pattern, name))
    swapped: dict[nn.Module, nn.Module] = {
        layer: _replacement(layer, rules[pattern], pattern, name) for layer, (pattern, name) in chosen.items()
    }
    for name, module in modules:
        if module in swapped:
            parent, _, attribute = name.rpartition(".")
            model.get_submodule(parent).add_module(attribute, swapped[module])
    return model


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All names of all modules, but of those within batch norms."""
    within: tuple[str, ...] = ()
    for name, module in model.named_modules(remove_duplicate=False):
        if name and not name.startswith(within or "\0"):
            yield name, module
            within += (f"{name}.",) * isinstance(module, _BatchNorm)


def _matches(pattern: str, modules: list[tuple[str, nn.Module]]) -> list[tuple[str, _BatchNorm]]:
    try:
        whole_name = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise OptionError(f"rules: {pattern!r} is no regular expression: {error}") from None
    matched = []
    for name, module in modules:
        # timm has placeholders where a norm is left out.
        if whole_name.fullmatch(name) and not isinstance(module, nn.Identity):
            if not isinstance(module, _BatchNorm):
                raise OptionError(f"rules: {pattern!r} matches {name!r}, a {type(module).__name__} and no batch norm")
            matched.append((name, module))
    if not matched:
        names = [name for name, module in modules if isinstance(module, _BatchNorm)]
        close = difflib.get_close_matches(pattern.replace("\\", ""), names, n=3, cutoff=0)
        hint = f"the closest of {len(names)} batch norms: {', '.join(close)}" if names else "there is no batch norm"
        raise OptionError(f"rules: {pattern!r} matches no layer; {hint}")
    return matched


def _replacement(old: _BatchNorm, rule: Rule, pattern: str, name: str) -> nn.Module:
    state = next((tensor for tensor in (old.weight, old.running_mean) if tensor is not None), torch.empty(0))
    try:
        new = _built(rule, old).to(state.device, state.dtype)
    except ValueError as error:
        raise OptionError(f"rules: {pattern!r}: {name}: {error}") from error
    for attribute in ("weight", "bias", "running_mean"):
        new_tensor, old_tensor = getattr(new, attribute, None), getattr(old, attribute)
        if new_tensor is not None and old_tensor is not None:
            if new_tensor.shape != old_tensor.shape:
                shapes = f"shape {tuple(new_tensor.shape)} instead of {tuple(old_tensor.shape)}"
                raise OptionError(f"rules: {pattern!r}: the {attribute} for {name} has {shapes}")
            if isinstance(new_tensor, nn.Parameter):
                setattr(new, attribute, old_tensor)
    _check_dimensions(old, new, f"rules: {pattern!r}: {name}")
    # A layer of this room makes the best of variances, as it does with those of a checkpoint.
    statistics = dict(old.named_buffers(recurse=False))
    if "running_var" in statistics and "running_var" not in dict(new.named_buffers(recurse=False)):
        # With the new layer's eps as much as with the old one's before.
        variance = statistics["running_var"]
        statistics["running_var"] = variance.to(wide_dtype(variance.device)) + (old.eps - getattr(new, "eps", old.eps))
    new.load_state_dict(statistics, strict=False)
    new.train(old.training)
    parts = dict(old.named_children())
    for part, module in parts.items():
        new.add_module(part, module)
    if parts:
        new.register_forward_hook(partial(_run_parts, tuple(parts)))
    return new


def _check_dimensions(old: _BatchNorm, new: nn.Module, where: str) -> None:
    """A ``ZCANorm1d`` in place of a ``BatchNorm2d`` would only fail when the network runs."""
    of_new = getattr(new, "dimensions", None)
    of_old = next((ranks for kind, ranks in DIMENSIONS.items() if isinstance(old, kind)), of_new)
    if of_new is not None and of_old is not None and not set(of_old) <= set(of_new):
        new_ranks, old_ranks = (" or ".join(map(str, ranks)) for ranks in (of_new, of_old))
        raise OptionError(
            f"{where}: {type(new).__name__} takes {new_ranks} dimensions, {type(old).__name__} {old_ranks}"
        )


def _built(rule: Rule, old: _BatchNorm) -> nn.Module:
    if not isinstance(rule, Mapping):
        if not callable(rule):
            raise OptionError(f"must be dict(type=…) or a function from channels to a layer, got {rule!r}")
        new = rule(old.num_features)
        if not isinstance(new, nn.Module):
            raise OptionError(f"the function must return a layer, it returned {new!r}")
        return new
    options: dict[str, Any] = dict(rule)
    kind: Any = options.pop("type", None)
    if isinstance(kind, str):
        known = layer_types()
        name = kind.removeprefix(f"{__name__.split('.')[0]}.")  # as configs name it
        if name not in known:
            raise UnknownNameError("layer", kind, known)
        kind = known[name]
    if not isinstance(kind, type):
        raise OptionError(f"must have a type, the name of a layer or a class, got {rule!r}")
    allowed = dict(inspect.signature(kind).parameters)
    ours = issubclass(kind, WhiteningNorm)
    if ours:  # which pass on what all of them have
        allowed |= inspect.signature(WhiteningNorm).parameters
    passed_on = [name for name, option in allowed.items() if option.kind is option.VAR_KEYWORD]
    names = [name for name in allowed if name not in ("num_features", "device", "dtype", *passed_on)]
    if ours or not passed_on:
        check_known(kind.__name__, options, names)
    for option in {"affine", "track_running_stats"}.intersection(names):
        options.setdefault(option, getattr(old, option))
    return kind(old.num_features, **options)


def _run_parts(parts: tuple[str, ...], layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """A forward hook: what timm's ``BatchNormAct2d`` does after normalising."""
    for part in parts:
        output = layer.get_submodule(part)(output)
    return output
