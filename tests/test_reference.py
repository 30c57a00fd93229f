"""The reference does what each intervention says, judged by plain Hugging Face passes.

The oracle shares no code with mechvlm: a second copy of the same random LLaVA runs
eager attention under additive masks written here, and hooks written here reach every
activation. test_generate.py and test_invariants.py use it too.
"""

import math
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import pytest
import tiny
import torch

import mechvlm as mv
from mechvlm import Ablate, Add, Knockout, Patch, PathPatch, Positions, Site, reference
from mechvlm.interventions import parts
from mechvlm.models import lowering
from mechvlm.sites import COMPONENTS

CLOSE = 1e-4
"""Largest difference of two float32 logits. They reach 20 here and pass through four
layers; SDPA and eager attention were seen to differ by up to 2e-5."""

TEXT = "USER : <image> what color is the cat ? ASSISTANT :"
# Counted by hand: <s> USER : | 16 x <image> | what color is the cat ? ASSISTANT :
IMAGE = list(range(3, 19))
QUERY = list(range(19, 25))
LAST = 26
LENGTH = 27
N_LAYERS = N_HEADS = 4
WINDOW = 12  # of tiny's Mistral: a row reads itself and the 11 before it

every_kind = pytest.mark.parametrize(
    "kind", tiny.KINDS, ids=lambda k: f"{k.backbone}-{k.kv_heads}-{k.tower}"
)


def close(found, wanted, atol=CLOSE):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


# --- the oracle -----------------------------------------------------------------------


@dataclass
class Write:
    """Change one activation, [position ...], in place."""

    component: str
    layer: int | None
    change: object


class Plain:
    """A Hugging Face LLaVA with eager attention and nothing of mechvlm around it."""

    def __init__(self, kind):
        self.model, _ = tiny.build(kind, attention="eager")
        self.window = WINDOW if kind.backbone == "mistral" else None
        self.decoder = self.model.model.language_model
        self.d_head = 64 // N_HEADS

    def masks(self, n, cuts=()):
        """Additive masks per layer, [1 head target source]: 0 reads, -inf does not."""
        row, key = torch.arange(n)[:, None], torch.arange(n)[None]
        closed = key > row
        if self.window is not None:
            closed |= key <= row - self.window
        found = []
        for layer in range(N_LAYERS):
            mask = torch.zeros(1, N_HEADS, n, n).masked_fill(closed, -math.inf)
            for cut in (cut for cut in cuts if layer in cut.layers):
                for head in range(N_HEADS) if cut.heads is None else cut.heads:
                    for target in (t for t in cut.target if t < n):
                        mask[
                            0, head, target, [s for s in cut.source if s < n]
                        ] = -math.inf
            found.append(mask)
        return found

    @torch.no_grad()
    def __call__(self, inputs, *, cuts=(), writes=()):
        """Logits [position vocab] and every activation by (component, layer)."""
        masks = self.masks(inputs["input_ids"].shape[1], cuts)
        seen, hooks = {}, []

        def through(component, layer, value, heads=False):
            value = value[0].clone()
            if heads:
                value = value.unflatten(-1, (-1, self.d_head))
            for write in writes:
                if (write.component, write.layer) == (component, layer):
                    write.change(value)
            seen[component, layer] = value
            return (value.flatten(1) if heads else value)[None]

        for index, layer in enumerate(self.decoder.layers):
            hooks += self._reach(layer, index, masks[index], through)

        def leave(_, args):
            return (through("resid_post", N_LAYERS - 1, args[0]),)

        hooks.append(self.decoder.norm.register_forward_pre_hook(leave))
        try:
            logits = self.model(**inputs, use_cache=False).logits[0]
        finally:
            for hook in hooks:
                hook.remove()
        return SimpleNamespace(logits=logits, at=seen)

    def _reach(self, layer, index, mask, through):
        """Hooks on one decoder layer; the stream after attention is summed up anew."""
        attn, mlp, now = layer.self_attn, layer.mlp, {}

        def enter(_, args, kwargs):
            stream = args[0]
            if index == 0:
                stream = through("embed", None, stream)
            else:
                stream = through("resid_post", index - 1, stream)
            now["in"] = through("resid_pre", index, stream)
            return (now["in"], *args[1:]), kwargs

        def masked(_, args, kwargs):
            return args, kwargs | {"attention_mask": mask}

        def projected(component):
            return lambda _, __, out: through(component, index, out, heads=True)

        def attended(linear, args):
            now["z"] = through("z", index, args[0], heads=True)
            return (now["z"],)

        def written(linear, _, __):
            by_head = linear.weight.unflatten(1, (-1, self.d_head))
            z = now["z"].unflatten(-1, (-1, self.d_head))
            result = torch.stack(
                [z[0, :, h] @ by_head[:, h].T for h in range(N_HEADS)], dim=1
            )
            total = through("result", index, result[None])[0].sum(dim=1)
            if linear.bias is not None:
                total = total + linear.bias
            now["out"] = through("attn_out", index, total[None])
            return now["out"]

        def norm_enters(_, __):
            now["mid"] = through("resid_mid", index, now["in"] + now["out"])
            return (now["mid"],)

        def narrowed(_, args):
            return (through("mlp_post", index, args[0]),)

        def mlp_leaves(_, __, out):
            now["mlp"] = through("mlp_out", index, out)
            return now["mlp"]

        return [
            layer.register_forward_pre_hook(enter, with_kwargs=True),
            attn.register_forward_pre_hook(masked, with_kwargs=True),
            attn.q_proj.register_forward_hook(projected("q")),
            attn.k_proj.register_forward_hook(projected("k")),
            attn.v_proj.register_forward_hook(projected("v")),
            attn.o_proj.register_forward_pre_hook(attended),
            attn.o_proj.register_forward_hook(written),
            layer.post_attention_layernorm.register_forward_pre_hook(norm_enters),
            mlp.down_proj.register_forward_pre_hook(narrowed),
            mlp.register_forward_hook(mlp_leaves),
            layer.register_forward_hook(lambda *_: now["mid"] + now["mlp"]),
        ]


def write_of(part, runs, vectors):
    """One intervention as a change of the oracle's activation, up to its length."""
    head = part.site.head

    def change(value):
        for i, position in enumerate(part.at):
            if position >= len(value):
                continue
            row = value[position] if head is None else value[position, head]
            if isinstance(part, Patch):
                read = part.at if part.from_ is None else part.from_
                given = runs[part.run].at[part.site.component, part.site.layer]
                given = given[list(read)[i]]
                row[...] = given if head is None else given[head]
            elif isinstance(part, Ablate) and part.value == "zero":
                row[...] = 0
            else:
                vector = vectors[
                    part.value if isinstance(part, Ablate) else part.vector
                ]
                own = vector if vector.ndim == row.ndim else vector[i]
                row[...] = own if isinstance(part, Ablate) else row + part.scale * own

    return Write(part.site.component, part.site.layer, change)


def plainly(plain, inputs, intervention, runs=(), vectors=()):
    """The oracle's pass under interventions; path patches are not taken."""
    each = parts(intervention)
    cuts = [part for part in each if isinstance(part, Knockout)]
    rest = [part for part in each if not isinstance(part, Knockout)]
    writes = [write_of(part, runs, vectors) for part in rest]
    return plain(inputs, cuts=cuts, writes=writes)


# --- one kind, its prompts and runs ---------------------------------------------------


class Case:
    """A hooked LLaVA, its plain twin, and a clean and another prompt in both."""

    def __init__(self, kind):
        self.vlm = mv.HookedVLM(*tiny.build(kind))
        self.plain = Plain(kind)
        self.prompt = self.vlm.prompt_raw(TEXT, tiny.picture(0))
        self.other = self.vlm.prompt_raw(TEXT, tiny.picture(1))
        self.inputs = dict(self.prompt.inputs)
        self.runs = {"other": mv.record(self.vlm, self.other, COMPONENTS)}
        self.plain_runs = {"other": self.plain(dict(self.other.inputs))}

    def agree(self, *interventions, vectors=None):
        """Reference and oracle give the same last logits, and none is the clean one."""
        vectors = vectors or {}
        clean, *done = reference.intervene(
            self.vlm,
            self.prompt,
            [mv.NOTHING, *interventions],
            runs=self.runs,
            vectors=vectors,
        )
        for what, found in zip(interventions, done, strict=True):
            made = plainly(self.plain, self.inputs, what, self.plain_runs, vectors)
            close(found, made.logits[-1])
            moved = (found - clean).abs().max()
            assert moved > 10 * CLOSE, f"{what!r} did nothing: this shows nothing"


@cache
def case_of(kind):
    return Case(kind)


@pytest.fixture
def case(kind):
    return case_of(kind)


LLAMA, GROUPED, SLIDING = tiny.KINDS[0], tiny.KINDS[3], tiny.KINDS[2]
on_one = pytest.mark.parametrize("kind", [GROUPED], ids=["qwen2-grouped"])
on_three = pytest.mark.parametrize(
    "kind", [LLAMA, GROUPED, SLIDING], ids=["llama", "qwen2-grouped", "sliding"]
)


# --- the oracle is the model ----------------------------------------------------------


@every_kind
def test_the_oracle_untouched_is_the_plain_model(case):
    inputs = case.inputs
    with torch.no_grad():
        bare = case.plain.model(**inputs, use_cache=False).logits[0]
    torch.testing.assert_close(case.plain(inputs).logits, bare, rtol=0, atol=CLOSE)
    assert inputs["input_ids"][0].tolist().index(4) == IMAGE[0]
    assert inputs["input_ids"].shape == (1, LENGTH)
    assert case.prompt.layout["image"] == Positions.of(IMAGE)


@every_kind
def test_every_recorded_activation_is_the_plain_models(case):
    run, seen = case.runs["other"], case.plain_runs["other"].at
    for (component, layer), value in seen.items():
        found = run[Site(component, layer)]
        torch.testing.assert_close(found, value, rtol=1e-4, atol=CLOSE)
    assert len(seen) == len(run.activations) == 1 + 11 * N_LAYERS
    last = case.plain_runs["other"].logits[-1]
    torch.testing.assert_close(run.logits, last, rtol=0, atol=CLOSE)


# --- knockout -------------------------------------------------------------------------


def cut(layers, target, source, heads=None):
    return Knockout(layers, Positions.of(target), Positions.of(source), heads)


CUTS = {
    "last from image, one layer": cut(range(1, 2), [LAST], IMAGE),
    "last from image, a window": cut(range(1, 3), [LAST], IMAGE),
    "last from image, everywhere": cut(range(4), [LAST], IMAGE),
    "text from image": cut(range(4), [*QUERY, 25, LAST], IMAGE),
    "one head": cut(range(4), [LAST], IMAGE, (2,)),
    "two heads, every second layer": cut(range(0, 4, 2), [LAST], QUERY, (0, 3)),
    "image from image": cut(range(2), IMAGE, IMAGE[:-1]),
    "last from the question": cut(range(2, 4), [LAST], QUERY),
    "two at once": (
        cut(range(2), [LAST], QUERY),
        cut(range(1, 4), [LAST, 25], IMAGE, (1,)),
    ),
}


@every_kind
def test_knockout(case):
    """Some reach beyond the sliding window: what is not read is not cut there."""
    case.agree(*CUTS.values())


@every_kind
def test_knockout_of_an_eager_model_is_no_silent_no_op(kind, case):
    """Trap: code made for sdpa's missing mask did nothing to eager's additive one."""
    eager = mv.HookedVLM(*tiny.build(kind, attention="eager"))
    what = [mv.NOTHING, CUTS["text from image"], CUTS["one head"]]
    found = reference.intervene(eager, case.prompt, what)
    wanted = reference.intervene(case.vlm, case.prompt, what)
    close(found, wanted)
    assert (found[1:] - found[0]).abs().amax(dim=1).min() > 10 * CLOSE
    assert eager.hf_model.config.text_config._attn_implementation == "eager"


def swapped(part, target):
    keys = torch.tensor(list(part.source))

    def cut_backwards(scores, **_):
        new = scores.clone()
        new[0, :, keys[:, None], torch.tensor(target)[None]] = -math.inf
        return new

    for layer in part.layers:
        yield f"blocks.{layer}.attn.hook_attn_scores", cut_backwards


def written_as_zero(part, target):
    keys = torch.tensor(list(part.source))

    def allow(scores, **_):
        new = scores.clone()
        new[0, :, torch.tensor(target)[:, None], keys[None]] = 0.0
        return new

    for layer in part.layers:
        yield f"blocks.{layer}.attn.hook_attn_scores", allow


def one_layer_late(part, target):
    for name, function in HONEST(part, target):
        layer = min(int(name.split(".")[1]) + 1, N_LAYERS - 1)
        yield f"blocks.{layer}.attn.hook_attn_scores", function


HONEST = lowering._cuts


@pytest.mark.parametrize("sabotage", [swapped, written_as_zero, one_layer_late])
def test_the_oracle_catches_a_wrong_cut(monkeypatch, sabotage):
    """Faults published in this field, put in on purpose: each must be seen."""
    case = case_of(LLAMA)
    what = cut(range(1, 2), [*QUERY, LAST], IMAGE[:-1])
    case.agree(what)
    monkeypatch.setattr(lowering, "_cuts", sabotage)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        case.agree(what)


# --- patch, ablate, add ---------------------------------------------------------------

SHAPES = {
    **dict.fromkeys(("embed", "resid_pre", "attn_out", "resid_mid"), (64,)),
    **dict.fromkeys(("mlp_out", "resid_post"), (64,)),
    "mlp_post": (96,),
    **dict.fromkeys(("q", "k", "v", "z"), (N_HEADS, 16)),
    "result": (N_HEADS, 64),
}
PLACES = [(component, None) for component in SHAPES]
PLACES += [
    (component, head) for component in ("q", "k", "v", "z", "result") for head in (0, 1)
]
AT = Positions.of(2, 7, 20, LAST)


@on_three
@pytest.mark.parametrize(("component", "head"), PLACES)
def test_write(kind, case, component, head):
    """At layer 0, so that every position reaches the last one."""
    site = Site(component, None if component == "embed" else 0, head)
    shape = SHAPES[component]
    if component in ("k", "v"):
        shape = (kind.kv_heads, 16)
    shape = shape if head is None else shape[1:]
    torch.manual_seed(3)
    vectors = {"one": torch.randn(shape), "each": torch.randn(len(AT), *shape)}
    case.agree(
        Patch(site, AT, "other"),
        Patch(site, AT, "other", from_=Positions.of(4, 5, 9, 12)),
        Ablate(site, AT),
        Ablate(site, AT, value="one"),
        Ablate(site, AT, value="each"),
        Add(site, AT, vector="each", scale=-1.5),
        vectors=vectors,
    )


@every_kind
@pytest.mark.parametrize("component", SHAPES)
def test_patch_in_the_last_layer(case, component):
    layer = None if component == "embed" else N_LAYERS - 1
    case.agree(Patch(Site(component, layer), Positions.of(*IMAGE[8:], LAST), "other"))


@on_one
def test_several_at_once_apply_in_order(case):
    at, site = Positions.of(7, LAST), Site("resid_mid", 1)
    patch, add = Patch(site, at, "other"), Add(site, at, vector="v", scale=2)
    vectors = {"v": torch.ones(64)}
    case.agree((patch, add), (add, patch), vectors=vectors)
    run = lambda *each: reference.intervene(  # noqa: E731
        case.vlm, case.prompt, list(each), runs=case.runs, vectors=vectors
    )
    both, reverse, alone = run((patch, add), (add, patch), patch)
    assert not torch.allclose(both, reverse)
    torch.testing.assert_close(reverse, alone, rtol=0, atol=0)


@every_kind
def test_several_sites_and_a_cut_at_once(case):
    case.agree(
        (
            CUTS["one head"],
            Patch(Site("z", 1, 3), Positions.of(IMAGE), "other"),
            Ablate(Site("mlp_out", 2), Positions.of(LAST)),
            (mv.NOTHING, Add(Site("embed"), Positions.of(IMAGE[8]), "v")),
            CUTS["text from image"],
            Patch(Site("result", 2, 1), Positions.of(LAST), "other"),
        ),
        vectors={"v": torch.linspace(-1, 1, 64)},
    )


@on_one
def test_result_patches_what_z_patches(case):
    """A head's result is z times its own output weights, so both patches agree."""
    at = Positions.of(IMAGE)
    head = Patch(Site("z", 1, 2), at, "other"), Patch(Site("result", 1, 2), at, "other")
    z, result = reference.intervene(case.vlm, case.prompt, list(head), runs=case.runs)
    close(z, result)
    assert not case.vlm.cfg.use_attn_result


@on_one
def test_a_metric_reads_the_same_logits(case):
    what = [mv.NOTHING, CUTS["text from image"]]
    logits = reference.intervene(case.vlm, case.prompt, what)
    red, blue = case.vlm.to_single_token("red"), case.vlm.to_single_token("blue")
    metric = mv.logit_difference(case.vlm, "red", "blue")
    found = reference.intervene(case.vlm, case.prompt, what, metric=metric)
    torch.testing.assert_close(found, logits[:, red] - logits[:, blue])
    assert found[0] != found[1]
