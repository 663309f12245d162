"""One view of timm and MMPretrain classifiers: a private copy, and what explanations need to know of it."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..checks import check_choice
from ..errors import NotApplicableError, OptionError, UnknownNameError, one_line
from ..pooling import AveragePool, Pool
from .images import Preprocessing, first_channels, preprocessing_of
from .models import (
    classifier_inside,
    find_classifier,
    find_pool_site,
    input_format,
    is_multi_label,
    known_names,
    see_single_frames,
    use_exact_gradient,
)

Gradient = Literal["exact", "training"]
GRADIENTS: tuple[Gradient, ...] = get_args(Gradient)
Activation = Literal["softmax", "sigmoid"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

FORWARD_ERRORS = (RuntimeError, TypeError, AssertionError)  # what networks raise for an input of another size


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """What a model computes of a batch, as far as explanations of its head need it.

    Args:
        x: the input (B, C, H, W), as it was given.
        logits: class scores (B, num_classes).
        input: what the pool takes, in its layout.
        pooled: vectors (B, D) that the pool gives.
        vector: what the classifier takes.
        scores: what the classifier gives.
    """

    x: Tensor
    logits: Tensor
    input: Tensor | None = None
    pooled: Tensor | None = None
    vector: Tensor | None = None
    scores: Tensor | None = None

    @property
    def token(self) -> Tensor | None:
        """The class token (B, T) behind the pooled vectors in those that the classifier takes, if there is one."""
        if self.input is None or self.vector is None or self.pooled is None or self.input.ndim != 3:
            return None
        token = self.vector[:, self.pooled.shape[1] :]
        same_shape = token.shape == self.input[:, 0].shape
        return token if same_shape and torch.equal(token, self.input[:, 0].to(token.dtype)) else None


@dataclass(frozen=True)
class ModelView:
    """A classifier, ready to be explained; build it with :meth:`of`.

    Args:
        model: a copy of the caller's model in eval mode with frozen parameters, at least in float32.
        pool: the pool in front of the classifier, or ``None`` where there is none that we know.
        pool_site: the module of ``model`` whose input ``pool`` takes; the pool itself, except for average pooling.
        classifier: the linear layer of the class scores, or ``None`` where there is not exactly one.
        preprocessing: how pictures become inputs.
        stages: modules whose output is a map of the whole picture and is not changed in place later, by name, in
            the order in which they finish. The last is the map in front of the pool.
        num_classes: how many class scores there are.
        activation: what makes probabilities of the scores: ``softmax`` where one class of all is right, ``sigmoid``
            where each class is or is not.
        class_names: names of the classes, or none.

    Examples:
        >>> view = ModelView.of(covpool_plugins.create_model("test_resnet", num_classes=3, reduce_channels=8))
        >>> view.num_classes, view.pool.pool_type
        (3, 'svdpade')
    """

    model: nn.Module
    pool: Pool | None
    pool_site: nn.Module | None
    classifier: nn.Linear | None
    preprocessing: Preprocessing
    stages: dict[str, nn.Module]
    num_classes: int
    activation: Activation = "softmax"
    class_names: Sequence[str] = ()

    @classmethod
    @torch.inference_mode(False)
    def of(
        cls,
        model: nn.Module | ModelView,
        grad: Gradient = "exact",
        activation: Activation | None = None,
        class_names: Sequence[str] = (),
    ) -> ModelView:
        """View of a model; the model itself is neither changed nor kept.

        Args:
            model: a timm model, an MMPretrain ``ImageClassifier``, or a module alike; also compiled, averaged, in a
                wrapper for parallel training, or as the only classifier in a module that gives its scores. A view is
                returned as it is; it takes no other arguments.
            grad: ``exact`` explains with the true gradient of eigen-decomposition methods, ``training`` with
                the approximation the method trains with.
            activation: ``softmax`` or ``sigmoid``; the default is ``sigmoid`` for one class score and for MMPretrain's
                multi-label heads, else ``softmax``.
            class_names: names of the classes, for captions and targets; the default are those that timm's
                ``pretrained_cfg`` or MMPretrain's ``get_model`` know, if any.

        Raises:
            OptionError: for a view with other arguments, for a model without class scores or with other than one or
                three input channels, an unknown ``grad`` or ``activation``, ``softmax`` of one score, names that are no
                text or not as many as classes, or a module that does more than the classifier in it, or a model whose
                pool joins the frames of a clip.
        """
        names = () if class_names is None else tuple(class_names)
        if isinstance(class_names, str) or not all(isinstance(name, str) for name in names):
            raise OptionError(f"class_names must be a list of names, got {class_names!r}")
        if isinstance(model, ModelView):
            if grad != "exact" or activation is not None or names:
                raise OptionError(
                    "grad, activation and class_names belong to ModelView.of(model, ...): a view has its own"
                )
            return model
        check_choice("grad", grad, GRADIENTS)
        if activation is not None:
            check_choice("activation", activation, ACTIVATIONS)
        model = classifier_inside(model)
        preprocessing = preprocessing_of(model)
        private = copy.deepcopy(model).requires_grad_(False).eval()
        if next(private.parameters(), None) is None:
            raise OptionError(f"{type(private).__name__} has no weights, and so no class scores to explain")
        if next(private.parameters()).dtype in (torch.float16, torch.bfloat16):
            private.float()
        if grad == "exact":
            use_exact_gradient(private)
        see_single_frames(private)
        blank = preprocessing.blank(next(private.parameters()))
        classifier, site = find_classifier(private), find_pool_site(private)
        try:
            stages, maps, scores = trace_stages(private, blank, site)
        except FORWARD_ERRORS as error:
            # The pixels may be rearranged in front of the first convolution, so that trying tells.
            channels = first_channels(private)
            if channels not in (None, preprocessing.channels):
                message = f"only models of 1 or 3 input channels can be explained, this takes {channels}"
            else:
                message = does_not_take(private, blank, error)
            raise OptionError(message) from error
        if not isinstance(scores, Tensor) or scores.ndim != 2 or getattr(private, "num_classes", None) == 0:
            raise OptionError(f"{type(private).__name__} has no class scores to explain")
        classes = scores.shape[1]
        pool = site if isinstance(site, Pool) else None
        if maps is None:
            pool, site, stages = None, None, {}
        elif pool is None:
            layout = input_format(site)
            pool = AveragePool(maps.shape[1 if layout == "NCHW" else -1], input_fmt=layout)
        activation = activation or ("sigmoid" if classes == 1 or is_multi_label(private) else "softmax")
        if classes == 1 and activation == "softmax":
            raise OptionError("activation must be sigmoid for a model of one class score, got 'softmax'")
        names = names or known_names(private, classes)
        if names and len(names) != classes:
            raise OptionError(f"class_names has {len(names)} names, the model has {classes} classes")
        return cls(private, pool, site, classifier, preprocessing, stages, classes, activation, names)

    def class_number(self, target: Any, option: str = "target") -> int:
        """A class as a number from 0 on; it is given by that number, by one from -1 down, or by its name.

        Raises:
            OptionError: for a number that is no class of the model, a name where none are known, or one of several.
            UnknownNameError: for a name that none of the classes has.
        """
        if isinstance(target, str) and self.class_names:
            if target not in self.class_names:
                raise UnknownNameError("class", target, self.class_names)
            if self.class_names.count(target) > 1:
                numbers = ", ".join(str(n) for n, name in enumerate(self.class_names) if name == target)
                raise OptionError(f"{option} {target!r} is the name of the classes {numbers}; give a number")
            return self.class_names.index(target)
        try:
            number = self.num_classes if isinstance(target, (bool, str)) else operator.index(target)
        except TypeError:
            number = self.num_classes
        if not -self.num_classes <= number < self.num_classes:
            named = "; names need class_names" if isinstance(target, str) else ""
            raise OptionError(f"{option} must be a class from 0 to {self.num_classes - 1}, got {target!r}{named}")
        return number % self.num_classes

    def known_classifier(self) -> nn.Linear:
        """The linear layer of the class scores.

        Raises:
            NotApplicableError: if there is not exactly one.
        """
        if self.classifier is None:
            raise NotApplicableError("the model has no single linear layer of class scores")
        return self.classifier

    def known_pool(self) -> Pool:
        """The pool.

        Raises:
            NotApplicableError: if there is none that we know, so that neither map nor layout of the model is known.
        """
        if self.pool is None:
            raise NotApplicableError("the model has neither a pool of this package nor one global average of a map")
        return self.pool

    @cached_property
    def float64_pool(self) -> Pool:
        """The pool in float64."""
        return copy.deepcopy(self.known_pool()).double()

    @property
    def shallow_stages(self) -> list[str]:
        """Stages that a user would name: those no more than one level below the last."""
        deepest = list(self.stages)[-1].count(".") + 1 if self.stages else 0
        return [name for name in self.stages if name.count(".") <= deepest]

    def stage(self, name: str) -> nn.Module:
        """A stage by name.

        Raises:
            UnknownNameError: if the model has none of that name.
            NotApplicableError: if it has none at all, see :meth:`known_pool`.
        """
        self.known_pool()
        if name not in self.stages:
            raise UnknownNameError("layer", name, self.shallow_stages)
        return self.stages[name]

    def to_model(self, x: Tensor) -> Tensor:
        """An input in the device and dtype of the model."""
        return x.detach().to(next(self.model.parameters()))

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Class scores (B, num_classes)."""
        return self.model(self.to_model(x))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (B, num_classes) of class scores, in float64."""
        return logits.double().softmax(dim=-1) if self.activation == "softmax" else logits.double().sigmoid()

    def first_pass(self, x: Tensor) -> ForwardPass:
        """:meth:`forward_pass` of an input of the caller's.

        Raises:
            OptionError: for an input that the model does not take.
        """
        try:
            return self.forward_pass(x)
        except FORWARD_ERRORS as error:
            raise OptionError(does_not_take(self.model, x, error)) from error

    def forward_pass(self, x: Tensor) -> ForwardPass:
        """One run of the model; with the gradients of inputs that have one."""
        tensors: dict[str, Tensor] = {}

        def at_classifier(module: nn.Module, args: Any, output: Tensor) -> None:
            tensors.update(vector=args[0], scores=output)

        def at_pool(module: nn.Module, args: Any, output: Tensor) -> None:
            tensors.update(input=args[0], pooled=output.flatten(1))

        with ExitStack() as hooks:
            for module, hook in ((self.classifier, at_classifier), (self.pool_site, at_pool)):
                if module is not None:
                    hooks.enter_context(module.register_forward_hook(hook))
            return ForwardPass(x, self.model(x.to(next(self.model.parameters()))), **tensors)

    @torch.no_grad()
    def features(self, passed: ForwardPass) -> tuple[Tensor, tuple[int, int]]:
        """What the pool represents: features (B, C, M), and their grid (H, W) with H W = M.

        Raises:
            NotApplicableError: for a model without a pool that we know.
        """
        pool = self.known_pool()
        assert passed.input is not None
        height, width = self.as_maps(passed.input, passed.x).shape[2:]
        return pool.features(passed.input), (height, width)

    def as_maps(self, output: Tensor, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) of what a stage gives for an input x (B, 3, height, width).

        Raises:
            NotApplicableError: for a model without a pool that we know, or tokens that are no grid.
        """
        pool = self.known_pool()
        if pool.input_fmt != "NLC":
            return output.permute(0, 3, 1, 2) if pool.input_fmt == "NHWC" else output
        tokens = output[:, pool.num_prefix_tokens :].mT
        return tokens.unflatten(-1, token_grid(tokens.shape[-1], *x.shape[-2:]))

    def against(self, other: int) -> ModelView:
        """A view of the model with the score of class ``other`` taken off all class scores.

        Raises:
            NotApplicableError: for a model without one linear layer of class scores.
        """
        self.known_classifier()
        view = disposable(self)
        for name, parameter in list(view.known_classifier().named_parameters()):
            setattr(view.classifier, name, nn.Parameter(parameter - parameter[other], requires_grad=False))
        return view


def does_not_take(model: nn.Module, x: Tensor, error: Exception) -> str:
    """What to say when a model raises an error for an input."""
    return f"{type(model).__name__} does not take an input {tuple(x.shape)}: {one_line(error)}"


def disposable(view: ModelView) -> ModelView:
    """A view whose modules are copies that hold the same weights: what is changed in them stays in the copy."""
    shared = [*view.model.parameters(), *view.model.buffers(), view.preprocessing]
    return replace(copy.deepcopy(view, {id(kept): kept for kept in shared}))  # without what is cached


def token_grid(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tokens that cover an image of the given size in square patches.

    Raises:
        NotApplicableError: if no whole numbers of rows and columns do.
    """
    rows = round((tokens * height / width) ** 0.5)
    if rows == 0 or tokens % rows or abs(tokens // rows * height - rows * width) >= max(height, width):
        raise NotApplicableError(f"{tokens} tokens are not a grid over an image of {height}x{width}")
    return rows, tokens // rows


@torch.no_grad()
def trace_stages(
    model: nn.Module, x: Tensor, site: nn.Module | None
) -> tuple[dict[str, nn.Module], Tensor | None, Any]:
    """Modules whose output is a map that stays as it is, by name, in the order in which they finish.

    A probe makes the output a leaf of the graph, which no in-place operation may change: batch norm before an
    in-place ReLU, or the last layer of a branch before ``x += shortcut``, cannot be probed. The version counter of
    a tensor tells.

    Args:
        model: the model, in eval mode.
        x: an input (1, C, H, W); its values do not matter.
        site: the module where the maps end, if it is known.

    Returns:
        The modules, the input of ``site`` or ``None`` if the model does not call it as a module, and what the model
        gives.
    """
    seen: dict[str, tuple[nn.Module, Tensor, int]] = {}
    ended: list[Tensor] = []
    layout = input_format(site)

    def passed_on(name: str, output: Tensor) -> bool:
        """Whether the module only hands on what another one, not inside it, has made: an identity, say."""
        return any(
            made is output and version == output._version and not other.startswith(f"{name}.")
            for other, (_, made, version) in seen.items()
        )

    def remember(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if ended or not isinstance(output, Tensor) or output.ndim != len(layout) or passed_on(name, output):
            return
        positions = output.shape[2:] if layout == "NCHW" else output.shape[1:-1]
        if positions.numel() > 1:
            seen.pop(name, None)
            seen[name] = (module, output, output._version)

    with ExitStack() as hooks:
        if site is not None:
            hooks.enter_context(site.register_forward_pre_hook(lambda _, args: ended.append(args[0])))
            for name, module in model.named_modules():
                hooks.enter_context(module.register_forward_hook(partial(remember, name)))
        scores = model(x)
    kept = {name: module for name, (module, output, version) in seen.items() if output._version == version}
    return kept, ended[-1] if ended else None, scores
