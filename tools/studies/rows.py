"""Rows of comparisons: a pool or a head with options, such as ``svdpade(centered=False)``."""

from __future__ import annotations

import ast
from collections.abc import Collection
from typing import Any

from covpool_plugins.errors import OptionError, UnknownNameError
from covpool_plugins.timm_plugin import list_heads


def head_and_options(row: str, known: Collection[str] = ()) -> tuple[str, dict[str, Any]]:
    """The name and the options of a row.

    Args:
        row: a name, or a call of it with literal keyword arguments.
        known: names; those of the heads by default.

    Raises:
        OptionError: for a text that is neither.
        UnknownNameError: for a name that does not exist.
    """
    try:
        expression = ast.parse(row, mode="eval").body
        call = expression if isinstance(expression, ast.Call) else ast.Call(expression, [], [])
        if not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        options = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, SyntaxError):
        raise OptionError(f"a row is a name with options, such as svdpade(centered=False), got {row!r}") from None
    names = known or list_heads()
    if call.func.id not in names:
        raise UnknownNameError("pool", call.func.id, names)
    return call.func.id, options
