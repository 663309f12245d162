"""Batch whitening layers: ZCA whitening and PCA denoising, wherever a batch normalisation stands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from ..checks import check_flag, check_integer, check_number
from ..errors import OptionError, ShapeError
from ..linalg import Method
from ..linalg.tensors import autocast_off, check_floating, working_dtype
from .grouped import AffineMap, GroupedMap, GroupStatistics, like, synchronized_group, to_groups, wide_dtype
from .matrices import EigenvectorMethod, projector, resolve_whitening_method, whitening_matrix


class WhiteningNorm(_NormBase):
    """What all layers of this module share: options, statistics, and a linear map of each group of channels.

    In training the map is computed from the covariance of the batch, and its running average kept in
    ``running_subspace``; in evaluation the averages are used. A subclass says what the map is.

    Derived from the base of PyTorch's batch normalisations and not from their common class, which MMEngine and PyTorch
    turn into a ``SyncBatchNorm`` and fuse into convolutions.
    """

    _abbr_ = "bn"  # MMEngine names the layer's attribute so: keys are those of a batch normalisation
    dimensions: tuple[int, ...] = ()
    running_subspace: Tensor

    def __init__(
        self,
        num_features: int,
        groups: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        method: str | Method,
        energy: float,
        sync: bool,
        track_running_stats: bool,
        device: Any,
        dtype: Any,
    ) -> None:
        check_integer("num_features", num_features)
        check_integer("groups", groups)
        check_number("eps", eps, "(0, inf)")
        check_number("energy", energy, "(0, 1]")
        if momentum is not None:
            check_number("momentum", momentum, "[0, 1]")
        for option, flag in (("affine", affine), ("sync", sync), ("track_running_stats", track_running_stats)):
            check_flag(option, flag)
        if num_features % groups:
            raise OptionError(f"groups must divide num_features {num_features}, got {groups}")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.groups, self.method, self.energy, self.sync = groups, method, energy, sync
        self._chosen = resolve_whitening_method(method, self._needs_eigenvectors())
        d = num_features // groups
        eye = torch.eye(d, device=device, dtype=dtype).repeat(groups, 1, 1) if track_running_stats else None
        self.register_buffer("running_subspace", eye)

    def _needs_eigenvectors(self) -> str:
        return "energy below one" if self.energy < 1 else ""

    def reset_running_stats(self) -> None:
        """As new: no mean, variance one, the identity, no batches."""
        if not self.track_running_stats:
            return
        for running in (self.running_mean, self.num_batches_tracked):
            running.zero_()  # type: ignore[union-attr]
        if self._buffers.get("running_var") is not None:
            self.running_var.fill_(1)  # type: ignore[union-attr]
        if "running_subspace" in self._buffers:  # not yet while the base class is being made
            self.running_subspace.copy_(torch.eye(self.running_subspace.shape[-1]))

    def forward(self, input: Tensor) -> Tensor:
        """Whiten (B, C, ...); the result has the shape, dtype and memory format of ``input``.

        Raises:
            ShapeError: for another number of dimensions or channels, and in training for a single sample per channel.
        """
        self._check_input(input)
        use_batch = self.training or not self.track_running_stats
        if use_batch and not (input.numel() == 0 and self.track_running_stats and not self._process_group()):
            return self._by_batch(input)
        return self._by_running_statistics(input)

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
        features, mean, covariance, count = GroupStatistics.apply(x, self.groups, self._process_group())
        with autocast_off(x.device.type):
            matrix = self._matrix(covariance, count)
            if self.training and self.track_running_stats:
                with torch.no_grad():
                    self._update(mean, covariance, matrix, count)
            A, b = AffineMap.apply(
                self._complete(matrix, covariance, count), mean, self.weight, self.bias, features.dtype
            )
        return GroupedMap.apply(features, A, b, like(x))

    def _by_running_statistics(self, x: Tensor) -> Tensor:
        with autocast_off(x.device.type):
            wide, dtype = wide_dtype(x.device), working_dtype(x.dtype)
            mean = self.running_mean.to(wide).view(self.groups, -1, 1)  # type: ignore[union-attr]
            A, b = AffineMap.apply(self._running_map().to(wide), mean, self.weight, self.bias, dtype)
            return GroupedMap.apply(to_groups(x, self.groups, dtype), A, b, like(x))

    def _update(self, mean: Tensor, covariance: Tensor, matrix: Tensor, count: Tensor) -> None:
        """Move the running averages towards the batch: by ``momentum``, or as far as makes all batches count alike."""
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        for running, batch in self._averages(mean, covariance, matrix, count):
            batch = batch.view(running.shape).to(running.dtype)
            if self.momentum is None:
                running.lerp_(batch, self.num_batches_tracked.to(running.dtype).reciprocal())  # type: ignore[union-attr]
            else:
                running.lerp_(batch, self.momentum)

    def _averages(self, mean: Tensor, covariance: Tensor, matrix: Tensor, count: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(self.running_mean, mean), (self.running_subspace, matrix)]  # type: ignore[list-item]

    def _matrix(self, covariance: Tensor, count: Tensor) -> Tensor:
        """The matrix (G, d, d) whose running average is kept."""
        raise NotImplementedError

    def _complete(self, matrix: Tensor, covariance: Tensor, count: Tensor) -> Tensor:
        """The map of the features, given that matrix and the covariance of the batch."""
        return matrix

    def _running_map(self) -> Tensor:
        """The same from the running averages."""
        return self.running_subspace

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
        _, _, covariance, count = GroupStatistics.apply(x, self.groups, None)
        with autocast_off(x.device.type):
            if self.training or not self.track_running_stats:
                A = self._complete(self._matrix(covariance, count), covariance, count)
            else:
                A = self._running_map().to(covariance.dtype)
            eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
            deviation = A @ covariance @ A.transpose(1, 2) - eye
            return torch.linalg.matrix_norm(deviation).div(A.shape[-1] ** 0.5).to(working_dtype(x.dtype))

    def extra_repr(self) -> str:
        """The options, as in the call that makes the layer."""
        options = [f"groups={self.groups}", f"eps={self.eps}", f"momentum={self.momentum}", f"affine={self.affine}"]
        options += [f"method={self.method!r}"] + ([f"energy={self.energy}"] if self.energy < 1 else [])
        options += [f"sync={self.sync}", f"track_running_stats={self.track_running_stats}"]
        return ", ".join([str(self.num_features), *options])


class ZCANorm(WhiteningNorm):
    """ZCA whitening: y = γ (Σ + eps I)^(-1/2) (x - μ) + β, with μ and Σ over batch and positions of each group.

    A batch normalisation that also removes the correlation of channels: the output of a group has the identity for a
    covariance. Of all whitening maps it is the one that changes the features least.

    Statistics are computed in float32 at least (matrices in float64), also under autocast. With fewer samples than
    channels, Σ is singular and the output has the identity on its range only. The running average is that of the
    whitening matrix, as published: where a batch has few samples for each channel of a group, the matrices of the
    batches differ so much that their average does not whiten; take smaller groups or a larger ``eps`` there.

    A batch normalisation's checkpoint loads: its variances become the diagonal whitening matrix, which with the same
    ``eps`` (1e-5 by default there) evaluates as the batch normalisation did. Not for ``torch.func`` transforms.

    Args:
        num_features: C.
        groups: into how many the channels are divided; the cost of the matrix grows with the cube of a group's size.
        eps: added to the diagonal of Σ.
        momentum: of the running averages, ``None`` for averages in which all batches count alike.
        affine: whether there are γ and β.
        method: how the inverse root and its gradient are computed, a name or an object of ``whitening.matrices``.
        energy: keep the leading eigenvectors of Σ until their eigenvalues have this share of the total; the output
            has no variance along the others.
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

    def __init__(
        self,
        num_features: int,
        groups: int = 1,
        eps: float = 1e-4,
        momentum: float | None = 0.1,
        affine: bool = True,
        method: str | Method = "exact",
        energy: float = 1.0,
        sync: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            num_features, groups, eps, momentum, affine, method, energy, sync, track_running_stats, device, dtype
        )
        del self.running_var

    def _matrix(self, covariance: Tensor, count: Tensor) -> Tensor:
        return whitening_matrix(covariance, self._chosen, self.eps, self.energy)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        variance = state_dict.pop(prefix + "running_var", None)
        if variance is not None and prefix + "running_subspace" not in state_dict and self.track_running_stats:
            diagonal = (variance + self.eps).rsqrt().view(self.groups, -1)
            state_dict[prefix + "running_subspace"] = torch.diag_embed(diagonal)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class PCANorm(WhiteningNorm):
    """PCA denoising: y = γ P x̂ + β, with x̂ the batch-normalised features and P a projector of each group.

    P projects on the leading eigenvectors of the covariance of x̂, that is of the channels' correlations. With all
    components, the default, P is the identity and the layer a batch normalisation.

    Statistics and running averages (the mean and the unbiased variance of the channels, and P) are as in
    :class:`ZCANorm`. A batch normalisation's checkpoint has all but ``running_subspace``, which is then the identity.

    Args:
        num_features: C.
        n_components: how many eigenvectors of each group are kept; ``None`` for all.
        groups: into how many the channels are divided.
        eps: added to the variances.
        momentum: of the running averages, ``None`` for averages in which all batches count alike.
        affine: whether there are γ and β.
        method: how the eigenvectors and their gradients are computed: ``exact``, ``svdpi`` or ``power_iteration``.
        energy: keep eigenvectors only until their eigenvalues have this share of the total.
        sync: with several processes, use the statistics of their joined batch.
        track_running_stats: as of a batch normalisation.

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

    def __init__(
        self,
        num_features: int,
        n_components: int | None = None,
        groups: int = 1,
        eps: float = 1e-4,
        momentum: float | None = 0.1,
        affine: bool = True,
        method: str | Method = "exact",
        energy: float = 1.0,
        sync: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            num_features, groups, eps, momentum, affine, method, energy, sync, track_running_stats, device, dtype
        )
        if n_components is not None:
            check_integer("n_components", n_components)
            if n_components > num_features // groups:
                raise OptionError(f"n_components must be at most {num_features // groups}, got {n_components}")
        self.n_components = n_components

    def _needs_eigenvectors(self) -> str:
        return "PCA"

    def _scale(self, covariance: Tensor, count: Tensor) -> Tensor:
        """One over what divides the channels, shape (G, d)."""
        variance = covariance.diagonal(dim1=1, dim2=2)
        assert isinstance(self._chosen, EigenvectorMethod)
        if self._chosen.unbiased:
            variance = variance * _unbiased(count)
        return (variance + self.eps).rsqrt()

    def _matrix(self, covariance: Tensor, count: Tensor) -> Tensor:
        if self.n_components is None and self.energy == 1:
            return torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device).expand_as(
                covariance
            )
        scale = self._scale(covariance, count)
        correlation = scale.unsqueeze(-1) * covariance * scale.unsqueeze(-2)
        return projector(correlation, self._chosen, self.n_components, self.energy)

    def _complete(self, matrix: Tensor, covariance: Tensor, count: Tensor) -> Tensor:
        return matrix * self._scale(covariance, count).unsqueeze(-2)

    def _running_map(self) -> Tensor:
        variance = self.running_var.to(wide_dtype(self.running_var.device))  # type: ignore[union-attr]
        scale = (variance + self.eps).rsqrt().view(self.groups, 1, -1)
        return self.running_subspace.to(scale.dtype) * scale

    def _averages(self, mean: Tensor, covariance: Tensor, matrix: Tensor, count: Tensor) -> list[tuple[Tensor, Tensor]]:
        unbiased = covariance.diagonal(dim1=1, dim2=2) * _unbiased(count)
        return [*super()._averages(mean, covariance, matrix, count), (self.running_var, unbiased)]  # type: ignore[list-item]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if prefix + "running_var" in state_dict and self.track_running_stats:
            eye = torch.eye(self.running_subspace.shape[-1]).expand_as(self.running_subspace)
            state_dict.setdefault(prefix + "running_subspace", eye)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """The options, as in the call that makes the layer."""
        return f"{super().extra_repr()}, n_components={self.n_components}"


def _unbiased(count: Tensor) -> Tensor:
    """The factor that makes a variance unbiased; one for a single sample."""
    return count / (count - 1).clamp_min(1)


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
