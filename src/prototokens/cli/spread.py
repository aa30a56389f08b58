"""Commands that take dataclasses: every field becomes an option, so that commands share options and Typer sees them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, TypeVar, get_type_hints

import typer

Command = TypeVar("Command", bound=Callable[..., int])


def add_command(
    app: typer.Typer, name: str, panel: str | None = None, *, text: str | None = None
) -> Callable[[Command], Command]:
    """Register a command.

    Parameters whose type is a dataclass are spread into one option per field. The first line of the help stands for
    the command in lists.

    Args:
        app: where to register it.
        name: of the command.
        panel: the heading that lists it.
        text: its help; default: its docstring.
    """

    def register(command: Command) -> Command:
        whole = text or inspect.getdoc(command) or ""
        short = whole.split("\n", 1)[0]
        app.command(name, help=whole, short_help=short, rich_help_panel=panel)(spread(command))
        return command

    return register


def spread(command: Callable[..., int]) -> Callable[..., int]:
    """The same command, with the fields of dataclass parameters as parameters of their own."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = []
    for name, parameter in inspect.signature(command).parameters.items():
        single = [(name, hints[name], parameter.default)]
        parameters += [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=default)
            for option, hint, default in (_options(groups[name]) if name in groups else single)
        ]

    @wraps(command)
    def spread_command(**values: Any) -> int:
        gathered = {name: _gather(group, values) for name, group in groups.items()}
        return command(**gathered, **values)

    spread_command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread_command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread_command


def _options(group: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, type and default of every field; a field that is a group itself is spread too."""
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        if is_dataclass(hints[field.name]):
            yield from _options(hints[field.name])
        else:
            yield field.name, hints[field.name], inspect.Parameter.empty if field.default is MISSING else field.default


def _gather(group: Any, values: dict[str, Any]) -> Any:
    """A group made of its fields, which are taken out of the values."""
    hints = get_type_hints(group)
    taken = {}
    for field in fields(group):
        hint = hints[field.name]
        taken[field.name] = _gather(hint, values) if is_dataclass(hint) else values.pop(field.name)
    return group(**taken)
