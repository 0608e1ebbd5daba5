"""No bytes can run code: no pickle, no eval, no loader that unpickles, in the product, its tests and its deployment."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "jsonpickle",
    "code",
    "codeop",
}
SAFE = {"safetensors"}  # whose `torch.load` is another: of numbers alone
CALLS = {"eval", "exec", "__import__", "compile"}
ATTRIBUTES = {"recv_pyobj", "send_pyobj", "read_pickle", "to_pickle", "__reduce__", "__reduce_ex__", "unsafe_load"}
LOADERS = {("torch", "load"), ("torch", "save"), ("yaml", "load"), ("jit", "load"), ("package", "PackageImporter")}
NUMPY_LOADERS = {("np", "load"), ("numpy", "load")}


def unsafe(source: str) -> Iterator[str]:
    """Every pickle-like call of a module."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names if name.name.split(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] not in SAFE:
                imported = {(module.split(".")[-1], name.name) for name in names}
                if module.split(".")[0] in MODULES or imported & (LOADERS | NUMPY_LOADERS):
                    yield f"from {module}"
            case ast.Call(func=ast.Name(id=name)) if name in CALLS:
                yield name
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=attr)):
                if (owner, attr) in NUMPY_LOADERS and not _refuses_pickle(node):
                    yield f"{owner}.{attr} without allow_pickle=False"
                elif (owner, attr) in LOADERS or attr in ATTRIBUTES:
                    yield f"{owner}.{attr}"
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr=owner), attr=attr)) if (owner, attr) in LOADERS:
                yield f"{owner}.{attr}"
            case ast.Attribute(attr=attr) if attr in ATTRIBUTES:
                yield attr
            case ast.FunctionDef(name=name) if name in ATTRIBUTES:
                yield name
            case ast.keyword(arg="allow_pickle", value=value) if not _is_false(value):
                yield "allow_pickle"


def _refuses_pickle(call: ast.Call) -> bool:
    return any(keyword.arg == "allow_pickle" and _is_false(keyword.value) for keyword in call.keywords)


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


FILES = [path for folder in ("streamcl", "tests", "deploy") for path in sorted((TOP / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TOP)))
def test_nothing_here_can_run_what_it_reads(path: Path) -> None:
    assert list(unsafe(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "import os, marshal",
        "from pickle import loads",
        "from cloudpickle import dumps",
        "import dill",
        "import shelve",
        "import joblib.externals",
        "eval('1')",
        "exec('x = 1')",
        "compile('1', '', 'eval')",
        "__import__(name)",
        "torch.load(path, weights_only=True)",
        "torch.save(model, path)",
        "torch.jit.load(path)",
        "from torch import load",
        "yaml.load(text)",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "from numpy import load",
        "socket.recv_pyobj()",
        "self.socket.send_pyobj(1)",
        "frame = pandas.read_pickle(path)",
        "class A:\n    def __reduce__(self): ...",
    ],
)
def test_it_would_be_noticed(source: str) -> None:
    assert list(unsafe(source))
