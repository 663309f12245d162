"""Which modules of a model can be probed for a feature map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def trace_stages(
    model: nn.Module, x: Tensor, site: nn.Module, input_fmt: str
) -> tuple[dict[str, nn.Module], Tensor | None]:
    """Modules whose output is a map that stays as it is, by name, in the order in which they finish.

    A probe makes the output a leaf of the graph, which no in-place operation may change: batch norm before an
    in-place ReLU, or the last layer of a branch before ``x += shortcut``, cannot be probed. The version counter of
    a tensor tells.

    Args:
        model: the model, in eval mode.
        x: an input (1, 3, H, W); its values do not matter.
        site: the module where the maps end.
        input_fmt: layout of the maps: ``NCHW``, ``NHWC`` or ``NLC``.

    Returns:
        The modules, and the input of ``site`` or ``None`` if the model does not call it as a module.
    """
    seen: dict[str, tuple[nn.Module, Tensor, int]] = {}
    ended: list[Tensor] = []

    def remember(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not ended and isinstance(output, Tensor) and _is_map(output, input_fmt) and not passed_on(name, output):
                seen.pop(name, None)
                seen[name] = (module, output, output._version)

        return hook

    def passed_on(name: str, output: Tensor) -> bool:
        """Whether the module only hands on what another one, not inside it, has made: an identity, say."""
        return any(
            made is output and version == output._version and not other.startswith(f"{name}.")
            for other, (_, made, version) in seen.items()
        )

    handles = [m.register_forward_hook(remember(name)) for name, m in model.named_modules() if name]
    handles.append(site.register_forward_pre_hook(lambda _, args: ended.append(args[0])))
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    kept = {name: module for name, (module, output, version) in seen.items() if output._version == version}
    return kept, ended[-1] if ended else None


def _is_map(output: Tensor, input_fmt: str) -> bool:
    if output.ndim != len(input_fmt):
        return False
    positions = output.shape[2:] if input_fmt == "NCHW" else output.shape[1:-1]
    return positions.numel() > 1
