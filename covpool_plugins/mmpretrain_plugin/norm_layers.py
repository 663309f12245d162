"""Register the layers of ``covpool_plugins.whitening`` as normalisation layers, in MMEngine's root registry.

``norm_cfg=dict(type='ZCANorm2d', groups=8)`` then works with all backbones that take a ``norm_cfg``; the name
``covpool_plugins.ZCANorm2d`` works without an import. MMEngine sets ``eps`` to 1e-5 where the config does not.

To MMEngine whitening layers are norm layers (``norm_decay_mult``) and no batch norms: ``sync_bn``, ``fuse_conv_bn``
and ``efficient_conv_bn_eval`` skip them (they synchronise their statistics themselves), and ``norm_eval`` and
``PreciseBNHook`` do not apply to them.
"""

from __future__ import annotations

from mmengine.registry import MODELS

from ..whitening import PCANorm1d, PCANorm2d, PCANorm3d, ZCANorm1d, ZCANorm2d, ZCANorm3d

__all__ = ["PCANorm1d", "PCANorm2d", "PCANorm3d", "ZCANorm1d", "ZCANorm2d", "ZCANorm3d"]

for layer in (PCANorm1d, PCANorm2d, PCANorm3d, ZCANorm1d, ZCANorm2d, ZCANorm3d):
    MODELS.register_module(module=layer)
