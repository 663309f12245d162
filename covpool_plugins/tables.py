"""Tables of named objects: the only lists of names in the package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

from .errors import UnknownNameError

T = TypeVar("T")


class About(NamedTuple):
    """A row in the documents: what it computes, its gradient, its source."""

    forward: str
    gradient: str
    source: str


class Table(Generic[T]):
    """An insertion-ordered table whose look-up errors list what exists."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self.about: dict[str, About] = {}

    def add(self, name: str, entry: T, about: About | None = None) -> None:
        """Add a row; a name can be taken only once."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = entry
        if about is not None:
            self.about[name] = about

    def __getitem__(self, name: str) -> T:
        if not isinstance(name, str) or name not in self._entries:
            raise UnknownNameError(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> Iterator[tuple[str, T]]:
        return iter(self._entries.items())
