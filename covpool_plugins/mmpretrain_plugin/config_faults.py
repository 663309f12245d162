"""Which key of a config an error comes from.

MMEngine builds objects from the parts of a config that have a ``type``, each from within the one around it. The frames
of a traceback still hold those parts, or the objects that were built from them; the error's message says which of
their keys it means.
"""

from __future__ import annotations

import inspect
import os
import re
import textwrap
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any
from urllib.error import URLError

from mmengine.config import Config
from mmengine.registry import Registry, build_functions

from ..errors import UnknownNameError, one_line

Part = tuple[str, dict[str, Any]]  # the path of a part of a config, and the part


@dataclass(frozen=True)
class Fault:
    """A part of a config, one of its keys if it is known which, and what is wrong with it."""

    path: str
    key: str | None
    value: Any
    reason: str

    def __str__(self) -> str:
        if self.key is None:
            return f"{self.path}: {self.reason}"
        value = textwrap.shorten(repr(self.value), 80, placeholder=" …")
        return f"{_join(self.path, self.key)}={value}: {self.reason}"


def message_of(error: BaseException) -> str:
    """The message of an error on one line, without its end if that is far away."""
    # str() of a KeyError is the repr of its message.
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else one_line(error)
    return textwrap.shorten(message, 500, placeholder=" …")


def find_fault(error: BaseException, cfg: Config, first: Iterable[str] = ()) -> Fault | None:
    """What an error that was raised while a config was in use says of it, if that can be told.

    Args:
        error: with its traceback.
        cfg: the config.
        first: which data loaders to blame first where several are the same, for example ``['test']``.
    """
    parts = list(_parts(_ordered(cfg, first)))
    part: Part | None = None
    builder: FrameType | None = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        within = [one for one in parts if part is None or _is_within(one, part)]
        if frame.f_globals.get("__name__") == build_functions.__name__ and isinstance(frame.f_locals.get("cfg"), dict):
            found = _most_alike(frame.f_locals["cfg"], within)
            builder = frame if found is not None else builder
        else:
            # Not only what is within: a model that is built runs no code of hooks, but a loop runs that of models.
            found = _of_type(frame.f_locals.get("self"), parts)
            builder = None if found is not None and found != part else builder
        part = found or part
    reason, name = _reason(error, builder)
    if part is None:
        return _mentioned_anywhere(name, reason, cfg)
    path, content = part
    if name is None and _needs_folder(content, error):
        return Fault(path, "data_root", content["data_root"], "no such folder")
    key = name if name in content else _at_fault(dict(_leaves(content)), error, reason)
    return Fault(path, key, dict(_leaves(content)).get(key or ""), reason)


def _ordered(cfg: Config, first: Iterable[str]) -> dict[str, Any]:
    names = [f"{name}_dataloader" for name in first]
    return {name: cfg[name] for name in [*names, *(key for key in cfg if key not in names)] if name in cfg}


def _parts(node: Any, path: str = "") -> Iterator[Part]:
    """The parts of a config that have a type, outer ones first."""
    if isinstance(node, dict):
        if "type" in node:
            yield path, node
        for key, child in node.items():
            yield from _parts(child, _join(path, key))
    elif isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield from _parts(child, _join(path, index))


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _is_within(inner: Part, outer: Part) -> bool:
    return f"{inner[0]}.".startswith(f"{outer[0]}.")


def _most_alike(built: dict[str, Any], parts: list[Part]) -> Part | None:
    """The part that an object was built from; what MMEngine added or took out is no difference."""

    def equal_items(part: Part) -> int:
        return sum((value == built.get(key)) is True for key, value in part[1].items())

    alike = [part for part in parts if part[1]["type"] == built.get("type")]
    return max(alike, key=equal_items, default=None)


def _of_type(owner: Any, parts: list[Part]) -> Part | None:
    """The only part that can have become this object."""
    types = [part[1]["type"] for part in parts]
    names = [kind.split(".")[-1] if isinstance(kind, str) else getattr(kind, "__name__", "") for kind in types]
    called = {type(owner).__name__, type(owner).__name__.removesuffix("Init")}  # as initializers are in configs
    found = [part for part, name in zip(parts, names, strict=True) if name in called]
    return found[0] if len(found) == 1 else None


def _reason(error: BaseException, builder: FrameType | None) -> tuple[str, str | None]:
    """What is wrong, and the name of the key if the error is about a name that does not exist."""
    message = message_of(error)
    values = builder.f_locals if builder is not None else {}
    if " is not in the " in message and isinstance(registry := values.get("registry"), Registry):
        wanted = values["cfg"]["type"]
        kind = registry.name.replace("_", " ")
        return str(UnknownNameError(kind, wanted, set(_registered(registry, wanted)))), "type"
    found = re.search(r"unexpected keyword argument '(\w+)'", message)
    owner = values.get("obj_cls", values.get("scheduler_cls"))
    if found and owner is not None and found[1] in values["cfg"]:
        message = str(UnknownNameError(f"option of {owner.__name__}", found[1], _arguments(owner)))
    return message, found[1] if found else None


def _registered(registry: Registry | None, wanted: str) -> Iterator[str]:
    """Names that a registry and those above it know, and ours if one of them was meant."""
    from .. import MMPRETRAIN_CLASSES

    names: set[str] = set()
    while registry is not None:
        names |= set(registry.module_dict)
        registry = registry.parent
    package, dot, _ = wanted.rpartition(".")
    if package == __name__.split(".")[0]:
        names = {package + dot + name for name in names & set(MMPRETRAIN_CLASSES)}
    yield from names


def _arguments(owner: Any) -> set[str]:
    """What a class or a function takes, what it hands on to the classes it derives from included."""
    found = set()
    owners = [vars(each) for each in owner.__mro__] if inspect.isclass(owner) else [{"__init__": owner}]
    for function in (each["__init__"] for each in owners if "__init__" in each):
        parameters = inspect.signature(function).parameters.values()
        found |= {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            break
    return found - {"self"}


def _mentioned_anywhere(name: str | None, reason: str, cfg: Config) -> Fault | None:
    """Of a part without a type: the only key of this name, or the only one whose name and value are both mentioned."""
    holders = [(path, content, key) for path, content in _dicts(dict(cfg.items())) for key in content]
    if name is not None:
        holders = [one for one in holders if one[2] == name]
        siblings = {key for _, content, _ in holders for key in content if key != name and not key.startswith("_")}
        reason = str(UnknownNameError("key", name, siblings))
    else:
        holders = [one for one in holders if _has_word(reason, one[2]) and _has_word(reason, repr(one[1][one[2]]))]
    if len(holders) != 1:
        return None
    path, content, key = holders[0]
    return Fault(path, key, content[key], reason)


def _dicts(node: Any, path: str = "") -> Iterator[Part]:
    if isinstance(node, dict):
        yield path, node
        for key, child in node.items():
            yield from _dicts(child, _join(path, key))


def _leaves(content: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values of a part, those of its options included and those of other parts in it not."""
    for key, value in content.items():
        yield _join(path, key), value
        if isinstance(value, dict) and "type" not in value:
            yield from _leaves(value, _join(path, key))


def _needs_folder(content: dict[str, Any], error: BaseException) -> bool:
    """Whether a part's data are not there; a data set that failed to download its own is another matter."""
    root = content.get("data_root")
    if not isinstance(root, str) or not root or "://" in root or os.path.isdir(root):
        return False
    return isinstance(error, FileNotFoundError) or not isinstance(error, OSError)


def _has_word(message: str, word: str) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w])", message) is not None


def _at_fault(leaves: dict[str, Any], error: BaseException, message: str) -> str | None:
    """The key that a message means: by a name in quotes, a value in quotes, a name, a file or the only such number."""
    names = {key: key.rpartition(".")[2] for key in leaves}
    for key in leaves:
        if f"'{names[key]}'" in message and key != "type":
            return key
    for key, value in leaves.items():
        if isinstance(value, (str, list, tuple)) and len(value) > 0 and repr(value) in message:
            return key
    named = [key for key in leaves if key != "type" and _has_word(message, names[key])]
    if named:
        return min(named, key=lambda key: message.index(names[key]))
    if isinstance(error, URLError):
        return next((key for key, value in leaves.items() if isinstance(value, str) and "://" in value), None)
    filename = getattr(error, "filename", None)
    if filename is not None:
        files = [key for key, value in leaves.items() if isinstance(value, str) and value and value in str(filename)]
        return max(files, key=lambda key: str(filename).rfind(leaves[key]), default=None)
    numbers = [key for key, value in leaves.items() if type(value) in (int, float) and _has_word(message, repr(value))]
    return numbers[0] if len(numbers) == 1 else None
