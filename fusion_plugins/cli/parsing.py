"""What the parsers of all commands share; imports nothing slow."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from ..demo.recipe import Recipe


class Parser(argparse.ArgumentParser):
    """Takes options by their whole names; says what is wrong in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """End the program with exit status 2."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def names(text: str) -> list[str]:
    """The type of an option that takes names separated by commas."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError("give names separated by commas")
    return found


def path(text: str) -> Path:
    """The type of an option that takes a file or folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def add_recipe(parser: argparse.ArgumentParser, recipe: type[Recipe]) -> None:
    """An option for every field of the recipe."""
    for field in fields(recipe):
        flag, kind = f"--{field.name.replace('_', '-')}", type(field.default)
        meaning = field.metadata["help"]
        if kind is bool:
            parser.add_argument(flag, action="store_true", default=None, help=meaning)
        elif isinstance(field.default, tuple):
            meaning += f", for example {','.join(field.default[:2])}"
            parser.add_argument(flag, type=names, metavar="A,B", help=meaning)
        else:
            meaning += f" (default: {field.default})"
            parser.add_argument(flag, type=kind, metavar="N", help=meaning)


def given(options: argparse.Namespace, recipe: type[Recipe]) -> dict[str, Any]:
    """The recipe's fields that the user gave."""
    found = {field.name: getattr(options, field.name) for field in fields(recipe)}
    return {name: value for name, value in found.items() if value is not None}
