"""`import mechvlm` and the shell: quick to open, and every name is there."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest

HEAVY = {"torch", "transformers", "transformer_lens", "xarray", "matplotlib", "wandb"}


def python(code, **environment):
    """What a fresh interpreter prints when it runs `code`."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADED = "; import sys, json; print(json.dumps(sorted(sys.modules)))"
RUN = """
import sys
sys.argv[1:] = {words}
try:
    {start}
except SystemExit:
    pass
"""


def test_importing_loads_nothing_heavy():
    assert not HEAVY & set(json.loads(python("import mechvlm" + LOADED)))


@pytest.mark.parametrize("words", [["--help"], ["demo", "--help"], ["info", "--help"]])
@pytest.mark.parametrize(
    "start",
    [
        "import runpy; runpy.run_module('mechvlm', run_name='__main__')",
        "from mechvlm.cli import main; main()",
    ],
    ids=["python -m mechvlm", "mechvlm"],
)
def test_help_loads_nothing_heavy(start, words):
    printed = python(RUN.format(words=words, start=start) + LOADED[2:])
    help_text, _, loaded = printed.rstrip().rpartition("\n")
    assert "Usage: " in help_text
    assert not HEAVY & set(json.loads(loaded))


def test_the_oracle_sees_a_heavy_import():
    """A lazy name that needs torch does load it, so the tests above can fail."""
    assert "torch" in json.loads(python("import mechvlm; mechvlm.load" + LOADED))


def test_all_is_the_namespace():
    import mechvlm

    for name in mechvlm.__all__:
        assert getattr(mechvlm, name) is not None
    assert set(mechvlm.__all__) <= set(dir(mechvlm))
    assert len(set(mechvlm.__all__)) == len(mechvlm.__all__)


def test_all_is_what_a_type_checker_sees():
    """The table of lazy names and the imports for type checkers are one list."""
    import ast
    from pathlib import Path

    import mechvlm

    tree = ast.parse(Path(mechvlm.__file__).read_text(encoding="utf-8"))
    seen = {}
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    for node in block.body:
        for name in node.names:
            whole = node.module == "mechvlm"
            seen[name.asname] = (
                f"mechvlm.{name.name}" if whole else f"{node.module}:{name.name}"
            )
    assert seen == dict(mechvlm._KEPT)


def test_every_error_is_at_the_front_door():
    import mechvlm
    from mechvlm import errors

    assert set(errors.__all__) <= set(mechvlm.__all__)


def test_a_misspelt_name_is_an_attribute_error():
    import mechvlm

    with pytest.raises(AttributeError, match="'mechvlm' has no attribute 'lod'"):
        _ = mechvlm.lod


def test_a_submodule_does_not_hide_the_function_of_its_name():
    code = "import mechvlm.record, mechvlm; print(type(mechvlm.record).__name__)"
    assert python(code) == "function\n"
    assert python(code.replace("mechvlm.record, ", "")) == "function\n"


def test_the_type_check_is_on_when_asked_for():
    code = (
        "import mechvlm\ntry:\n    mechvlm.cite(3)\n"
        "except Exception as error:\n    print(type(error).__module__)"
    )
    assert python(code, MECHVLM_TYPECHECK="1").startswith("jaxtyping")
    assert not python(code, MECHVLM_TYPECHECK="").startswith("jaxtyping")


@pytest.fixture
def run(capsys):
    """What `mechvlm WORDS` prints, and its exit code."""
    from mechvlm.cli import main

    def run(*words):
        with pytest.raises(SystemExit) as done:
            main(words)
        printed = capsys.readouterr()
        return printed.out, printed.err, done.value.code

    return run


@pytest.mark.tl3
def test_info_tells_the_versions_that_are_installed(run):
    printed, _, code = run("info")
    told = dict(line.split(maxsplit=1) for line in printed.splitlines())
    for package in ("torch", "transformers", "transformer-lens"):
        assert told[package] == version(package)
    assert told["device"].split()[0] in {"cpu", "cuda", "mps"}
    assert code == 0


def test_info_warns_of_a_torchvision_that_breaks_image_models(monkeypatch, run):
    from mechvlm.cli import installed

    known = {"torchvision": "9.9.9"}
    monkeypatch.setattr(
        installed, "installed_version", lambda name: known.get(name, "1")
    )
    monkeypatch.setitem(sys.modules, "torchvision", None)  # importing it now fails
    printed, _, _ = run("info")
    assert "9.9.9 cannot be imported beside torch 1" in printed
    assert "pip uninstall torchvision" in printed


def test_a_refusal_is_one_message_and_exit_code_2(tmp_path, run):
    printed, told, code = run("demo", "--model", str(tmp_path), "--out", str(tmp_path))
    assert code == 2
    assert told.startswith("mechvlm: ")
    assert "Traceback" not in printed + told


def test_no_command_shows_the_help(run):
    assert "Usage: " in "".join(run()[:2])
