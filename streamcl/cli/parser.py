"""The parser of the command line: with each refusal it suggests the nearest thing that it would have accepted."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that makes suggestions, and prints its help if a command is missing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """The options; exits with 2 after saying what was not understood."""
        options, rest = self.parse_known_args(args, namespace)
        if rest:
            getattr(options, "parser", self).error(f"unrecognized arguments: {' '.join(rest)}")
        return options

    def error(self, message: str) -> NoReturn:
        """Print what was wrong and what may have been meant; exits with 2."""
        missing = re.search(r"arguments are required: (COMMAND|BENCHMARK)", message)
        if missing is not None:
            self.print_help(sys.stderr)
            self.exit(2, f"\n{self.prog}: expected a {missing[1].lower()}\n")
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: {self._with_suggestion(message)}\n")

    def _with_suggestion(self, message: str) -> str:
        unknown = re.match(r"unrecognized arguments: (.*)", message, re.DOTALL)
        if unknown is not None:
            return f"unknown {unknown[1]}{self._near(unknown[1].split()[0].partition('=')[0], self._options())}"
        choice = re.match(r"argument (COMMAND|BENCHMARK): invalid choice: '(.*?)' \(choose from (.*)\)", message, re.DOTALL)
        if choice is not None:
            known = [name.strip(" '") for name in choice[3].split(",")]
            return (
                f"unknown {choice[1].lower()} {choice[2]!r}{self._near(choice[2], known)} (`{self.prog} --help` lists all)"
            )
        return message

    def _options(self) -> list[str]:
        return [spelling for action in self._actions for spelling in action.option_strings]

    @staticmethod
    def _near(text: str, known: list[str]) -> str:
        near = difflib.get_close_matches(text, known, n=1)
        return f"; did you mean {near[0]}?" if near else ""
