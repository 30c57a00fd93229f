"""The shell as such: help, exit codes, refusals, Ctrl-C, readers that leave."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

import mechvlm as mv
from mechvlm.cli import asked, main, patching
from mechvlm.cli.files import check_out, write_all
from mechvlm.cli.told import plain
from mechvlm.errors import OutputError

COMMANDS = [
    *("demo", "patch", "knockout", "lens", "ablate", "circuit", "reproduce"),
    *("report", "bench", "info"),
]
PYTHON = [sys.executable, "-c"]
HEAVY = ("torch", "transformers", "transformer_lens", "xarray", "matplotlib", "rich")


@pytest.fixture
def run(capsys, monkeypatch, demo):
    """What `mechvlm WORDS` prints, and its exit code; the demo is loaded once."""
    real = asked.load
    monkeypatch.setattr(
        asked, "load", lambda name, **how: demo if name == "demo" else real(name, **how)
    )

    def run(*words):
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        shown = capsys.readouterr()
        return shown.out, shown.err, left.value.code

    return run


# --- help -----------------------------------------------------------------------------


def test_every_help_comes_without_anything_heavy():
    """One process, all helps: what one of them loads is loaded at the end."""
    code = (
        "import contextlib, io, sys\n"
        "from mechvlm.cli import main\n"
        f"for words in ([], *([name] for name in {COMMANDS})):\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main([*words, '--help'])\n"
        f"print('loaded', [name for name in {HEAVY} if name in sys.modules])"
    )
    shown = subprocess.run([*PYTHON, code], capture_output=True, text=True, check=True)
    *helps, loaded = shown.stdout.splitlines()
    assert loaded == "loaded []"
    assert sum(line.startswith("Usage: ") for line in helps) == 11


def test_the_first_help_names_every_command_in_full(run):
    shown, _, code = run("--help")
    assert code == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} +[A-Z].*[^.][.?]$", shown, re.MULTILINE), name
    assert "2 refused" in re.sub(r"\s+", " ", shown)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_has_an_example_whose_options_exist(command, run):
    shown, _, code = run(command, "--help")
    assert code == 0
    _, _, example = shown.partition("Example:\n")
    words = shlex.split(example)
    assert words[:2] == ["mechvlm", command]
    for word in words[2:]:
        assert not word.startswith("--") or f"  {word} " in shown
    assert "--json" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


# --- refusals -------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder to stand in, with one picture and one that is none."""
    monkeypatch.chdir(tmp_path)
    tiny.picture(3).save("a.png")
    tiny.picture(4).save("b.png")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "empty").mkdir()
    return sorted(path.name for path in tmp_path.iterdir())


ASK = "--image a.png --question 'what color is the ring ?'"

REFUSED = [
    ("patch --image a.png", "missing is --question, --answer, --counterfactual"),
    (f"patch {ASK} --answer red", "missing is --counterfactual"),
    (f"patch {ASK} --answer red --counterfactual gone.png", "cannot read gone.png"),
    (
        f"patch {ASK} --answer red --counterfactual a.png",
        "--image and --counterfactual are the same to the model",
    ),
    (f"patch {ASK} --answer rot --counterfactual b.png", "rot"),
    ("patch --model empty", "missing is --image"),
    ("patch --device nowhere", "--device 'nowhere' is no device; wanted cpu"),
    ("patch --device meta", "--device 'meta' is no device; wanted cpu"),
    ("patch --site q --out taken", "taken is a file; wanted a folder"),
    ("patch --site q --out taken/deep/er", "taken is a file; wanted a folder"),
    ("demo --out taken/deep", "cannot write taken/deep"),
    ("reproduce neo --out taken/deep", "cannot write taken/deep"),
    ("knockout --image torn.png --question a --answer b", "cannot read torn.png"),
    (f"knockout {ASK} --answer 'red ring'", "red ring"),
    ("knockout --box 1,2", "--box '1,2' is not four numbers"),
    ("knockout --box 9,9,9,20", "holds no pixel: left 9 must lie before right 9"),
    ("knockout --box 0,0,900,900", "picture"),
    ("knockout --width 99", "width=99: a window has 1 to 8 layers"),
    ("lens --image a.png", "missing is --question"),
    ("lens --topk 0", "topk=0"),
    ("lens --object zebra", "begins with no token of this model"),
    (f"ablate {ASK} --answer red", "missing is --box"),
    ("ablate --random 0", "n_random=0"),
    ("ablate --value resample", "Give items of several pictures"),
    ("ablate --pairs ²", "² cannot be read as JSON"),
    ("circuit --pairs 1", "--pairs 1 are 1 pairs; wanted 2 or more"),
    ("circuit --pairs empty", "cannot be read as JSON"),
    ("circuit --pairs 4 --model a/b", "--pairs 4 cannot draw any"),
    ("report gone.nc", "cannot open gone.nc as a result"),
    ("report a.png", "a.png is no result: wanted files in .nc"),
    ("report gone.nc --out page.pdf", "wanted a name in .html"),
    ("bench --sweeps patch,swim", "'swim': there are patch, heads"),
    ("bench --image a.png", "missing is --question"),
    ("reproduce nobody", "no study is called 'nobody'"),
    ("demo --answer red", "needs all of --image"),
    ("info ''", "the name of the checkpoint is empty"),
    ("info empty", "folder without a config.json"),
    ("info ./gone", "there is no checkpoint folder"),
    ("info a.png", "a.png is a file"),
]


@pytest.mark.parametrize(("words", "told"), REFUSED, ids=[r[0] for r in REFUSED])
def test_a_refusal_is_one_message_and_leaves_nothing(words, told, run, files):
    out, err, code = run(*shlex.split(words))
    assert code == 2
    assert out == ""
    assert err.startswith("mechvlm: ")
    assert re.search(told, err)
    assert "Traceback" not in err
    assert sorted(path.name for path in Path.cwd().iterdir()) == files


@pytest.mark.parametrize("words", [("patch", "--siet", "z"), ("ablate", "--seed", -1)])
def test_an_unknown_option_or_value_is_refused_too(run, words):
    _, err, code = run(*words)
    assert code == 2
    assert words[1] in err


def test_a_full_disk_is_one_message(run, monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mechvlm.cli.installed.installed", full)
    out, err, code = run("info")
    assert (out, code) == ("", 2)
    assert err == "mechvlm: [Errno 28] No space left on device\n"


DEVICES = [
    ("cuda:1", 1, "finds 1 cuda device here"),
    ("cuda", 0, "finds no cuda device here"),
]


@pytest.mark.parametrize(("name", "n", "told"), DEVICES)
def test_a_device_that_is_not_there_is_refused(name, n, told, run, monkeypatch):
    monkeypatch.setattr(asked.torch.cuda, "device_count", lambda: n)
    _, err, code = run("lens", "--device", name)
    assert code == 2
    assert told in err


def test_a_hub_name_without_a_network_is_refused(run):
    _, err, code = run("info", "nobody/nothing")
    assert code == 2
    assert "'nobody/nothing' cannot be looked at" in err
    assert "HF_HUB_OFFLINE=1" in err


def test_a_finished_folder_of_another_command_is_not_spoiled(run, files):
    with mv.axes.output_folder("done") as folder:
        (folder / "page.html").write_text("a page")
    _, err, code = run("knockout", "--out", "done")
    assert code == 2
    assert "finished output of `mechvlm demo`" in err


# --- whole or not at all --------------------------------------------------------------


def test_files_take_their_names_together_or_not_at_all(tmp_path, capsys):
    out = tmp_path / "deep" / "er"

    def fails(path):
        path.write_text("half")
        raise OSError("no space")

    with pytest.raises(OutputError, match=r"no space\. Is there space on the disk"):
        write_all(out, {"a": lambda path: path.write_text("a"), "b": fails})
    assert list(tmp_path.iterdir()) == []
    (file,) = write_all(out, {"a": lambda path: path.write_text("one")})
    assert capsys.readouterr().err == ""
    (out / "other").write_text("stays")
    with pytest.raises(KeyboardInterrupt):
        write_all(out, {"a": lambda path: path.write_text("2"), "b": interrupted})
    assert file.read_text() == "one"
    assert write_all(out, {"a": lambda path: path.write_text("two")}) == (file,)
    assert capsys.readouterr().err == f"replaced   {file}\n"
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "a": "two",
        "other": "stays",
    }


def interrupted(path):
    raise KeyboardInterrupt


def test_ctrl_c_waits_while_files_take_their_names(tmp_path, monkeypatch):
    """Sent between two renames, it is heard after the second."""
    from mechvlm.cli import files

    real = files._placed

    def hit(*given):
        signal.raise_signal(signal.SIGINT)
        return real(*given)

    monkeypatch.setattr(files, "_placed", hit)
    with pytest.raises(KeyboardInterrupt):
        write_all(tmp_path, {"a": lambda path: path.write_text("whole")})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_folder_that_cannot_be_written_is_refused_first(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="cannot be written to"):
        check_out(tmp_path / "new")


def test_ctrl_c_in_the_midst_of_a_sweep(run, monkeypatch, tmp_path):
    monkeypatch.setattr(patching, "patched", interrupted_sweep)
    out, err, code = run("patch", "--out", tmp_path / "out")
    assert (out, code) == ("", 130)
    assert err.splitlines()[-1] == "mechvlm: stopped"
    assert list(tmp_path.iterdir()) == []


def interrupted_sweep(*_, **__):
    raise KeyboardInterrupt


MIDST = """
import sys, time
from pathlib import Path
from mechvlm.cli import installed, main
from mechvlm.cli.files import write_all

def slow(path):
    path.write_text("half")
    print("midst", flush=True)
    time.sleep(60)

def command():
    write_all(Path(sys.argv[1]), {"a": lambda path: path.write_text("a"), "b": slow})

installed.installed = command
main(["info"])
"""
"""A command that loads nothing heavy, and writes as all of them do."""


def test_a_real_ctrl_c_leaves_no_file_and_no_traceback(tmp_path):
    """SIGINT when the second of two files is half written."""
    child = subprocess.Popen(
        [*PYTHON, MIDST, str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "midst\n"
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (out, err, child.returncode) == ("", "mechvlm: stopped\n", 130)
    assert list(tmp_path.iterdir()) == []


HIT = """
import sys

class Hit:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Hit())
import mechvlm.cli
"""


def test_ctrl_c_before_anything_is_loaded():
    shown = subprocess.run([*PYTHON, HIT], capture_output=True, text=True, check=False)
    assert (shown.stderr, shown.returncode) == ("mechvlm: stopped\n", 130)


# --- what is printed ------------------------------------------------------------------

LEFT = """
import sys
from mechvlm.cli import installed, main
from mechvlm.cli.told import Told
installed.installed = lambda: Told("info", ["one", "two"], {})
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("words", "code"), [(["info"], 141), (["--help"], 1)])
def test_a_reader_that_leaves_gets_no_traceback(words, code):
    """As in `mechvlm info | head -1`, with a head that has gone already."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        shown = subprocess.run(
            [*PYTHON, LEFT, *words],
            stdout=nobody,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (shown.stderr, shown.returncode) == ("", code)


def test_json_holds_no_nan_and_nothing_of_numpy():
    assert plain({"a": float("inf"), 1: [True, None, "x"]}) == {
        "a": None,
        "1": [True, None, "x"],
    }
    with pytest.raises(TypeError, match="complex is not told as JSON"):
        plain(1j)


def test_info_is_one_object_too(run):
    out, err, code = run("info", "--json")
    told = json.loads(out)
    assert (told["command"], told["files"], err, code) == ("info", [], "", 0)
    assert told["mechvlm"] == mv.__version__
