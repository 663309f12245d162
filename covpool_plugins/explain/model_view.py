"""One view of timm and MMPretrain classifiers: a private copy, and what explanations need to know of it."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..checks import check_choice
from ..errors import NotApplicableError, OptionError, UnknownNameError
from ..linalg import EigenMethod, Exact
from ..pooling import AveragePool, Pool
from ..pooling.base import InputFormat
from .images import Preprocessing, preprocessing_of
from .stages import trace_stages
from .wrappers import classifier_inside, is_multi_label, known_names

Gradient = Literal["exact", "training"]
GRADIENTS: tuple[Gradient, ...] = ("exact", "training")
Activation = Literal["softmax", "sigmoid"]
ACTIVATIONS: tuple[Activation, ...] = ("softmax", "sigmoid")


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
                returned as it is.
            grad: ``exact`` explains with the true gradient of eigen-decomposition methods, ``training`` with
                the approximation the method trains with.
            activation: ``softmax`` or ``sigmoid``; the default is ``sigmoid`` for one class score and for MMPretrain's
                multi-label heads, else ``softmax``.
            class_names: names of the classes, for captions and targets; the default are those that timm's
                ``pretrained_cfg`` or MMPretrain's ``get_model`` know, if any.

        Raises:
            OptionError: for a model without class scores or with other than one or three input channels, an unknown
                ``grad`` or ``activation``, ``softmax`` of one score, another number of names than classes, or a module
                that does more than the classifier in it, or a model whose pool joins the frames of a clip.
        """
        if isinstance(model, ModelView):
            return model
        check_choice("grad", grad, GRADIENTS)
        if activation is not None:
            check_choice("activation", activation, ACTIVATIONS)
        model = classifier_inside(model)
        preprocessing = preprocessing_of(model)
        private = copy.deepcopy(model).requires_grad_(False).eval()
        if next(private.parameters()).dtype in (torch.float16, torch.bfloat16):
            private.float()
        if grad == "exact":
            _use_exact_gradient(private)
        _see_single_frames(private)
        classifier, site = _find_classifier(private), _find_pool_site(private)
        shape = (1, preprocessing.channels, *preprocessing.input_size)
        blank = torch.zeros(shape).to(next(private.parameters()))
        _check_first_layer(private, blank)
        classes = _count_classes(private, blank) if classifier is None else classifier.out_features
        input_fmt = "NCHW" if site is None else _input_fmt(site)
        stages, maps = ({}, None) if site is None else trace_stages(private, blank, site, input_fmt)
        pool = site if isinstance(site, Pool) else None
        if maps is None:
            pool, site, stages = None, None, {}
        elif pool is None:
            pool = AveragePool(maps.shape[1 if input_fmt == "NCHW" else -1], input_fmt=input_fmt)
        activation = activation or ("sigmoid" if classes == 1 or is_multi_label(private) else "softmax")
        if classes == 1 and activation == "softmax":
            raise OptionError("activation must be sigmoid for a model of one class score, got 'softmax'")
        names = tuple(class_names) or known_names(private, classes)
        if names and len(names) != classes:
            raise OptionError(f"class_names has {len(names)} names, the model has {classes} classes")
        return cls(private, pool, site, classifier, preprocessing, stages, classes, activation, names)

    def class_number(self, target: Any, option: str = "target") -> int:
        """A class as a number from 0 on; it is given by that number, by one from -1 down, or by its name.

        Raises:
            OptionError: for a number that is no class of the model, or a name where none are known.
            UnknownNameError: for a name that none of the classes has.
        """
        if isinstance(target, str) and self.class_names:
            if target not in self.class_names:
                raise UnknownNameError("class", target, self.class_names)
            return self.class_names.index(target)
        try:
            number = self.num_classes if isinstance(target, (bool, str)) else operator.index(target)
        except TypeError:
            number = self.num_classes
        if not -self.num_classes <= number < self.num_classes:
            named = "; names need class_names" if isinstance(target, str) else ""
            raise OptionError(f"{option} must be a class from 0 to {self.num_classes - 1}, got {target!r}{named}")
        return number % self.num_classes

    def class_name(self, number: int) -> str:
        """Name of a class, or its number."""
        return self.class_names[number] if self.class_names else str(number)

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
    def shallow_stages(self) -> list[str]:
        """Stages that a user would name: those no more than one level below the last."""
        if not self.stages:
            return []
        deepest = list(self.stages)[-1].count(".") + 1
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

    @torch.no_grad()
    def forward_pass(self, x: Tensor) -> ForwardPass:
        """One run of the model."""
        tensors: dict[str, Tensor] = {}

        def at_classifier(module: nn.Module, args: Any, output: Tensor) -> None:
            tensors.update(vector=args[0], scores=output)

        def at_pool(module: nn.Module, args: Any, output: Tensor) -> None:
            tensors.update(input=args[0], pooled=output.flatten(1))

        hooks = [(self.classifier, at_classifier), (self.pool_site, at_pool)]
        handles = [module.register_forward_hook(hook) for module, hook in hooks if module is not None]
        try:
            return ForwardPass(x, self.logits(x), **tensors)
        finally:
            for handle in handles:
                handle.remove()

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

    @cached_property
    def float64_pool(self) -> Pool:
        """The pool in float64."""
        return copy.deepcopy(self.known_pool()).double()

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


def disposable(view: ModelView) -> ModelView:
    """A view whose modules are copies that hold the same weights: what is changed in them stays in the copy."""
    shared = [*view.model.parameters(), *view.model.buffers(), view.preprocessing]
    return copy.deepcopy(view, {id(kept): kept for kept in shared})


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
def _check_first_layer(model: nn.Module, blank: Tensor) -> None:
    """Raise unless the model takes the channels of ``blank``: one, where its first convolution does, or three."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels == blank.shape[1]:
        return
    try:
        model(blank)  # the pixels may be rearranged in front of the first convolution
    except RuntimeError:
        raise OptionError(
            f"only models of 1 or 3 input channels can be explained, this one takes {first.in_channels}"
        ) from None


def _see_single_frames(model: Any) -> None:
    """Let a model of clips see one frame: the vectors of frames are averaged, so that each has its own share.

    Raises:
        OptionError: if the pool joins the frames of a clip.
    """
    for module in [model, *model.modules()] if getattr(model, "frames", None) else ():
        if getattr(module, "frames_joined_by_pool", 1) > 1:
            raise OptionError("the pool of this model joins the frames of a clip: no single frame has a class score")
        for attribute in ("frames", "frames_averaged"):
            if getattr(module, attribute, None):
                setattr(module, attribute, 1)


def _use_exact_gradient(model: nn.Module) -> None:
    pools: list[Any] = [m for m in model.modules() if isinstance(m, Pool)]
    for pool in pools:
        method = getattr(pool, "method", None)
        # What leaves eigenvalues out computes another root, and has the exact gradient of that one.
        if isinstance(method, EigenMethod) and type(method).truncate is EigenMethod.truncate:
            pool.method = Exact()


def _find_classifier(model: Any) -> nn.Linear | None:
    if hasattr(model, "get_classifier"):
        classifier = model.get_classifier()
    else:
        classifier = getattr(getattr(model, "head", None), "fc", None)
    return classifier if isinstance(classifier, nn.Linear) else None


@torch.no_grad()
def _count_classes(model: nn.Module, blank: Tensor) -> int:
    """How many class scores a model without one linear classifier gives: several classifiers, or more layers."""
    scores = model(blank)
    without_classes = getattr(model, "num_classes", None) == 0
    if without_classes or not isinstance(scores, Tensor) or scores.ndim != 2:
        raise OptionError(f"{type(model).__name__} has no class scores to explain")
    return scores.shape[1]


def _find_pool_site(model: nn.Module) -> nn.Module | None:
    """The last pool of this package, or the only global average pooling."""
    pools: list[nn.Module] = [m for m in model.modules() if isinstance(m, Pool)]
    if pools:
        return pools[-1]
    averages = [average for m in model.modules() if (average := _global_average(m)) is not None]
    return averages[0] if len(averages) == 1 else None


def _global_average(module: Any) -> nn.Module | None:
    """The module that averages, in timm's and MMPretrain's poolings; told by name, so that neither is imported."""
    kind = type(module).__name__
    if kind == "SelectAdaptivePool2d" and module.pool_type in ("avg", "fast", "fastavg"):
        return module
    return module.gap if kind == "GlobalAveragePooling" else None


def _input_fmt(site: Any) -> InputFormat:
    if isinstance(site, Pool):
        return site.input_fmt
    return "NHWC" if getattr(getattr(site, "pool", None), "dim", None) == (1, 2) else "NCHW"
