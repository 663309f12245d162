"""Batch whitening layers: ZCA whitening and PCA denoising, wherever a batch normalisation stands."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from ..checks import check_choice, check_flag, check_integer, check_number
from ..errors import ExportError, OptionError, ShapeError
from ..linalg import Method
from ..linalg.tensors import apply, autocast_off, check_floating, working_dtype
from . import matrices
from .grouped import GroupedMap, GroupStatistics, like, mapped, synchronized_group, wide_dtype

Average = Literal["inverse_root", "covariance"]


class WhiteningNorm(_InstanceNorm):
    """What all layers of this module share: options, statistics, and a linear map of each group of channels.

    In training the map is computed from the covariance of the batch, and ``running_subspace`` follows; evaluation uses
    that. A batch whose statistics are not finite in a group leaves this group's running statistics as they are. A
    subclass says what the map is.

    Derived from PyTorch's instance normalisations, so that MMEngine sees a norm layer (``norm_decay_mult``), and not
    from its batch normalisations, which MMEngine and PyTorch turn into a ``SyncBatchNorm`` and fuse into convolutions.
    """

    _abbr_ = "bn"  # MMEngine names the layer's attribute so: keys are those of a batch normalisation
    _keeps_variance: ClassVar[bool] = False
    _eigenvectors_for: ClassVar[str] = ""  # what needs them, whatever the options
    dimensions: ClassVar[tuple[int, ...]] = ()
    running_mean: Tensor
    running_var: Tensor
    running_subspace: Tensor
    running_covariance: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        groups: int = 1,
        eps: float = 1e-4,
        momentum: float | None = 0.1,
        affine: bool = True,
        method: str | Method = "exact",
        energy: float = 1.0,
        average: Average = "inverse_root",
        sync: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_integer("num_features", num_features)
        check_integer("groups", groups)
        check_number("eps", eps, "(0, inf)")
        check_number("energy", energy, "(0, 1]")
        check_choice("average", average, get_args(Average))
        if momentum is not None:
            check_number("momentum", momentum, "[0, 1]")
        for option, flag in (("affine", affine), ("sync", sync), ("track_running_stats", track_running_stats)):
            check_flag(option, flag)
        if num_features % groups:
            raise OptionError(f"groups must divide num_features {num_features}, got {groups}")
        kind: dict[str, Any] = dict(momentum=momentum, device=device, dtype=dtype)
        super().__init__(num_features, eps, affine=affine, track_running_stats=track_running_stats, **kind)
        self.groups, self.method, self.energy, self.average, self.sync = groups, method, energy, average, sync
        needed = self._eigenvectors_for or "energy below one" * (energy < 1)
        self._chosen = matrices.resolve_whitening_method(method, needed)
        if not self._keeps_variance:
            del self.running_var
        shape = (groups, num_features // groups, num_features // groups)
        for name in ("running_subspace", *["running_covariance"] * (average == "covariance")):
            running = torch.empty(shape, device=device, dtype=dtype) if track_running_stats else None
            self.register_buffer(name, running)
        self.reset_running_stats()

    def reset_running_stats(self) -> None:
        """As new: no mean, variance one, the identity, no batches."""
        for name, running in self._buffers.items():
            if running is not None:
                running.fill_(name == "running_var")
                if running.ndim == 3:
                    running.diagonal(dim1=1, dim2=2).fill_(1)

    def forward(self, input: Tensor) -> Tensor:
        """Whiten (B, C, ...); the result has the shape, dtype and memory format of ``input``.

        Raises:
            ShapeError: for another number of dimensions or channels, and in training for a single sample per channel.
        """
        if isinstance(input, torch.fx.Proxy):  # a leaf for all that trace with torch.fx, quantisation among them
            name = input.tracer.path_of_module(self)  # type: ignore[attr-defined]
            if name:
                return input.tracer.create_proxy("call_module", name, (input,), {})  # type: ignore[return-value]
        self._check_input(input)
        by_batch = self.training or not self.track_running_stats
        if by_batch and (input.numel() or not self.track_running_stats or self._process_group()):
            return self._by_batch(input)
        return mapped(input, *self._running_map(), self.weight, self.bias)

    def __prepare_scriptable__(self) -> nn.Module:
        raise ExportError(f"torch.jit.script cannot take a {type(self).__name__}; use torch.jit.trace or torch.export")

    def _process_group(self) -> torch.distributed.ProcessGroup | None:
        return synchronized_group(self.sync and self.training)

    def _check_input(self, x: Tensor) -> None:
        name = type(self).__name__
        check_floating(x, f"the input of {name}")
        if x.ndim not in self.dimensions or x.shape[1] != self.num_features:
            ranks = " or ".join(map(str, self.dimensions))
            raise ShapeError(
                f"{name} takes {ranks} dimensions with {self.num_features} channels, got shape {tuple(x.shape)}"
            )
        if self.training and x.numel() == self.num_features and not self._process_group():
            raise ShapeError(f"{name} needs more than one sample per channel in training, got shape {tuple(x.shape)}")

    def _by_batch(self, x: Tensor) -> Tensor:
        features, mean, covariance, unbiased = apply(GroupStatistics, x, self.groups, self._process_group())
        with autocast_off(x.device.type):
            matrix, complete = self._matrices(covariance, unbiased)
            if self.training and self.track_running_stats:
                with torch.no_grad():
                    self._update(mean, covariance, matrix, unbiased)
        return apply(GroupedMap, features, complete, mean, self.weight, self.bias, like(x))

    def _matrices(self, covariance: Tensor, unbiased: Tensor | float) -> tuple[Tensor, Tensor]:
        """The ``running_subspace`` of covariances, which that factor makes unbiased, and the whole map, (G, d, d)."""
        raise NotImplementedError

    def _running_map(self) -> tuple[Tensor, Tensor]:
        """The whole map (G, d, d) and the mean (G, d, 1) of the running statistics."""
        wide = wide_dtype(self.running_mean.device)
        return self.running_subspace.to(wide), self.running_mean.to(wide).view(self.groups, -1, 1)

    def _update(self, mean: Tensor, covariance: Tensor, matrix: Tensor, unbiased: Tensor) -> None:
        """Move the running averages towards the batch: by ``momentum``, or as far as makes all batches count alike."""
        self.num_batches_tracked.add_(1)
        batch = dict(running_mean=mean, running_subspace=matrix)
        if self._keeps_variance:
            batch["running_var"] = covariance.diagonal(dim1=1, dim2=2) * unbiased
        if self.average == "covariance":
            batch["running_covariance"] = covariance * unbiased
        running = {name: getattr(self, name).view(self.groups, -1) for name in batch}
        moved = {}
        for name, value in running.items():
            count = self.num_batches_tracked.to(value.dtype)
            part: Any = count.reciprocal() if self.momentum is None else self.momentum
            moved[name] = value.lerp(batch[name].reshape(value.shape).to(value.dtype), part)
        if self.average == "covariance":
            average = moved["running_covariance"].view(covariance.shape).to(covariance.dtype)
            moved["running_subspace"] = self._matrices(average, 1.0)[0].to(moved["running_mean"].dtype).flatten(1)
        finite = torch.cat(list(moved.values()), dim=1).isfinite().all(dim=1, keepdim=True)
        for name, value in running.items():
            value.copy_(torch.where(finite, moved[name], value))

    @torch.no_grad()
    def whitening_error(self, x: Tensor) -> Tensor:
        """How far the covariance of the output is from the identity, without the affine map; the layer stays as it is.

        Uses the statistics that ``forward`` would, of this process alone.

        Args:
            x: features (B, C, ...).

        Returns:
            ‖Σ - I‖_F / ‖I‖_F for each group, shape (G,).
        """
        self._check_input(x)
        if self.training or not self.track_running_stats:
            _, mean, covariance, unbiased = apply(GroupStatistics, x, self.groups, None)
            with autocast_off(x.device.type):
                complete = self._matrices(covariance, unbiased)[1]
        else:
            complete, mean = self._running_map()
        y = mapped(x, complete, mean, None, None)
        _, _, covariance, _ = apply(GroupStatistics, y.to(mean.dtype), self.groups, None)
        covariance.diagonal(dim1=1, dim2=2).sub_(1)
        return torch.linalg.matrix_norm(covariance).div(covariance.shape[-1] ** 0.5).to(working_dtype(x.dtype))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Entries of a batch normalisation, or of a layer with the other ``average``, become this layer's."""
        names = ("running_var", "running_subspace", "running_covariance")
        variance, matrix, covariance = (state_dict.get(prefix + name) for name in names)
        if self.track_running_stats and (variance is None or variance.shape == (self.num_features,)):
            if variance is not None and matrix is None:
                variances = variance.view(self.groups, -1)
                matrix, covariance = self._matrix_of_variance(variances), torch.diag_embed(variances.clamp_min(0))
            elif matrix is not None and covariance is None and self.average == "covariance":
                try:
                    covariance = self._covariance(matrix, variance)
                except OptionError as error:
                    raise OptionError(f"{prefix}running_subspace: {error}") from None
            for name, value in zip(names, (variance, matrix, covariance), strict=True):
                state_dict.pop(prefix + name, None)
                if value is not None and name in self._buffers:
                    state_dict[prefix + name] = value
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _matrix_of_variance(self, variance: Tensor) -> Tensor:
        """``running_subspace`` with which the layer evaluates as the batch normalisation of variances (G, d)."""
        raise NotImplementedError

    def _covariance(self, matrix: Tensor, variance: Tensor | None) -> Tensor:
        """``running_covariance`` that belongs to the ``running_subspace`` of a checkpoint; raises if there is none."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The options, as in the call that makes the layer."""
        names = ["groups", "eps", "momentum", "affine", "method", *["energy"] * (self.energy < 1), "average", "sync"]
        names += ["track_running_stats", *["n_components"] * hasattr(self, "n_components")]
        options = [f"{name}={getattr(self, name)!r}" for name in names]
        return ", ".join([str(self.num_features), *options])


class ZCANorm(WhiteningNorm):
    """ZCA whitening: y = γ (Σ + eps I)^(-1/2) (x - μ) + β, with μ and Σ over batch and positions of each group.

    A batch normalisation that also removes the correlation of channels: the output of a group has the identity for a
    covariance. Of all whitening maps it is the one that changes the features least. Checkpoints of a batch
    normalisation (with the same ``eps``, 1e-5 there) and of the other ``average`` evaluate as they did, or are refused.

    Statistics are computed in float32 at least (matrices in float64), also under autocast. With fewer samples than
    channels, Σ is singular and the output has the identity on its range only. Of float32 features, eigenvalues of Σ
    below 1e-7 of the largest are rounding: ``eps`` should be above that. ``torch.func`` works in evaluation.

    Args:
        num_features: C.
        groups: into how many the channels are divided; the cost of the matrix grows with the cube of a group's size.
        eps: added to the diagonal of Σ.
        momentum: of the running averages, ``None`` for averages in which all batches count alike.
        affine: whether there are γ and β.
        method: how the inverse root and its gradient are computed, a name or an object of ``whitening.matrices``.
        energy: keep the leading eigenvectors of Σ until their eigenvalues have this share of the total; the output
            has no variance along the others.
        average: what evaluation uses. ``inverse_root`` is the running average of the whitening matrices, as published:
            where a batch has few samples for each channel of a group, it does not whiten. ``covariance`` is the
            matrix of the running average of the unbiased covariances, a second root in each step of training.
        sync: with several processes, use the statistics of their joined batch.
        track_running_stats: as of a batch normalisation.

    Raises:
        OptionError: for an option out of its range, or ``groups`` that do not divide the channels.
        UnknownNameError: for a method that there is not.

    Source: Huang et al., "Decorrelated Batch Normalization", CVPR 2018; Wang et al., "Backpropagation-Friendly
    Eigendecomposition", NeurIPS 2019.

    Examples:
        >>> layer = ZCANorm2d(16, groups=4)
        >>> x = torch.randn(8, 16, 5, 5)
        >>> layer(x).shape, bool((layer.whitening_error(x) < 1e-3).all())
        (torch.Size([8, 16, 5, 5]), True)
    """

    def _matrices(self, covariance: Tensor, unbiased: Tensor | float) -> tuple[Tensor, Tensor]:
        matrix = matrices.whitening_matrix(covariance, self._chosen, self.eps, self.energy)
        return matrix, matrix

    def _matrix_of_variance(self, variance: Tensor) -> Tensor:
        return torch.diag_embed((variance + self.eps).rsqrt())

    def _covariance(self, matrix: Tensor, variance: Tensor | None) -> Tensor:
        return matrices.whitened_covariance(matrix, self._chosen, self.eps, self.energy)


class PCANorm(WhiteningNorm):
    """PCA denoising: y = γ P x̂ + β, with x̂ the batch-normalised features and P a projector of each group.

    P projects on the leading eigenvectors of the covariance of x̂, that is of the channels' correlations. With all
    components, the default, and with a batch normalisation's checkpoint, P is the identity. Statistics and running
    averages (the mean and the unbiased variance of the channels, and P) are as in :class:`ZCANorm`.

    Args:
        num_features: C.
        n_components: how many eigenvectors of each group are kept; ``None`` for all.
        groups, momentum, affine, sync, track_running_stats, device, dtype: as of :class:`ZCANorm`.
        eps: added to the variances.
        method: how the eigenvectors and their gradients are computed: ``exact``, ``svdpi`` or ``power_iteration``.
        energy: keep eigenvectors only until their eigenvalues have this share of the total.
        average: of the projectors P (``inverse_root``), or of the covariances that a projector is made of.

    Raises:
        OptionError: for an option out of its range, ``groups`` that do not divide the channels, a method without
            eigenvectors.
        UnknownNameError: for a method that there is not.

    Source: Wang et al., "Backpropagation-Friendly Eigendecomposition", NeurIPS 2019, section 4.2.

    Examples:
        >>> layer = PCANorm2d(16, n_components=4)
        >>> y = layer(torch.randn(8, 16, 5, 5))
        >>> y.shape, int(torch.linalg.matrix_rank(y.transpose(0, 1).flatten(1)))
        (torch.Size([8, 16, 5, 5]), 4)
    """

    _keeps_variance = True
    _eigenvectors_for = "PCA"

    def __init__(self, num_features: int, n_components: int | None = None, groups: int = 1, **options: Any) -> None:
        super().__init__(num_features, groups, **options)
        if n_components is not None:
            check_integer("n_components", n_components)
            if n_components > num_features // groups:
                raise OptionError(f"n_components must be at most {num_features // groups}, got {n_components}")
        self.n_components = n_components

    def _matrices(self, covariance: Tensor, unbiased: Tensor | float) -> tuple[Tensor, Tensor]:
        assert isinstance(self._chosen, matrices.EigenvectorMethod)
        variance = covariance.diagonal(dim1=1, dim2=2)
        scale = (variance * unbiased if self._chosen.unbiased else variance).add(self.eps).rsqrt()
        if self.n_components is None and self.energy == 1:
            P = torch.eye(variance.shape[-1], dtype=scale.dtype, device=scale.device).expand_as(covariance)
        else:
            correlation = scale.unsqueeze(-1) * covariance * scale.unsqueeze(-2)
            P = matrices.projector(correlation, self._chosen, self.n_components, self.energy)
        return P, P * scale.unsqueeze(-2)

    def _running_map(self) -> tuple[Tensor, Tensor]:
        P, mean = super()._running_map()
        return P * (self.running_var.to(P.dtype) + self.eps).rsqrt().view(self.groups, 1, -1), mean

    def _matrix_of_variance(self, variance: Tensor) -> Tensor:
        return torch.diag_embed(torch.ones_like(variance))

    def _covariance(self, matrix: Tensor, variance: Tensor | None) -> Tensor:
        variances = self.running_var if variance is None else variance
        variances = variances.view(self.groups, -1)
        if not torch.equal(matrix, self._matrix_of_variance(variances)):
            raise matrices.no_covariance("projectors")
        return torch.diag_embed(variances)


class ZCANorm1d(ZCANorm):
    """:class:`ZCANorm` of (B, C) or (B, C, L)."""

    dimensions = (2, 3)


class ZCANorm2d(ZCANorm):
    """:class:`ZCANorm` of (B, C, H, W)."""

    dimensions = (4,)


class ZCANorm3d(ZCANorm):
    """:class:`ZCANorm` of (B, C, D, H, W)."""

    dimensions = (5,)


class PCANorm1d(PCANorm):
    """:class:`PCANorm` of (B, C) or (B, C, L)."""

    dimensions = (2, 3)


class PCANorm2d(PCANorm):
    """:class:`PCANorm` of (B, C, H, W)."""

    dimensions = (4,)


class PCANorm3d(PCANorm):
    """:class:`PCANorm` of (B, C, D, H, W)."""

    dimensions = (5,)
