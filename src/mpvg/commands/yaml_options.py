"""Options that YAML files may set too, by jsonargparse, with errors that are one line."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from mpvg.errors import UserError, nearest

_UNKNOWN = re.compile(
    r"Group '(\S+)' does not accept option '(\S+)'|Option '(\S+)' is not accepted|unrecognized arguments: -*([^\s=]+)"
)
_WRONG = re.compile(r'Parser key "(\S+)":.*Given value: (.*)', re.DOTALL)


class OneLineErrors:
    """Makes a parser raise UserError, naming what was probably meant."""

    prog: str
    _actions: Any

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        unknown, wrong = _UNKNOWN.search(message), _WRONG.search(message)
        if unknown:
            name = ".".join(filter(None, unknown.groups()))
            message = f"option {name!r} is unknown{nearest(name, [action.dest for action in self._actions])}"
        elif wrong:
            message = f"option {wrong[1]!r} does not take {wrong[2]!r}"
        raise UserError(f"{message}; see {self.prog} --help.")


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """jsonargparse's help under a description that keeps its lines."""


class Parser(OneLineErrors, ArgumentParser):
    """jsonargparse's parser with such errors and such help."""

    def __init__(self, *, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, formatter_class=HelpFormatter)
