"""The architecture page is true: what it names exists, its floors are those of the import rules, and no sentence of its
walks leads back up."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
SOURCE = TOP / "streamcl"
PAGE = (SOURCE / "docs" / "architecture.md").read_text()
WALKS = ("A batch", "A revisit", "A prediction", "A status query")
ROOTS = {path.stem for path in SOURCE.iterdir() if path.is_dir() or path.suffix == ".py"}
FILES = {"daemon.json"}  # which look like names
LEAST_NAMED = 8  # in a walk; fewer, and the page is written in a way that this test does not see


def named(text: str) -> list[str]:
    """What is named in code from the package down, in order."""
    found = re.findall(r"`([A-Za-z_]\w*(?:\.\w+)+)`", text)
    return [name for name in found if name.split(".")[0] in ROOTS and name not in FILES]


def walk(title: str) -> str:
    (section,) = re.findall(rf"^## {title}\n(.*?)^## ", PAGE, re.M | re.S)
    return str(section)


def clauses(title: str) -> Iterator[str]:
    """A walk's sentences, and parts of them: each says what one function does and calls."""
    yield from re.split(r"(?<=[.;:])\s|, and ", walk(title))


def split(name: str) -> tuple[Path, list[str]]:
    """The module's file, and what is looked for in it."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        module = SOURCE.joinpath(*parts[:count])
        for file in (module.with_suffix(".py"), module / "__init__.py"):
            if file.exists():
                return file, parts[count:]
    raise AssertionError(f"{name}: there is no such module")


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def exists(name: str) -> bool:
    """Whether module, class, function or method is there, without importing anything."""
    file, path = split(name)
    body = tree(file).body
    for part in path:
        found = [node for node in body if getattr(node, "name", None) == part]
        if not found:
            return False
        body = getattr(found[0], "body", [])
    return True


@cache
def floors(container: str = "streamcl") -> tuple[tuple[str, ...], ...]:
    """The floors of the import rules within a package, from the top: the names of their modules, from the package down."""
    rules = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [rule["layers"] for rule in rules if rule["type"] == "layers" and rule["containers"] == [container]]
    return tuple(tuple(re.split(r"\s*[|:]\s*", layer)) for layer in layers)


def floor(name: str) -> tuple[int, int]:
    """How many floors are above it; of a part of the daemon, also within that."""
    package, _, rest = name.partition(".")
    return _above(floors(), package), _above(floors("streamcl.daemon"), rest) if package == "daemon" else 0


def _above(floors: tuple[tuple[str, ...], ...], name: str) -> int:
    found = [number for number, floor in enumerate(floors) if name.split(".")[0] in floor]
    assert found, f"{name}: on no floor"
    return found[0]


def drawn(after: str) -> list[list[str]]:
    """The floors that the page draws in the block behind this text: the names at the left of each line."""
    block = PAGE.partition(after)[2].partition("\n\n")[0]
    return [line.strip().split("   ")[0].split() for line in block.splitlines() if re.match(r" {4}\w", line)]


@pytest.mark.parametrize("name", sorted(set(named(PAGE))))
def test_what_the_page_names_exists(name: str) -> None:
    assert exists(name), f"{name}: streamcl/docs/architecture.md names it, and it is not there"


@pytest.mark.parametrize(
    ("after", "container"),
    [("modules that know nothing of each other.\n\n", "streamcl"), ("there are floors too:\n\n", "streamcl.daemon")],
)
def test_the_floors_are_those_of_the_import_rules(after: str, container: str) -> None:
    ruled = [floor for floor in floors(container) if floor != ("__main__",)]
    assert [set(floor) for floor in drawn(after)] == [set(floor) for floor in ruled]


@pytest.mark.parametrize("title", WALKS)
def test_no_sentence_of_a_walk_leads_back_up(title: str) -> None:
    assert len(named(walk(title))) >= LEAST_NAMED
    for clause in clauses(title):
        names = named(clause)
        assert names == sorted(names, key=floor), f"{title}: {clause}"


def test_a_name_that_is_not_there_is_noticed() -> None:
    assert exists("storage.log.LogWriter.sync")
    assert not exists("storage.log.LogWriter.sink")
    assert not exists("storage.log.synced")


def large_classes(tree: ast.Module) -> Iterator[ast.ClassDef]:
    """Those with more than 25 methods."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and sum(isinstance(each, ast.FunctionDef) for each in node.body) > 25:
            yield node


def test_a_large_class_says_what_holds_it_together() -> None:
    found = [node for path in SOURCE.rglob("*.py") for node in large_classes(ast.parse(path.read_text()))]
    assert len(found) > 5
    silent = [node.name for node in found if "holds it together" not in " ".join((ast.get_docstring(node) or "").split())]
    assert silent == []
