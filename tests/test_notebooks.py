"""The notebooks' form: nothing here runs one; `make test` does, through nbmake."""

import ast
import json
import re
from importlib import util
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [
    "01_first_look",
    "02_activation_patching",
    "03_attention_knockout",
    "04_path_patching_and_circuits",
    "05_three_papers",
    "06_your_own_model_and_images",
    "07_speed",
]
CELL = {"markdown": {"cell_type", "id", "metadata", "source"}}
CELL["code"] = CELL["markdown"] | {"execution_count", "outputs"}

each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def cells_of(path):
    return json.loads(path.read_text("utf-8"))["cells"]


def text_of(cell):
    return "".join(cell["source"])


def code_of(cells):
    return [text_of(cell) for cell in cells if cell["cell_type"] == "code"]


def sections_of(path):
    """Cells from each heading of the second level to the next, by heading."""
    sections, heading = {}, ""
    for cell in cells_of(path):
        text = text_of(cell)
        if cell["cell_type"] == "markdown" and text.startswith("## "):
            heading = text.splitlines()[0]
            assert heading not in sections, f"{heading} is there twice"
        if heading:
            sections.setdefault(heading, []).append(cell)
    return sections


def calls_in(code):
    return [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]


def named(call):
    return ast.unparse(call.func)


def test_there_are_these_notebooks():
    assert [path.stem for path in PATHS] == NAMES


@each_notebook
def test_it_is_a_notebook_of_a_plain_kernel_without_anything_that_a_run_leaves(path):
    told = json.loads(path.read_text("utf-8"))
    nbformat.validate(nbformat.from_dict(told))
    assert (told["nbformat"], told["nbformat_minor"]) == (4, 5)
    assert told["metadata"] == {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    for cell in told["cells"]:
        assert set(cell) == CELL[cell["cell_type"]]
        assert cell["metadata"] == {}
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@each_notebook
def test_its_file_changes_only_where_its_cells_do(path):
    """Stable bytes: one source line a line, fixed order and ids, a line end last."""
    text = path.read_text("utf-8")
    told = json.loads(text)
    assert json.dumps(told, indent=1, ensure_ascii=False) + "\n" == text
    ids = [cell["id"] for cell in told["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(path.stem[:2] + r"-\w+", each) for each in ids)
    for cell in told["cells"]:
        *lines, last = cell["source"]
        assert last.strip() and not last.endswith("\n")
        assert all(line.count("\n") == 1 and line.endswith("\n") for line in lines)


@each_notebook
def test_it_opens_with_what_it_is_about_and_the_one_cell_that_takes_a_model(path):
    title, head, *rest = cells_of(path)
    assert re.match(r"# \w", text_of(title))
    assert f"notebooks/run.py --model PATH {path.stem[:2]}" in text_of(title)
    assert head["cell_type"] == "code"
    assert text_of(head) == text_of(cells_of(PATHS[0])[1])
    assert 'os.environ.get("MECHVLM_MODEL", "demo")' in text_of(head)
    assert "mv.load(MODEL)" in text_of(head)
    for cell in rest:
        assert "MECHVLM_MODEL" not in text_of(cell)


@pytest.mark.parametrize(
    ("model", "holds"), [("demo", True), ("/a/folder", True), ("/a/folder", False)]
)
def test_a_claim_is_told_of_any_model(model, holds, capsys):
    claim_of(model)(holds, "the last position reads it")
    said = capsys.readouterr().out
    assert said.endswith("the last position reads it\n")
    assert ("not hold" in said) is not holds


def test_a_claim_stops_the_demo_where_it_is_false():
    with pytest.raises(AssertionError, match="is false"):
        claim_of("demo")(False, "the last position reads it")


def claim_of(model):
    head = ast.parse(text_of(cells_of(PATHS[0])[1]))
    made = [node for node in head.body if isinstance(node, ast.FunctionDef)]
    world = {"MODEL": model}
    exec(compile(ast.Module(made, []), "head", "exec"), world)
    return world["claim"]


@each_notebook
def test_each_section_is_claim_call_picture_and_assert(path):
    sections = sections_of(path)
    assert len(sections) >= 5
    for heading, cells in sections.items():
        first, *_, last = cells
        assert "**Claim.** " in text_of(first), heading
        assert sum("**Claim.** " in text_of(cell) for cell in cells) == 1, heading
        code = "\n".join(code_of(cells))
        called = [named(call) for call in calls_in(code)]
        assert any(name.startswith(("mv.", "vlm.")) for name in called), heading
        assert any(pictures(source) for source in code_of(cells)), heading
        assert last["cell_type"] == "code", heading
        checked = ast.parse(text_of(last))
        assert any(
            isinstance(node, ast.Assert) for node in ast.walk(checked)
        ) or "claim" in [named(call) for call in calls_in(text_of(last))], heading


def pictures(source):
    """Whether a cell ends in a picture, so that it is shown."""
    last = ast.parse(source).body[-1]
    if not isinstance(last, ast.Expr) or not isinstance(last.value, ast.Call):
        return False
    name = named(last.value)
    return name.startswith("mv.viz.") or name.endswith(".resize")


@each_notebook
def test_every_figure_is_shown(path):
    """One that is not a cell's last word would be drawn and thrown away."""
    for source in code_of(cells_of(path)):
        drawn = [c for c in calls_in(source) if named(c).startswith("mv.viz.")]
        assert len(drawn) <= 1, source
        assert not drawn or pictures(source), source


@each_notebook
def test_claims_are_about_results_and_told_in_their_numbers(path):
    for source in code_of(cells_of(path)):
        for call in calls_in(source):
            if named(call) != "claim":
                continue
            holds, words = call.args
            assert any(isinstance(node, ast.Name) for node in ast.walk(holds)), source
            assert isinstance(words, ast.JoinedStr), source
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Assert):
                used = [n for n in ast.walk(node.test) if isinstance(n, ast.Name)]
                assert used, ast.unparse(node)


@each_notebook
def test_its_links_lead_somewhere(path):
    for cell in cells_of(path):
        if cell["cell_type"] == "markdown":
            for there in re.findall(r"\]\(([^)#]+)\)", text_of(cell)):
                assert there.startswith("https://") or (FOLDER / there).is_file(), there


def test_the_runner_takes_notebooks_by_how_their_names_begin():
    spec = util.spec_from_file_location("run", FOLDER / "run.py")
    run = util.module_from_spec(spec)
    spec.loader.exec_module(run)
    assert [path.stem for path in run.chosen([])] == NAMES
    assert [path.stem for path in run.chosen(["03", "01"])] == [NAMES[0], NAMES[2]]
    with pytest.raises(SystemExit, match="no notebook begins with 9: 01_first_look, "):
        run.chosen(["02", "9"])
