"""The layers of ``covpool_plugins.whitening`` where MMEngine looks for normalisation layers.

That is the root registry: ``build_norm_layer`` looks there if there is no default scope, and all others do in the end.
``norm_cfg=dict(type='ZCANorm2d', groups=8)`` then works with all backbones that take a ``norm_cfg``, and with the
name ``covpool_plugins.ZCANorm2d`` nothing has to be imported. MMEngine sets ``eps`` to 1e-5 where the config does not.

Whitening layers are no batch norms to MMEngine: ``sync_bn`` and ``fuse_conv_bn`` leave them alone (they synchronise
their statistics themselves), and ``norm_eval``, ``norm_decay_mult`` and ``PreciseBNHook`` do not apply to them.
"""

from __future__ import annotations

from mmengine.registry import MODELS

from ..whitening import PCANorm1d, PCANorm2d, PCANorm3d, ZCANorm1d, ZCANorm2d, ZCANorm3d

__all__ = ["PCANorm1d", "PCANorm2d", "PCANorm3d", "ZCANorm1d", "ZCANorm2d", "ZCANorm3d"]

for layer in (PCANorm1d, PCANorm2d, PCANorm3d, ZCANorm1d, ZCANorm2d, ZCANorm3d):
    MODELS.register_module(module=layer)
