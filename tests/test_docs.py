"""What the documentation says is so: its examples run, its figures are what they make.

The pages are run here by other code than that which draws their pictures.
"""

import json
import math
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import mechvlm as mv

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    page
    for folder in (".", "concepts", "analyses", "reference")
    for page in (DOCS / folder).glob("*.md")
)
KEPT = json.loads((DOCS / "figures" / "data.json").read_text(encoding="utf-8"))
SHOWN = re.compile(r"\{shown\} ([\w-]+)")
CLOSE = 1e-4
"""Of the largest value in a figure: sums come in another order on other machines, and
the kept numbers have five digits."""


def name_of(page):
    return page.relative_to(DOCS).with_suffix("").as_posix()


def text_of(page):
    return page.read_text(encoding="utf-8")


def python_of(text):
    """Each block of Python with the number of its first line."""
    lines = text.split("\n")
    starts = [i + 1 for i, line in enumerate(lines) if line.strip() == "```python"]
    for start in starts:
        end = next(i for i in range(start, len(lines)) if lines[i].startswith("```"))
        yield start, "\n".join(lines[start:end])


RUNNABLE = [page for page in PAGES if "```python" in text_of(page)]


@pytest.fixture(scope="module")
def made():
    """What the Python of a page makes, by name; the pages share one model."""

    def run(name):
        names = {}
        for start, block in python_of(text_of(DOCS / f"{name}.md")):
            exec(compile("\n" * start + block, f"docs/{name}.md", "exec"), names)
        return names

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mv, "load", cache(mv.load))
        yield run


def figures_of(data):
    """The variables of a figure's data as plain lists."""
    for name, variable in getattr(data, "data_vars", {"": data}).items():
        if variable.dtype.kind == "f":
            yield name, list(variable.dims), variable.values.tolist()


def close(found, kept, atol):
    """Whether two nested lists hold the same, numbers within a tolerance."""
    if isinstance(kept, list):
        return len(found) == len(kept) and all(
            close(a, b, atol) for a, b in zip(found, kept, strict=True)
        )
    if kept is None:
        return found is None or math.isnan(found)
    if isinstance(found, float):
        return abs(found - kept) <= atol
    return found == kept


def numbers(values):
    if isinstance(values, list):
        return [n for each in values for n in numbers(each)]
    return [abs(values)] if isinstance(values, float) else []


@pytest.mark.parametrize("name", [name_of(page) for page in RUNNABLE])
def test_a_page_runs_and_its_figures_are_what_it_makes(made, name):
    names = made(name)
    for figure in FIGURES_OF.get(name, ()):
        kept = KEPT["figures"][figure]
        data = names[VARIABLES[figure]].data
        found = {key: (dims, values) for key, dims, values in figures_of(data)}
        assert sorted(found) == sorted(kept["data"]), figure
        for key, (dims, values) in found.items():
            was = kept["data"][key]
            assert dims == was["dims"], figure
            atol = CLOSE * max(numbers(was["values"]), default=0)
            assert close(values, was["values"], atol), f"{figure}: make figures"


def table_of_figures():
    """Figure -> (page, variable), read from the script without running it."""
    text = text_of(DOCS / "figures.py")
    return {
        figure: (page, variable)
        for figure, page, variable in re.findall(
            r'^    "([\w-]+)": \("([\w/-]+)", "(\w+)"\),$', text, re.MULTILINE
        )
    }


VARIABLES = {figure: variable for figure, (_, variable) in table_of_figures().items()}
FIGURES_OF = {}
for figure_, (page_, _) in table_of_figures().items():
    FIGURES_OF.setdefault(page_, []).append(figure_)


def test_a_number_that_differs_is_found():
    assert close([[1.0, float("nan")]], [[1.00001, None]], 1e-4)
    assert not close([[1.0, 2.0]], [[1.001, 2.0]], 1e-4)
    assert not close([[1.0, 2.0]], [[1.0, None]], 1e-4)
    assert not close(["red"], ["blue"], 1e-4)


def test_every_public_name_is_in_the_reference_once():
    said = [
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(
            r"^\.\. auto\w+:: mechvlm\.([\w.]+)$", text_of(page), re.M
        )
    ]
    modules = {name for name in said if "." not in name}
    wanted = sorted(set(mv.__all__) - {"__version__"})
    assert sorted(modules) == wanted
    assert {name for name in said if said.count(name) > 1} == set()


def test_no_module_in_the_reference_repeats_a_public_name():
    for page in (DOCS / "reference").glob("*.md"):
        for block in re.split(r"\n(?=\.\. auto)", text_of(page)):
            found = re.match(r"\.\. automodule:: mechvlm\.(\w+)\n", block)
            if found is None:
                continue
            module = __import__(f"mechvlm.{found[1]}", fromlist=["*"])
            left_out = re.findall(r":exclude-members: (.*)", block)
            left_out = set(", ".join(left_out).split(", "))
            kept = {
                name
                for name in set(module.__all__) - left_out
                if not isinstance(vars(module)[name], ModuleType)
            }
            # The engine's slow twin has an `intervene` of its own.
            twins = {"intervene"} if found[1] == "reference" else set()
            assert kept & set(mv.__all__) == twins, found[1]


def test_every_analysis_of_the_readme_has_its_page():
    table = text_of(ROOT / "README.md").split("## The analyses")[1].split("<!--")[0]
    rows = [row.split("|")[1:-1] for row in table.splitlines() if row.startswith("|")]
    pages = {page.stem: text_of(page) for page in (DOCS / "analyses").glob("*.md")}
    index = pages.pop("index")
    assert len(rows) - 2 == len(pages) == 20
    for row in rows[2:]:
        link = re.search(r"\]\(docs/analyses/([\w-]+)\.md\)", row[0])
        assert link, row[0]
        page = pages.pop(link[1])
        assert f"\n{link[1]}\n" in index
        for name in re.findall(r"`(\w+)`", row[2]):
            assert f"`~mechvlm.{name}`" in page, f"{link[1]} does not link {name}"
    assert pages == {}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_papers_figures_and_links_of_a_page_are_there(page):
    text = text_of(page)
    for key in re.findall(r"\(arxiv:([\d.]+)\)", text):
        assert f"arXiv:{key}" in mv.cite(f"arXiv:{key}")
    assert set(SHOWN.findall(text)) <= set(KEPT["figures"])
    for link in re.findall(r"\]\(([^)#:]+\.\w+)\)", text):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", sorted((DOCS / "analyses").glob("*.md")), ids=name_of)
def test_an_analysis_is_told_whole(page):
    if page.stem == "index":
        return
    text = text_of(page)
    assert re.match(r"# .+\n\n\*\*[^*]+\?\*\*\n\n", text), "no question"
    assert "\n```python\n" in text, "no example"
    assert "](arxiv:" in text, "no paper"
    assert SHOWN.search(text), "no figure"
    for heading in (r"## What 0 ", "## Controls and traps\n", "\\*\\*Reference:\\*\\*"):
        assert re.search(heading, text), heading


def test_the_names_of_other_pages_are_names():
    """Every `mv.name` that a page or the README writes is one."""
    for page in (*PAGES, ROOT / "README.md"):
        for name, inner in re.findall(r"\bmv\.(\w+)(?:\.(\w+))?", text_of(page)):
            assert hasattr(mv, name), f"{page}: mv.{name}"
            if inner and name in ("viz", "scenes", "readings", "selecting", "judges"):
                assert hasattr(getattr(mv, name), inner), f"{page}: mv.{name}.{inner}"


def test_every_picture_function_is_shown():
    text = text_of(DOCS / "pictures.md")
    values = {"DARK", "LIGHT", "Figure", "collapse"}
    assert [
        n for n in mv.viz.__all__ if f"viz.{n}(" not in text and n not in values
    ] == []


def test_every_notebook_is_listed():
    text = text_of(DOCS / "notebooks.md")
    there = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert re.findall(r"`(\d\d_\w+\.ipynb)`", text) == there


def test_every_name_that_a_page_links_is_in_the_reference():
    """A role whose name is misspelt would be plain text."""
    for page in PAGES:
        for kind, path in re.findall(
            r"\{py:(\w+)\}`(?:~|.*<)?([\w.]+)>?`", text_of(page)
        ):
            first, *rest = path.removeprefix("mechvlm.").split(".")
            found = getattr(mv, first)
            if isinstance(found, ModuleType):
                for name in rest:
                    found = getattr(found, name)
            wanted = "class" if isinstance(found, type) else "func"
            if isinstance(found, ModuleType):
                wanted = "mod"
            assert kind == wanted, f"{page}: {path}"


def test_the_citation_is_the_packages():
    kept = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert kept["cff-version"] == "1.2.0"
    assert kept["version"] == mv.__version__
    assert kept["license"] == "MIT"
    assert kept["authors"] == [{"name": "mechvlm contributors"}]
    assert {"message", "title", "type", "references"} <= set(kept)
    assert len(kept["references"]) == 3
    for paper in kept["references"]:
        (key,) = (each["value"] for each in paper["identifiers"])
        said = mv.cite(key)
        names = [author["family-names"] for author in paper["authors"]]
        assert said.startswith(f"{', '.join(names)}: {paper['title']}.")
        assert str(paper["year"]) in said
        assert paper["url"] == f"https://arxiv.org/abs/{key.removeprefix('arXiv:')}"
