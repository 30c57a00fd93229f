"""Each analysis's result on a page: known again, drawn, and said in its own numbers."""

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from reported import MADE, SCENE, SHAPE, made

from mechvlm.axes import open_result, save_result
from mechvlm.errors import ResultError
from mechvlm.graph.circuit import Circuit
from mechvlm.papers import PAPERS
from mechvlm.report import analysis_of, figures_of

KINDS = {
    "activation_patching": ["overlay", "map"],
    "attribution_patching": ["overlay", "map"],
    "path_patching": ["map"],
    "integrated_gradients": ["overlay"],
    "gradient_x_input": ["overlay", "map"],
    "screen_then_verify": ["bars"],
    "knockout_windows": ["lines"],
    "knockout_accuracy": ["bars"],
    "caption_knockout": ["lines"],
    "cumulative_knockout": ["lines"],
    "back_patch": ["map"],
    "freeze": ["lines"],
    "cross_patch": ["lines"],
    "modality_gap": ["bars"],
    "mme": ["bars"],
    "token_ablation": ["bars"],
    "context_accuracy": ["bars"],
    "logit_lens": ["lens"],
    "object_hit_rate": ["lines"],
    "object_lens": ["lines"],
    "answer_track": ["lines", "lines"],
    "attention_fraction": ["lines"],
    "pool_fractions": ["lines"],
    "attention_map": ["overlay"],
    "attention_rollout": ["overlay"],
    "localization": ["lines"],
    "localization_accuracy": ["lines"],
    "attention_patterns": ["map", "map", "attention"],
    "discover": ["circuit"],
    "faithfulness": ["bars"],
    "completeness": ["bars"],
    "minimality": ["bars"],
    "random_baseline": ["bars"],
    "circuit_overlap": ["bars"],
    "flow_graph": ["flow"],
}


def said(value):
    """Three digits and a hyphen, as these tests write numbers."""
    return f"{value:.3g}".replace("e-0", "e-")


def share(value):
    return f"{100 * value:.0f} %"


def plain(text):
    return text.replace("\N{MINUS SIGN}", "-").replace("\N{NO-BREAK SPACE}", " ")


def top(array):
    """The largest value and its coordinates."""
    stacked = array.stack(cell=array.dims)
    best = stacked.isel(cell=int(np.nanargmax(stacked.values)))
    return float(best), {dim: best[dim].item() for dim in array.dims}


def patched(result):
    best, at = top(result)
    cells = result.isel(position=result["group"].values == "image")
    of_image, there = top(cells)
    return [
        f"{said(best)} of the gap",
        f"layer {at['layer']}, position {at['position']}",
        f"layer {there['layer']}, position {there['position']} (image)",
        f"{said(of_image)} of the gap",
    ]


def sent(result):
    effect = result["effect"].isel(receiver=0)
    best, at = top(abs(effect))
    value = float(effect.sel(at))
    assert abs(value) == best
    return [f"layer {at['layer']}, head {at['head']} to logits", f"{said(value)} of"]


def attributed(result):
    at = int(np.abs(result.values).argmax())
    return [f"position {at}", f"{said(result.values[at])} nats"]


def screened(found):
    best = int(np.abs(found["effect"].values).argmax())
    spearman = found.attrs["agreement"]["all"]["spearman"]
    return [
        f"{found['candidate'].values[best]} does most",
        f"{said(found['effect'].values[best])} of the gap is lost",
        f"Of 32 candidates {found.sizes['candidate']} were",
        f"Spearman {spearman:.2f}",
    ]


def cut(result):
    value, at = top(-result)
    return [
        f"{at['cut'].replace('->', '→')} in layer {at['layer']} and all later ones",
        f"of “one” changes by {said(-value)} %",
        f"it is {said(result.attrs['clean'])}",
    ]


def cut_over_items(found):
    worst = float(found["accuracy"].min())
    n = int(found["n"].values.flat[0])
    return [share(worst) if worst < 1 else f"all of {n} item stay right"]


def described(found):
    f1 = found["mean"].sel(measure="f1")
    return [f"F1 {said(float(f1.min()))}, against {said(float(f1.isel(cut=0).max()))}"]


def cumulated(found):
    return [
        f"nothing cut {share(found['rate'].values[0])} of 1 item",
        f"8 layers cut top-down {share(found['rate'].values[-1])}",
    ]


def put_back(found):
    best, at = top(found["rate"])
    tried = int(found["rate"].notnull().sum())
    return [
        f"best {share(best)}",
        f"h[{at['source']}] put into layer {at['target']}",
        f"against {share(float(found['right_clean'].mean()))}",
        f"of {tried} cells",
    ]


def held(found):
    low, high = (float(found[f"rate_{end}"][0]) for end in ("low", "high"))
    first = share(float(found["rate"][0]))
    return [
        f"layer 0 on {first} ({share(low)} to {share(high)}) of 1 item",
        f"against {share(float(found['right_clean'].mean()))} with nothing held",
    ]


def exchanged(found):
    critical = int(found["critical_layer"])
    return [
        f"layer 0, {share(float(found['injected'][0]))}",
        f"layer 7, {share(float(found['injected'][-1]))}",
        f"From layer {critical} on",
    ]


def told(found):
    name, picture = (float(found[f"mean_by_{way}"]) for way in ("name", "picture"))
    return [
        f"{share(name)} are told by name and {share(picture)} by picture",
        f"a gap of {100 * (name - picture):.0f} points",
        f"{int(found['n_recognised'])} of 1 entities",
    ]


def ablated(found):
    low, high = (float(found[f"decrease_{end}"][0, 0]) for end in ("low", "high"))
    lost, control = (float(found[name][0, 0]) for name in ("decrease", "control"))
    return [
        f"“object” loses {share(lost)} ({share(low)} to {share(high)}) of 1 right",
        f"random sets of its size {share(control)}",
    ]


def read(lens):
    best, at = top(lens["probability"].isel(k=0))
    words = lens["word"].isel(k=0).values.ravel().tolist()
    most = max(words, key=words.count)
    return [
        f"{share(best)} at layer {at['layer']}, position {at['position']}",
        f"“{most}”, in {words.count(most)} of {len(words)} cells",
    ]


def looked_at(found):
    rate = found["hit_rate"].mean("object")
    best, at = top(rate)
    named = float((found["hit_rate"].max("layer") > 0).mean())
    return [f"{share(named)} of 1 object", f"layer {at['layer']}: {share(best)}"]


def tracked(found):
    first = found["rank"].sel(answer="one").values == 0
    since = next(layer for layer in range(9) if first[layer:].all())
    end = share(float(found["probability"].sel(answer="one")[-1]))
    above = int(found["rank"].sel(answer="two")[-1])
    return [
        f"“one” is first from layer {since} on ({end}",
        f"“two” ends with {above} token",
    ]


def split(shares):
    """Each group's share over all layers, and the image's best layer."""
    whole = shares.mean([dim for dim in shares.dims if dim != "group"])
    best, at = top(
        shares.sel(group="image").mean(
            [d for d in shares.dims if d not in ("group", "layer")]
        )
    )
    each = [f"{g} {share(float(whole.sel(group=g)))}" for g in whole["group"].values]
    return [*each, f"at layer {at['layer']}: {share(best)}"]


def mapped(maps):
    best, at = top(maps)
    position = 3 + 9 * at["grid_row"] + at["grid_col"]
    whole, where = top(maps.sum(["grid_row", "grid_col"]))
    return [
        f"position {position} at layer {at['layer']}, {share(best)}",
        f"layer {where['layer']}, {share(whole)}",
    ]


def rolled(found):
    last = found["rollout"].isel(layer=-1, row=0)
    image = float(last.isel(source=last["source_group"].values == "image").sum())
    return [f"image {share(image)}"]


def located(found):
    mass, at = top(found["mass"])
    hits = int(found["hit"].values.sum())
    return [
        f"in {hits} of 8 maps (by chance {share(9 / 81)})",
        f"layer {at['layer']}: {share(mass)}",
    ]


def patterned(patterns):
    last = patterns.isel(target=-1)
    best, at = top(
        last.isel(source=last["source_group"].values == "image").sum("source")
    )
    return [f"Head {at['head']} of layer {at['layer']}", f"{said(best)} of its row"]


def wired(circuit):
    edge, effect = max(circuit.effects.items(), key=lambda each: abs(each[1]))
    heads = {node for node in circuit.nodes if str(node).startswith("L")}
    return [
        f"{len(circuit.edges)} edges join {len(circuit.nodes)} nodes",
        f"{len(heads)} heads among them ({share(len(heads) / 32)}",
        edge.replace("->", "→"),
        f"{said(effect)} of the gap is lost",
    ]


def missing(found):
    gap = np.abs(found["circuit"].values - found["model"].values)
    return [f"by {said(gap.max())} of the gap (0: the circuit is complete)"]


def needed(found):
    loss = found["loss"].values
    most, least = (found["part"].values[i] for i in (loss.argmax(), loss.argmin()))
    return [
        f"Without {most} most is lost, {said(loss.max())}",
        f"without {least} least, {said(loss.min())}",
    ]


def flowed(flows):
    kept = flows["kept"].values.astype(bool)
    words = [f"{int(kept.sum())} cut"]
    if kept.any():
        words.append(f"{said(flows['effect'].values[kept].min())} % of the answer's")
    return words


SAYS = {
    "activation_patching": patched,
    "attribution_patching": patched,
    "path_patching": sent,
    "integrated_gradients": attributed,
    "gradient_x_input": attributed,
    "screen_then_verify": screened,
    "knockout_windows": cut,
    "knockout_accuracy": cut_over_items,
    "caption_knockout": described,
    "cumulative_knockout": cumulated,
    "back_patch": put_back,
    "freeze": held,
    "cross_patch": exchanged,
    "modality_gap": told,
    "mme": lambda f: [f"{share(float(f['correct'].mean()))} of questions are right"],
    "token_ablation": ablated,
    "context_accuracy": lambda f: [f"answers {share(float(f['accuracy'][0]))}"],
    "logit_lens": read,
    "object_hit_rate": lambda r: [f"{share(float(r.max()))} of 9", f"“{SHAPE}”"],
    "object_lens": looked_at,
    "answer_track": tracked,
    "attention_fraction": lambda f: split(f["fraction"]),
    "pool_fractions": lambda f: split(f["prompt_mean"]),
    "attention_map": mapped,
    "attention_rollout": rolled,
    "localization": located,
    "localization_accuracy": lambda f: [
        f"layer {top(f['accuracy'])[1]['layer']} ",
        f"{share(float(f['accuracy'].max()))} of 1 object",
        f"find {share(float(f['chance'][0]))}",
    ],
    "attention_patterns": patterned,
    "discover": wired,
    "faithfulness": lambda f: [
        f"“circuit”, {int(f['edges'][0])} edges and {int(f['heads'][0])} heads",
        f"keeps {said(float(f['faithfulness'][0]))} of",
        f"{said(float(f['without'][0]))} is kept",
    ],
    "completeness": missing,
    "minimality": needed,
    "random_baseline": lambda f: [
        f"keeps {said(f.attrs['circuit'])} of",
        f"size {said(float(f['faithfulness'].max()))}",
        f"p = {f.attrs['p']:.2g}",
    ],
    "circuit_overlap": lambda f: ["Of 2 edges", "1 edge of the second", "Jaccard 0.5"],
    "flow_graph": flowed,
}

pytestmark = pytest.mark.filterwarnings("ignore::mechvlm.MechVLMWarning")


def test_every_analysis_is_tried():
    assert set(KINDS) == set(SAYS) == set(MADE)


@pytest.mark.parametrize("analysis", MADE)
def test_a_result_is_known_drawn_and_said_in_its_own_numbers(analysis, tmp_path):
    result = made(analysis)
    before = result if isinstance(result, Circuit) else result.copy(deep=True)
    assert analysis in analysis_of(result).split(", ")
    shown = figures_of(result, SCENE.image)
    assert [one.figure.kind for one in shown] == KINDS[analysis]
    text = plain(" ".join(one.sentence for one in shown))
    for words in SAYS[analysis](result):
        assert words in text, text
    assert all(PAPERS[key] in shown[0].citation for key in keys(result))
    assert result == before if isinstance(result, Circuit) else result.identical(before)
    again = figures_of(kept(result, tmp_path), SCENE.image)
    assert [one.sentence for one in again] == [one.sentence for one in shown]


def keys(result):
    known = result.about if isinstance(result, Circuit) else result.attrs
    return [known["paper"]]


def kept(result, folder):
    if isinstance(result, Circuit):
        return Circuit.open(result.save(folder / "circuit.json"))
    return open_result(save_result(result, folder / "result.nc"))


def test_without_a_picture_the_map_alone_is_drawn():
    (only,) = figures_of(made("activation_patching"))
    assert only.figure.kind == "map"
    (lens,) = figures_of(made("logit_lens"))
    assert lens.figure.kind == "lens"


def test_another_picture_is_refused():
    with pytest.raises(ResultError, match=r"has 30 x 40 pixels.*reach to 72 x 72"):
        figures_of(made("activation_patching"), Image.new("RGB", (30, 40)))


def test_noise_says_what_is_left():
    result = made("activation_patching").assign_attrs(direction="noise")
    (shown,) = figures_of(result)
    assert "Least is left" in shown.sentence
    assert f"{said(float(result.min()))} of the gap" in plain(shown.sentence)


def array(values, dims, **coords):
    return xr.DataArray(np.asarray(values, float), coords, dims, name="share")


PLAIN = {
    "lines": array([[0, -4], [1, 2]], ("cut", "layer"), cut=["a", "b"]),
    "lines, layers first": array([[0, -4], [1, 2]], ("layer", "cut"), cut=["a", "b"]),
    "map": array([[0, -4], [1, 2]], ("layer", "head")),
    "bars": array([[0, -4], [1, 2]], ("way", "set"), way=["x", "y"], set=["a", "b"]),
    "bars of one": array([0, -4], "set", set=["a", "b"]),
    "lines of one": array([0, -4], "layer"),
    "map of tokens": array([0, -4], "position", token=("position", ["red", "one"])),
    "lines, one cut": array([[0, -4]], ("cut", "layer"), cut=["a->b"]),
    "lines, one row": array([[[0, -4]]], ("row", "set", "layer")),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_unknown_numbers_are_drawn_by_their_dimensions(kind):
    assert analysis_of(PLAIN[kind]) == ""
    (shown,) = figures_of(PLAIN[kind])
    assert shown.figure.kind == kind.split()[0].strip(",")
    assert "farthest from 0 is" in shown.sentence
    assert plain(shown.sentence).endswith("with -4.")
    assert ("a→b" in shown.sentence) == ("one cut" in kind)
    assert shown.citation == ""


def test_unknown_numbers_over_positions_lie_on_the_picture():
    heat = made("activation_patching").rename("mine") * 2
    heat.attrs = {"grids": made("activation_patching").attrs["grids"]}
    kinds = [one.figure.kind for one in figures_of(heat, SCENE.image)]
    assert kinds == ["overlay", "map"]


def test_what_cannot_be_drawn_says_why():
    with pytest.raises(ResultError, match=r"dimensions \('a', 'b', 'c'\); one or two"):
        figures_of(array(np.ones((2, 2, 2)), ("a", "b", "c")))
    with pytest.raises(ResultError, match="Give the result it is part of"):
        figures_of(array(1.0, ()))
    with pytest.raises(ResultError, match="holds <U3 and no numbers"):
        figures_of(xr.DataArray(["red"], dims="item"))
    with pytest.raises(ResultError, match=r"no analysis .* these variables: 'mine'"):
        figures_of(xr.Dataset({"mine": ("layer", [1.0])}))
    with pytest.raises(ResultError, match="no finite number"):
        figures_of(array([np.nan], "layer"))
