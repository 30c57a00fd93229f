"""The house: imports run down only, and heavy libraries come in by their own doors.

It reads the source and imports none of it, so that `make check` stays quick.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mechvlm"

FLOORS = [
    *("errors", "papers", "progress", "wanted", "matching", "axes", "layout", "sites"),
    *("statistics", "items", "prompts", "interventions", "scenes", "metrics"),
    "graph",
    *("readings", "judges", "datasets", "viz"),
    *("cone", "models", "places", "record", "paths", "plan"),
    *("ablating", "subgraph"),
    *("reference", "engine", "gradients", "selecting", "posing", "pairs"),
    "screening",
    "cutting",
    "analyses",
    "report",
    *("bench", "demo", "reproduce"),
    "cli",
]

# Who may import what. A name left out here may be imported anywhere.
DOORS = {
    "transformer_lens": {"models"},
    "transformers": {"models"},
    "xarray": {"axes", "analyses", "viz", "report", "reproduce"},
    "matplotlib": {"viz"},
    "circuitsvis": {"viz"},
    "torchvision": {"cli"},  # `mechvlm info` looks whether it can be imported
    "openai": {"judges"},
    "wandb": set(),
}
ONLY_INSIDE_FUNCTIONS = {"matplotlib", "circuitsvis", "openai"}

FILE_LINES = 450
FUNCTION_LINES = 50


def sources(package):
    """Every module of the package but its own `__init__.py` and `__main__.py`."""
    tops = {package / "__init__.py", package / "__main__.py"}
    return sorted(set(package.rglob("*.py")) - tops)


def imports(tree):
    """Each imported module and the statement that imports it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node
        elif isinstance(node, ast.Import):
            yield from ((name.name, node) for name in node.names)


def is_type_checking(test):
    return "TYPE_CHECKING" in (
        test.id if isinstance(test, ast.Name) else getattr(test, "attr", "")
    )


def run_on_import(tree):
    """Every node that is run when the module is imported."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and is_type_checking(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)


def length(function):
    """Lines of a function without its docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        docstring = function.body[0]
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def import_faults(file, here, inner, tree):
    at_import = set(map(id, run_on_import(tree)))
    for there, node in imports(tree):
        at = f"{file}:{node.lineno}"
        top = there.split(".")[0]
        if there == "mechvlm" and [name.name for name in node.names] == ["__version__"]:
            continue
        if there.startswith(".") or there == "mechvlm":
            yield f"{at}: say `from mechvlm.X import Y`"
        elif top == "mechvlm":
            floor, *rest = there.split(".")[1:]
            if floor not in FLOORS:
                yield f"{at}: mechvlm.{floor} stands on no floor"
            elif FLOORS.index(floor) > FLOORS.index(here):
                yield f"{at}: {here} imports {floor}, which stands above it"
            elif floor == here == "analyses" and inner[0] not in ("__init__", *rest):
                yield f"{at}: one analysis imports another"
        elif top in DOORS and here not in DOORS[top]:
            yield f"{at}: {top} does not come in through {here}"
        elif top in ONLY_INSIDE_FUNCTIONS and id(node) in at_import:
            yield f"{at}: import {top} inside the function that draws"


def faults(package):
    """Everything in the package that breaks a rule of the house, as sentences."""
    for path in sources(package):
        here, *inner = path.relative_to(package).with_suffix("").parts
        text = path.read_text(encoding="utf-8")
        file = path.relative_to(package.parent)
        try:
            tree = ast.parse(text)
        except SyntaxError as error:
            yield f"{file}:{error.lineno}: no Python of this version: {error.msg}"
            continue
        if here not in FLOORS:
            yield f"{file}: {here} stands on no floor"
            continue
        yield from import_faults(file, here, inner, tree)
        if (lines := len(text.splitlines())) > FILE_LINES:
            yield f"{file}: {lines} lines, more than {FILE_LINES}"
        for node in ast.walk(tree):
            is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            if is_function and (lines := length(node)) > FUNCTION_LINES:
                yield f"{file}:{node.lineno}: {node.name} has {lines} lines"


def test_the_house_stands():
    found = list(faults(PACKAGE))
    assert not found, "\n".join(["", *found])


LONG = "def long():\n" + '    """Said\n\n    at length.\n    """\n' + "    x = 1\n"


@pytest.mark.parametrize(
    ("where", "source", "fault"),
    [
        ("errors.py", "from mechvlm.layout import Layout", "layout, which stands"),
        ("engine.py", "def f():\n    import mechvlm.cli", "cli, which stands above"),
        ("layout.py", "import mechvlm.helpers", "mechvlm.helpers stands on no floor"),
        ("helpers.py", "", "helpers stands on no floor"),
        ("models/load.py", "from mechvlm import errors", "say `from mechvlm.X import"),
        ("models/load.py", "from . import hooked", "say `from mechvlm.X import Y`"),
        ("models/load.py", "from .hooked import tap", "say `from mechvlm.X import Y`"),
        ("engine.py", "import transformer_lens", "does not come in through engine"),
        ("cli.py", "from transformers import x", "does not come in through cli"),
        ("metrics.py", "import xarray as xr", "does not come in through metrics"),
        ("analyses/a.py", "import matplotlib.pyplot", "does not come in through anal"),
        ("viz/map.py", "import matplotlib", "import matplotlib inside the function"),
        ("viz/map.py", "if True:\n    import circuitsvis", "inside the function"),
        ("analyses/a.py", "from mechvlm.analyses.b import b", "one analysis imports"),
        ("cone.py", "x = = 1", "cone.py:1: no Python of this version"),
        ("cone.py", "x = 1\n" * 451, "451 lines, more than 450"),
        ("cone.py", LONG + "    x += 1\n" * 49, "long has 51 lines"),
    ],
)
def test_a_fault_is_found(tmp_path, where, source, fault):
    """A house with one fault in it: the fault and no other is told."""
    path = tmp_path / "mechvlm" / where
    path.parent.mkdir(parents=True)
    path.write_text(source)
    (found,) = faults(tmp_path / "mechvlm")
    assert fault in found


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("cli.py", "def f():\n    from mechvlm.report import page"),
        ("models/a.py", "import transformers\nfrom mechvlm.models.b import tap"),
        ("viz/map.py", "def draw():\n    import matplotlib.pyplot as plt"),
        (
            "viz/map.py",
            "import typing\nif typing.TYPE_CHECKING:\n    import matplotlib",
        ),
        ("analyses/a/b.py", "from mechvlm.analyses.a.c import d"),
        ("analyses/__init__.py", "from mechvlm.analyses.a import a"),
        ("cli.py", "from mechvlm import __version__"),
        ("cone.py", "x = 1\n" * 450),
        ("cone.py", LONG + "    x += 1\n" * 48),
    ],
)
def test_what_is_allowed_is_no_fault(tmp_path, where, source):
    path = tmp_path / "mechvlm" / where
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert not list(faults(tmp_path / "mechvlm"))
