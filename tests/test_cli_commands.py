"""What each command tells and writes, beside the public calls that it stands for."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import mechvlm as mv
from mechvlm.cli import asked, finding, main, patching, seeing
from mechvlm.demo.case import Case

SCENE = mv.scenes.sample(seed=3, n=1)
THING = SCENE.things[0].shape
RED, BLUE = (SCENE.recolored(0, color).image for color in ("red", "blue"))
BOX = SCENE.box(0)
ASK = f"what color is the {THING} ?"


@pytest.fixture
def pictures(tmp_path):
    RED.save(tmp_path / "red.png")
    BLUE.save(tmp_path / "blue.png")
    return [
        *("--image", tmp_path / "red.png", "--question", ASK),
        *("--box", ",".join(map(str, BOX))),
    ]


@pytest.fixture
def told(capsys, monkeypatch, demo, tmp_path):
    """The JSON of `mechvlm WORDS --json`, run in a folder of the test's own."""
    monkeypatch.setattr(asked, "load", lambda *_, **__: demo)
    monkeypatch.setattr(finding, "loaded", lambda *_, **__: demo)
    monkeypatch.chdir(tmp_path)

    def told(*words, code=0):
        with pytest.raises(SystemExit) as left:
            main([*map(str, words), "--json"])
        assert left.value.code == code
        out = capsys.readouterr().out
        (line,) = out.splitlines()
        found = json.loads(line)
        assert {"command", "n", "units", "paper", "files"} <= found.keys()
        for file in found["files"]:
            assert (tmp_path / file).stat().st_size > 100
        return found

    return told


@pytest.fixture
def said(capsys, monkeypatch, demo, tmp_path):
    """What people read, line by line, of a command that is done."""
    monkeypatch.setattr(asked, "load", lambda *_, **__: demo)
    monkeypatch.chdir(tmp_path)

    def said(*words):
        with pytest.raises(SystemExit) as left:
            main([*map(str, words)])
        assert left.value.code == 0
        return capsys.readouterr().out.splitlines()

    return said


@pytest.fixture
def prompts(demo):
    return demo.prompt(ASK, RED), demo.prompt(ASK, BLUE)


def suffixes(found):
    return sorted(name.rsplit("/", 1)[-1] for name in found["files"])


# --- patch ----------------------------------------------------------------------------


def patched(demo, prompts, **how):
    metric = mv.logit_difference(demo, "red", "blue")
    return mv.activation_patching(demo, *prompts, metric=metric, **how)


def words_of_patch(pictures, tmp_path):
    twin = ("--counterfactual", tmp_path / "blue.png")
    return ("patch", *pictures, *twin, "--answer", "red", "--foil", "blue")


def test_patch_is_activation_patching(told, pictures, prompts, demo, tmp_path):
    found = told(*words_of_patch(pictures, tmp_path))
    heat, layout = patched(demo, prompts), prompts[0].layout
    saved = mv.open_result(tmp_path / "mechvlm-patch" / "patching.nc")
    np.testing.assert_allclose(saved.values, heat.values, atol=1e-5)
    assert suffixes(found) == [
        *("patching-image.html", "patching-image.png"),
        *("patching.html", "patching.nc", "patching.png"),
    ]
    first = found["best"][0]
    own = heat.sel(layer=first["layer"], position=first["position"])
    assert first["recovery"] == pytest.approx(float(heat.max()), abs=1e-5)
    assert first["recovery"] == pytest.approx(float(own), abs=1e-5)
    assert found["n"] == heat.size
    assert (found["units"], found["paper"]) == (heat.units, heat.paper)
    assert found["clean"] == pytest.approx(heat.clean, abs=1e-4)
    p = demo(prompts[1])[0, -1].detach().softmax(dim=-1)
    told_p = found["probabilities"]["corrupted"]
    assert told_p["says"] == "blue"
    for name, word in {"answer": "red", "foil": "blue"}.items():
        wanted = float(p[demo.to_single_token(word)])
        assert told_p[name] == pytest.approx(wanted, abs=1e-6)
    image = heat.sel(position=list(layout["image"]))
    layer, at = np.unravel_index(int(image.values.argmax()), image.shape)
    row, col = divmod(int(at), layout.grids[0].cols)
    since = int(np.flatnonzero(heat[:, -1].values >= 0.5)[0])
    assert found["found"] == (
        f"In the image the answer is read most at layer {layer}: patching the image"
        f" cell in row {row}, column {col} restores {round(100 * float(image.max()))}"
        f" %; from layer {since} on it stands at the last position"
        f" ({round(100 * float(heat[since, -1]))} %)."
    )


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_patch_by_head(told, pictures, prompts, demo, tmp_path, direction):
    """What changes the answer most comes first: restored most, or left least."""
    words = words_of_patch(pictures, tmp_path)
    found = told(*words, "--site", "z", "--direction", direction, "--out", "heads")
    heat = patched(demo, prompts, site="z", direction=direction)
    at = heat.values.argmax() if direction == "denoise" else heat.values.argmin()
    layer, head = np.unravel_index(int(at), heat.shape)
    first = found["best"][0]
    assert (first["layer"], first["head"]) == (layer, head)
    assert first["recovery"] == pytest.approx(float(heat[layer, head]), abs=1e-5)
    assert f"L{layer}.H{head} counts most" in found["found"]
    assert suffixes(found) == ["patching.html", "patching.nc", "patching.png"]


LAST = [
    ("resid_pre", [0.2, 0.5, 0.6], "from layer 1 on it stands at the last position"),
    ("resid_pre", [0.6, 0.2, 0.7], "from layer 2 on it stands at the last position"),
    ("resid_pre", [0.6, 0.7, 0.2], "alone restores most at layer 1 (70 %)"),
    ("mlp_out", [0.6, 0.5, 0.8], "alone restores most at layer 2 (80 %)"),
]


@pytest.mark.parametrize(("site", "values", "words"), LAST)
def test_it_stands_at_the_last_position_where_it_stays(demo, site, values, words):
    prompt = demo.prompt(ASK, RED)
    case = Case(ASK, RED, BLUE, "red", "blue", None, "")
    one = asked.Twins(demo, case, prompt, prompt, "blue")
    heat = xr.DataArray(
        np.zeros((3, prompt.layout.n)) - 0.25,
        {"position": range(prompt.layout.n), "layer": range(3)},
        ("layer", "position"),
        attrs={"site": site, "direction": "denoise", "cells_together": 1},
    )
    heat[:, -1] = values
    sentence = patching._sentence(one, heat)
    assert words in sentence
    assert sentence.startswith("No image cell that is patched alone restores anything;")


def test_a_foil_that_is_left_out_is_what_the_counterfactual_says(
    told, pictures, tmp_path
):
    words = words_of_patch(pictures, tmp_path)[:-2]
    assert told(*words, "--site", "z")["foil"] == "blue"


# --- knockout -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "windows"),
    [
        ("window", [range(at, min(at + 3, 8)) for at in range(8)]),
        ("centred", [range(max(0, at - 1), min(at + 2, 8)) for at in range(8)]),
        ("from", [range(at, 8) for at in range(8)]),
        ("upto", [range(at + 1) for at in range(8)]),
    ],
)
def test_knockout_is_knockout_windows(told, pictures, prompts, demo, mode, windows):
    words = ("--answer", "red", "--mode", mode, "--width", 3)
    found = told("knockout", *pictures, *words)
    layout = prompts[0].layout
    thing = layout.region(BOX)
    readers = {"last": layout["last"], "question": layout["query"]}
    sources = {
        "image": layout["image"],
        "object": thing,
        "background": layout["image"] - thing,
        "question": layout["query"],
    }
    assert len(found["cuts"]) == 7
    for cut in found["cuts"]:
        source, reader = cut["cut"].split(" → ")
        own = (readers[reader], sources[source])
        drop = mv.knockout_windows(
            demo,
            prompts[0],
            {"cut": own},
            answer="red",
            windows={str(at): each for at, each in enumerate(windows)},
        )[0]
        assert cut["each"] == pytest.approx(drop.values.tolist(), abs=1e-3)
        assert cut["change"] == min(cut["each"])
        window = windows[cut["layer"]]
        assert cut["layers"] == [window[0], window[-1]]
    worst = min(found["cuts"], key=lambda cut: cut["change"])
    assert worst["cut"] in found["found"]
    assert f"{round(-worst['change'])} % of the" in found["found"]
    assert found["n"] == 7 * 8


WHOLE = ("--box", "0,0,72,72")


def test_a_box_of_the_whole_image_leaves_no_background(told, said):
    found = told("knockout", *WHOLE, "--mode", "from")
    names = [cut["cut"] for cut in found["cuts"]]
    assert names[3:] == ["object → last", "object → question"]
    assert told("lens", *WHOLE, "--object", "ring")["named"].keys() == {"object"}
    shown = " ".join(said("ablate", *WHOLE))
    assert "; no random cells are left to compare it with." in shown
    assert "random ones" not in shown


def test_without_a_box_the_image_is_cut_as_a_whole(told, pictures):
    found = told("knockout", *pictures[:-2], "--answer", "red")
    names = [cut["cut"] for cut in found["cuts"]]
    assert names == ["image → last", "image → question", "question → last"]


# --- lens -----------------------------------------------------------------------------


def test_lens_is_the_logit_lens(told, pictures, prompts, demo):
    found = told("lens", *pictures, "--object", THING, "--topk", 3, "--answer", "red")
    read = mv.logit_lens(demo, prompts[0], topk=3)
    thing = prompts[0].layout.region(BOX)
    rate = mv.object_hit_rate(read, [THING], thing, topk=3)
    assert found["named"]["object"] == pytest.approx(rate.values.tolist())
    assert found["named"].keys() == {"object", "background"}
    for layer, own in enumerate(found["words"]):
        said = [str(word).strip() for word in read["word"][layer, :, 0].values]
        assert own["layer"] == layer
        assert all(said.count(word) == n for word, n in own["most_said"])
        top = max(said.count(word) for word in said)
        assert own["most_said"][0][1] == top
    assert found["n"] == read["word"][:, :, 0].size
    rank = mv.answer_track(demo, prompts[0], {"red": "red"})["rank"][0].values
    since = max(np.flatnonzero(rank > 0), default=-1) + 1
    assert f"says “red” from layer {since} on" in found["found"]
    assert suffixes(found) == ["lens.html", "lens.nc", "lens.png"]


def test_a_word_of_several_tokens_is_said_to_begin(told, pictures):
    found = told("lens", *pictures, "--object", "red ring")["found"]
    assert "have the beginning of “red ring” among its 5 best words" in found


def test_a_token_that_cannot_be_seen_is_shown():
    assert seeing._table({0: [("", 16), ("red", 2)]})[1] == "    0  ␣ (16), red (2)"


def test_the_lens_tells_of_an_answer_that_is_not_given(told, pictures):
    found = told("lens", *pictures, "--answer", "blue")
    assert "does not answer “blue”" in found["found"]
    assert found["object"] is None


# --- ablate ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Four pairs in files, as one's own."""
    made = []
    for seed in (0, 1, 2, 4):
        scene = mv.scenes.sample(seed=seed, n=2)
        pair = mv.scenes.counterfactual(scene, "color", seed=seed).pair
        made.append(replace(pair, id=f"own {seed}"))
    return mv.datasets.pairs.write(made, tmp_path / "pairs")


def test_ablate_is_token_ablation(told, folder, demo):
    found = told("ablate", "--pairs", folder, "--buffer", 0, "--buffer", 2, "--seed", 5)
    items = [
        mv.Item(
            pair.clean,
            pair.question,
            pair.answer,
            objects=pair.objects,
            target=pair.target,
            id=pair.id,
        )
        for pair in mv.datasets.pairs.read(folder)
    ]
    tokens = mv.selecting.object_tokens
    sets = {"object": tokens(), "wider": tokens(buffer=2)}
    lost = mv.token_ablation(demo, items, sets, metric=mv.readings.vqa(), seed=5)
    assert [each["set"] for each in found["sets"]] == [
        "object",
        "object and 2 rings around it",
    ]
    for own, name in zip(found["sets"], sets, strict=True):
        for what in ("decrease", "control", "n_tokens", "log_p_change"):
            wanted = float(lost[what].sel(set=name)[0])
            assert own[what] == pytest.approx(wanted, abs=1e-5)
    assert found["n_right"] == int(lost["n_correct"][0])
    assert (found["items"], found["paper"]) == (4, lost.attrs["paper"])


def test_ablate_asks_about_a_box(said, pictures):
    shown = "\n".join(said("ablate", *pictures, "--answer", "red", "--random", 2))
    assert "1 of 1 are right before" in shown
    assert "the answer is lost; without 2 random sets of as many cells" in shown


# --- circuit --------------------------------------------------------------------------


def test_circuit_is_found_on_some_pairs_and_judged_by_others(told, folder, demo):
    words = ("--pairs", folder, "--size", 12, "--top", 40)
    found = told("circuit", *words)
    pairs = [mv.bind(demo, pair) for pair in mv.datasets.pairs.read(folder)]
    own = mv.discover(demo, pairs[::2], size=12, top=40)
    judged = mv.faithfulness(demo, pairs[1::2], own)
    saved = mv.Circuit.open("mechvlm-circuit/circuit.json")
    assert saved == own
    assert found["edges"] == len(own) <= 12
    assert found["effects"] == pytest.approx(dict(own.effects), abs=1e-5)
    assert found["faithfulness"] == pytest.approx(float(judged["faithfulness"][0]))
    assert found["without"] == pytest.approx(float(judged["without"][0]), abs=1e-5)
    assert found["found_on"] == ["own 0", "own 2"]
    assert found["judged_on"] == ["own 1", "own 4"]
    assert f"keep {round(100 * found['faithfulness'])} %" in found["found"]


def test_circuit_may_look_among_chosen_heads(told):
    found = told("circuit", "--pairs", 2, "--size", 10, "--heads", 1)
    assert len(found["heads"]) <= 1
    assert found["found_on"] == ["scene 0"]


# --- report, info ---------------------------------------------------------------------


def test_report_puts_results_on_a_page(told, pictures, tmp_path):
    told("knockout", *pictures, "--answer", "red")
    saved = tmp_path / "mechvlm-knockout" / "knockout.nc"
    found = told("report", saved, "--out", tmp_path / "new" / "page.html")
    assert found["files"] == [str(tmp_path / "new" / "page.html")]
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "image → last" in page
    assert found["paper"] == ["arXiv:2411.18620"]


def test_info_tells_a_checkpoint_from_its_config(capsys, demo):
    with pytest.raises(SystemExit) as left:
        main(["info", "demo", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert left.value.code == 0
    cfg = demo.cfg
    assert found["supported"] is True
    assert (found["layers"], found["heads"]) == (cfg.n_layers, cfg.n_heads)
    assert (found["d_model"], found["family"]) == (cfg.d_model, cfg.family)
    assert found["image_tokens"] == len(demo.prompt(ASK, RED).layout["image"])
    assert found["dtype"] == str(cfg.dtype).removeprefix("torch.")
    weights = sum(x.numel() * x.element_size() for x in demo.hf_model.parameters())
    assert weights <= found["bytes_on_disk"] < 1.2 * weights


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"twist": 3}, r"keys that family 'llava' does not understand: \['twist'\]"),
        (
            {"architectures": ["MllamaForConditionalGeneration"]},
            "architecture MllamaForConditionalGeneration is not known here",
        ),
        ({"model_type": "unheard-of"}, "unheard-of"),
        ({"vision_feature_select_strategy": "full"}, "keeps the CLS token"),
    ],
)
def test_info_tells_why_a_checkpoint_is_refused(
    tiny_checkpoint, tmp_path, capsys, change, why
):
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(SystemExit) as left:
        main(["info", str(tmp_path)])
    shown = capsys.readouterr().out
    assert left.value.code == 1
    assert re.search(r"^supported +no$", shown, re.MULTILINE)
    assert "none in this folder" in shown
    assert re.search(why, shown)
    assert "What can be done:" in shown
