"""What the README shows to a stranger runs as it stands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_readmes_code_runs():
    names = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    assert len(BLOCKS) == 3
    assert names["heat"].dims == ("layer", "position")
    assert float(names["heat"].isel(layer=-1, position=-1)) > 0.9
    assert len(names["cut"].layers) == 3
    assert names["circuit"].of_kind("head")
    assert "of whole passes" in str(
        names["mv"].plan(names["vlm"], names["base"], names["cuts"])
    )


def test_what_it_points_to_is_there():
    here = Path(__file__).parents[1]
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    links += re.findall(r'(?:src|srcset|href)="([^"]+)"', README)
    assert "docs/figures/patching-light.png" in links
    assert not [link for link in links if not (here / link).exists()]


def test_every_command_that_it_shows_is_one():
    """Nothing is run: the words are read as the command line reads them."""
    from typer.main import get_command

    from mechvlm.cli import app

    (shell,) = re.findall(r"## From the shell\n\n```sh\n(.*?)```", README, re.DOTALL)
    lines = shell.replace("\\\n", " ").splitlines()
    commands = get_command(app).commands
    shown = [shlex.split(line, comments=True)[1:] for line in lines]
    for name, *words in shown:
        with commands[name].make_context(name, words):
            pass
    assert [name for name, *_ in shown] == list(commands)


def test_its_table_is_that_of_the_last_benchmarks():
    script = Path(__file__).parents[1] / "benchmarks" / "table.py"
    words = [sys.executable, str(script), "--check"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_its_claims_are_those_that_were_measured():
    script = Path(__file__).parents[1] / "docs" / "reproduced.py"
    words = [sys.executable, str(script), "--check"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_its_circuits_are_those_that_were_found():
    script = Path(__file__).parents[1] / "docs" / "circuits.py"
    words = [sys.executable, str(script), "--check"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_analysis_has_a_line_in_its_table():
    table = README.split("## The analyses")[1].split("<!--")[0]
    package = Path(__file__).parents[1] / "mechvlm" / "__init__.py"
    kept = re.findall(r'"(\w+)":\s*\(?\s*"mechvlm\.analyses\.', package.read_text())
    values = {"FlowEdge", "Grouped", "Swap"}
    assert len(kept) > 20
    assert [
        name for name in kept if f"`{name}`" not in table and name not in values
    ] == []
