"""The parser of the command line: with each refusal it suggests the nearest thing that it would have accepted.

argparse decides what is accepted; the refusals that suggest something are found from the words themselves, never read
out of its messages.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that makes suggestions, and prints its help if a command is missing.

    Every command sets the defaults `run`, what runs it, and `parser`; a group of commands runs nothing itself.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **options})
        self._commands: Any = None

    def add_subparsers(self, **options: Any) -> Any:
        """Make this a group of commands; returns what takes them."""
        self.set_defaults(run=None, parser=self)
        self._commands = super().add_subparsers(**options)
        return self._commands

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """The options; exits with 2 after saying what was not understood."""
        words = sys.argv[1:] if args is None else list(args)
        self._look_up(words)
        options, rest = self.parse_known_args(words, namespace)
        if rest:
            options.parser.error(f"unknown {' '.join(rest)}{_near(rest[0].partition('=')[0], options.parser._spellings())}")
        if options.run is None:
            options.parser._ask_for_command()
        return options

    def error(self, message: str) -> NoReturn:
        """Print how it is used and what was wrong; exits with 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: {message}\n")

    def _look_up(self, words: Sequence[str]) -> None:
        """Refuse a command that there is not, here or in the group that the words name."""
        word = next((word for word in words if not word.startswith("-") or word in self._spellings()), None)
        if self._commands is None or word is None or word in self._spellings():
            return
        inner = self._commands.choices.get(word)
        if inner is None:
            kind, near = self._commands.metavar.lower(), _near(word, self._commands.choices)
            self.error(f"unknown {kind} {word!r}{near} (`{self.prog} --help` lists all)")
        inner._look_up(words[words.index(word) + 1 :])

    def _ask_for_command(self) -> NoReturn:
        self.print_help(sys.stderr)
        self.exit(2, f"\n{self.prog}: expected a {self._commands.metavar.lower()}\n")

    def _spellings(self) -> list[str]:
        return [spelling for action in self._actions for spelling in action.option_strings]


def _near(text: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(text, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
