"""The errors this package raises on bad input; each is also the built-in error a caller would expect."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

MOST_LISTED = 40
LONGEST = 1000  # characters of a line


class UnknownNameError(ValueError):
    """A name that no table holds; the message lists what exists, the closest match first."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4)
        ordered = close + [n for n in names if n not in close]
        listed = ", ".join(ordered[:MOST_LISTED])
        more = f" and {len(ordered) - MOST_LISTED} more" if len(ordered) > MOST_LISTED else ""
        super().__init__(f"unknown {kind} {name!r}; available: {listed}{more}")


class ShapeError(ValueError):
    """A tensor of the wrong rank or size; the message gives the shape found."""


class DtypeError(TypeError, ValueError):
    """A tensor whose elements are not real floating point numbers."""


class OptionError(ValueError):
    """An option outside its range, or one that the chosen method or pool does not have."""


class NotApplicableError(OptionError):
    """An explanation that has no meaning for a model, with the reason; a comparison of heads shows "n/a"."""


class ExportError(ValueError):
    """A model that a format cannot express; the message names what it can."""


class MissingExtraError(ImportError):
    """An optional dependency is missing; the message names the extra to install."""


def one_line(error: BaseException) -> str:
    """The message of an error on one line, without control characters; an ``OSError`` names its file."""
    named = isinstance(error, OSError) and error.filename is not None and error.strerror
    return on_one_line(f"{error.filename}: {error.strerror}" if named else str(error)) or type(error).__name__  # type: ignore[attr-defined]


def on_one_line(message: str) -> str:
    """A message on one line, without control characters; of a long one the beginning and the end."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in message).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def require_extra(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Raises:
        MissingExtraError: if ``module`` is not installed or cannot be imported, naming the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise MissingExtraError(
            f"{missing} is not installed; run: pip install 'covpool_plugins[{extra}]'", name=missing
        ) from error
    except ImportError as error:
        raise MissingExtraError(
            f"{module} cannot be imported ({error}); run: pip install 'covpool_plugins[{extra}]'", name=module
        ) from error
