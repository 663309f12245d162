"""Style transfer by second-order statistics: whiten the content, colour it with the style."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_integer, check_number
from ..errors import OptionError, ShapeError, UnknownNameError
from ..linalg import Method, covariance, inv_sqrtm, list_methods, resolve_method, sqrtm
from ..linalg.covariance import zero_where_constant
from ..linalg.methods.base import is_method
from ..linalg.tensors import check_floating, product, working_dtype
from .grouped import wide_dtype


def whitening_coloring(
    content: Tensor,
    style: Tensor,
    alpha: float | Tensor = 1.0,
    method: str | Method = "exact",
    groups: int = 1,
    eps: float = 0.0,
) -> Tensor:
    """Content features with the means and the covariances of the style features.

    For each image and each group of channels, with content X and style Y at as many positions as they have,

        Z = (Σ_Y)^½ (Σ_X + eps I)^-½ (X - mean(X)) + mean(Y),      result = alpha Z + (1 - alpha) X.

    Each covariance is divided by its own number of positions, so that the statistics of Z are the style's whatever the
    two sizes are; the released code of ICLR 2022 divides both by that of the content. All is computed in float64:
    whitening multiplies the smallest deviations of the content by the most.

    Directions in which the content does not vary stay constant: constant content, or content at one position, takes
    the mean of the style. A constant style, or a style at one position, gives its mean everywhere.

    Args:
        content: features (B, C, H, W).
        style: features (B, C, H', W'), or (1, C, H', W') for one style of all images.
        alpha: how much of the style, in [0, 1]; or a learned tensor, with one number or with one for each image.
        method: name or object of the method of the two roots, of ``list_methods('sqrtm')`` or
            ``list_methods('inv_sqrtm')``. A root by eigen-decomposition without an inverse of its own
            (``svdtaylor``) goes with the exact inverse; an iteration is used for both.
        groups: the channels are split into so many groups, and correlations between these are left alone.
        eps: added to the diagonal of the content's covariance. The iterative methods need it for content whose
            covariance is singular; 1e-5 in the released code.

    Returns:
        Features (B, C, H, W) in the dtype of ``content``; gradients go to ``content``, ``style`` and ``alpha``.

    Raises:
        ShapeError, DtypeError: unless both are floating point feature maps of as many images and channels.
        UnknownNameError, OptionError: for a method that does not exist, or an option out of its range.

    Sources: Li et al., "Universal Style Transfer via Feature Transforms", NeurIPS 2017; Cho et al., "Image-to-Image
    Translation via Group-wise Deep Whitening-and-Coloring Transformation", CVPR 2019 (groups); Song, Sebe & Wang,
    "Fast Differentiable Matrix Square Root", ICLR 2022 (gradients by ``mpa`` and ``mtp``).

    Examples:
        >>> content, style = torch.randn(2, 4, 9, 9), 3 + 2 * torch.randn(1, 4, 12, 12)
        >>> Z = whitening_coloring(content, style)
        >>> torch.allclose(Z.mean((2, 3)), style.mean((2, 3)).expand(2, 4), atol=1e-4)
        True
    """
    _check_maps(content, style)
    check_integer("groups", groups)
    check_number("eps", eps, "[0, inf)")
    channels = content.shape[1]
    if channels % groups:
        raise OptionError(f"groups must divide the {channels} channels, got {groups}")
    root, inverse = both_roots(method)
    dtype = wide_dtype(content.device)
    share = _share_of_style(alpha, content, dtype)

    X, Y = _grouped(content.to(dtype), groups), _grouped(style.to(dtype), groups)
    content_mean, style_mean = X.mean(-1, keepdim=True), Y.mean(-1, keepdim=True)
    # What is constant up to the rounding of its own precision is constant.
    of_content = zero_where_constant(covariance(X), content_mean.to(working_dtype(content.dtype)))
    of_style = zero_where_constant(covariance(Y), style_mean.to(working_dtype(style.dtype)))
    S, W = sqrtm(of_style, root), inv_sqrtm(of_content, inverse, eps=eps)
    transfer = product(S.expand_as(W), W)
    # The blend costs nothing on the matrices and the means.
    blended = share * transfer + (1 - share) * torch.eye(transfer.shape[-1], dtype=dtype, device=transfer.device)
    mean = share * style_mean + (1 - share) * content_mean
    return (product(blended, X - content_mean) + mean).view(content.shape).to(content.dtype)


def both_roots(method: str | Method) -> tuple[Method, Method]:
    """The methods of the root and of the inverse root that one name, or one object, stands for."""
    functions = ("sqrtm", "inv_sqrtm")
    if isinstance(method, str):
        known = {function: list_methods(function) for function in functions}
        chosen = [resolve_method(method, function) for function, names in known.items() if method in names]
        if not chosen:
            raise UnknownNameError("method", method, {*known["sqrtm"], *known["inv_sqrtm"]})
    else:
        chosen = [method]
    root, inverse = chosen * (3 - len(chosen))
    # The exact one instead of eigenvalues of the other function.
    only_inverse = is_method(root, "inv_sqrtm") and not is_method(root, "sqrtm")
    only_root = is_method(inverse, "sqrtm") and not is_method(inverse, "inv_sqrtm")
    return (
        resolve_method("exact" if only_inverse else root, "sqrtm"),
        resolve_method("exact" if only_root else inverse, "inv_sqrtm"),
    )


def _grouped(maps: Tensor, groups: int) -> Tensor:
    """(B, C, H, W) as (B, groups, C / groups, H W)."""
    X = maps.flatten(2)
    # Not by unflatten, whose sizes are constants to the older ONNX exporter.
    return X.view(X.shape[0], groups, X.shape[1] // groups, X.shape[2])


def _check_maps(content: Tensor, style: Tensor) -> None:
    for name, maps in (("content", content), ("style", style)):
        check_floating(maps, name)
        if maps.ndim != 4 or 0 in maps.shape[1:]:
            raise ShapeError(f"{name} must be features (B, C, H, W), got shape {tuple(maps.shape)}")
    if style.shape[1] != content.shape[1] or style.shape[0] not in (1, content.shape[0]):
        raise ShapeError(
            f"style must have the {content.shape[1]} channels of the content, and one image or {content.shape[0]}, "
            f"got shape {tuple(style.shape)}"
        )


def _share_of_style(alpha: float | Tensor, content: Tensor, dtype: torch.dtype) -> Tensor | float:
    if not isinstance(alpha, Tensor):
        check_number("alpha", alpha, "[0, 1]")
        return alpha
    if alpha.ndim > 1 or alpha.numel() not in (1, len(content)):
        raise ShapeError(f"alpha must be one number or one for each of {len(content)}, got shape {tuple(alpha.shape)}")
    return alpha.to(dtype).reshape(-1, 1, 1, 1)
