"""The reference does what each intervention says, judged by plain Hugging Face passes.

The oracle shares no code with mechvlm: a second copy of the same random LLaVA runs
eager attention under additive masks written here, and hooks written here reach every
activation. test_generate.py and test_invariants.py use it too.
"""

import math
from functools import cache
from itertools import product
from types import SimpleNamespace

import pytest
import tiny
import torch

import mechvlm as mv
from mechvlm import Ablate, Add, Knockout, Patch, PathPatch, Positions, Site, reference
from mechvlm.interventions import parts
from mechvlm.sites import COMPONENTS

CLOSE = 1e-5
"""Largest difference of two float32 logits. They reach 2 here, and SDPA and eager
attention were seen to differ by 1e-6 after four layers."""

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


def check_close(found, wanted, atol=CLOSE):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


# --- the oracle -----------------------------------------------------------------------


class Plain:
    """A Hugging Face LLaVA with eager attention and nothing of mechvlm around it."""

    def __init__(self, kind):
        self.model, _ = tiny.build(kind, attention="eager")
        self.window = WINDOW if kind.backbone == "mistral" else None
        self.decoder = self.model.model.language_model
        self.d_head = 64 // N_HEADS

    def masks(self, n, cuts=()):
        """Additive masks per layer, [1 head target source]: 0 reads, -inf does not."""
        size = LENGTH + 32  # room for what is generated
        row, key = torch.arange(size)[:, None], torch.arange(size)[None]
        closed = key > row
        if self.window is not None:
            closed |= key <= row - self.window
        found = torch.zeros(N_LAYERS, N_HEADS, size, size)
        found.masked_fill_(closed, -math.inf)
        for cut in cuts:
            for layer, target in product(cut.layers, cut.target):
                for head in range(N_HEADS) if cut.heads is None else cut.heads:
                    found[layer, head, target, list(cut.source)] = -math.inf
        return found[:, None, :, :n, :n]

    @torch.no_grad()
    def __call__(self, inputs, *, cuts=(), writes=()):
        """Logits [position vocab] and every activation by (component, layer).

        A write is (component, layer, change); `change` alters [position ...] in place.
        """
        masks = self.masks(inputs["attention_mask"].shape[1], cuts)
        seen, hooks = {}, []

        def through(component, layer, value, heads=False):
            value = value[0].clone()
            if heads:
                value = value.unflatten(-1, (-1, self.d_head))
            for *where, change in writes:
                if where == [component, layer]:
                    change(value)
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

        def enter(_, args):
            before = ("resid_post", index - 1) if index else ("embed", None)
            now["in"] = through("resid_pre", index, through(*before, args[0]))
            return (now["in"], *args[1:])

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
            result = torch.einsum("phe,dhe->phd", z[0], by_head)
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
            layer.register_forward_pre_hook(enter),
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
                name = part.value if isinstance(part, Ablate) else part.vector
                own = vectors[name]
                own = own if own.ndim == row.ndim else own[i]
                row[...] = own if isinstance(part, Ablate) else row + part.scale * own

    return part.site.component, part.site.layer, change


def plainly(plain, inputs, intervention, runs=(), vectors=()):
    """The oracle's pass under interventions; path patches are not taken."""
    each = parts(intervention)
    cuts = [part for part in each if isinstance(part, Knockout)]
    rest = [write_of(x, runs, vectors) for x in each if not isinstance(x, Knockout)]
    return plain(inputs, cuts=cuts, writes=rest)


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

    def run(self, *interventions, vectors=None):
        """The reference's logits, [run vocab]."""
        return reference.intervene(
            self.vlm,
            self.prompt,
            list(interventions),
            runs=self.runs,
            vectors=vectors,
        )

    def check_agree(self, *interventions, vectors=None):
        """Reference and oracle give the same last logits, and none is the clean one."""
        vectors = vectors or {}
        clean, *done = self.run(mv.NOTHING, *interventions, vectors=vectors)
        for what, found in zip(interventions, done, strict=True):
            made = plainly(self.plain, self.inputs, what, self.plain_runs, vectors)
            check_close(found, made.logits[-1])
            moved = (found - clean).abs().max()
            assert moved > 10 * CLOSE, f"{what!r} did nothing: this shows nothing"


@cache
def case_of(kind):
    return Case(kind)


@pytest.fixture
def case(kind):
    return case_of(kind)


GROUPED, SLIDING = tiny.KINDS[3], tiny.KINDS[2]
on_one = pytest.mark.parametrize("kind", [GROUPED], ids=["grouped"])
on_two = pytest.mark.parametrize("kind", [GROUPED, SLIDING], ids=["grouped", "sliding"])


# --- the oracle is the model ----------------------------------------------------------


@every_kind
def test_the_oracle_untouched_is_the_plain_model(case):
    inputs = case.inputs
    with torch.no_grad():
        bare = case.plain.model(**inputs, use_cache=False).logits[0]
    check_close(case.plain(inputs).logits, bare)
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
    check_close(run.logits, case.plain_runs["other"].logits[-1])


# --- knockout -------------------------------------------------------------------------


def cut(layers, target, source, heads=None):
    return Knockout(layers, Positions.of(target), Positions.of(source), heads)


CUTS = {
    "last from image, one layer": cut(range(1, 2), [LAST], IMAGE),
    "last from image, a window": cut(range(1, 3), [LAST], IMAGE),
    "text from image": cut(range(4), [*QUERY, 25, LAST], IMAGE),
    "one head": cut(range(4), [LAST], IMAGE, (2,)),
    "two heads, every second layer": cut(range(0, 4, 2), [LAST], QUERY, (0, 3)),
    "image from image": cut(range(2), IMAGE, IMAGE[::2]),
    "last from the question": cut(range(2, 4), [LAST], QUERY),
    "two at once": (
        cut(range(2), [LAST], QUERY),
        cut(range(1, 4), [LAST, 25], IMAGE, (1,)),
    ),
}


@every_kind
def test_knockout(case):
    """Some reach beyond the sliding window: what is not read is not cut there."""
    case.check_agree(*CUTS.values())


@every_kind
def test_knockout_of_an_eager_model_is_no_silent_no_op(kind, case):
    """Trap: code made for sdpa's missing mask did nothing to eager's additive one."""
    eager = mv.HookedVLM(*tiny.build(kind, attention="eager"))
    what = [mv.NOTHING, CUTS["text from image"], CUTS["one head"]]
    found = reference.intervene(eager, case.prompt, what)
    check_close(found, case.run(*what))
    assert (found[1:] - found[0]).abs().amax(dim=1).min() > 10 * CLOSE
    assert eager.hf_model.config.text_config._attn_implementation == "eager"


# --- patch, ablate, add ---------------------------------------------------------------

PLACES = [(component, None) for component in COMPONENTS]
PLACES += product(("q", "k", "v", "z", "result"), (0, 1))
AT = Positions.of(2, 7, 20, LAST)


@on_two
@pytest.mark.parametrize(("component", "head"), PLACES)
def test_write(case, component, head):
    """At layer 0, so that every position reaches the last one."""
    site = Site(component, None if component == "embed" else 0, head)
    one = case.plain_runs["other"].at[component, site.layer][0]
    shape = one.shape if head is None else one[head].shape
    torch.manual_seed(3)
    vectors = {"one": torch.randn(shape), "each": torch.randn(len(AT), *shape)}
    case.check_agree(
        Patch(site, AT, "other"),
        Patch(site, AT, "other", from_=Positions.of(4, 5, 9, 12)),
        Ablate(site, AT),
        Ablate(site, AT, value="one"),
        Ablate(site, AT, value="each"),
        Add(site, AT, vector="each", scale=-1.5),
        vectors=vectors,
    )


@every_kind
@pytest.mark.parametrize("component", COMPONENTS)
def test_patch_in_the_last_layer(case, component):
    layer = None if component == "embed" else N_LAYERS - 1
    case.check_agree(
        Patch(Site(component, layer), Positions.of(*IMAGE[8:], LAST), "other")
    )


@on_one
def test_several_at_once_apply_in_order(case):
    at, site = Positions.of(7, LAST), Site("resid_mid", 1)
    patch, add = Patch(site, at, "other"), Add(site, at, vector="v", scale=2)
    vectors = {"v": torch.ones(64)}
    case.check_agree((patch, add), (add, patch), vectors=vectors)
    both, reverse, alone = case.run((patch, add), (add, patch), patch, vectors=vectors)
    assert not torch.allclose(both, reverse)
    torch.testing.assert_close(reverse, alone, rtol=0, atol=0)


@every_kind
def test_several_sites_and_a_cut_at_once(case):
    case.check_agree(
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
def test_a_metric_reads_the_same_logits(case):
    what = [mv.NOTHING, CUTS["text from image"]]
    logits = case.run(*what)
    red, blue = case.vlm.to_single_token("red"), case.vlm.to_single_token("blue")
    metric = mv.logit_difference(case.vlm, "red", "blue")
    found = reference.intervene(case.vlm, case.prompt, what, metric=metric)
    torch.testing.assert_close(found, logits[:, red] - logits[:, blue])
    assert found[0] != found[1]


# --- path patching --------------------------------------------------------------------


def put(component, layer, at, rows, head=None):
    """Write `rows[position]` of another run at some positions."""
    where = (list(at),) if head is None else (list(at), head)

    def change(value):
        value[where] = rows[where]

    return component, layer, change


def in_two_stages(case, path, then=()):
    """Wang et al.'s recipe, literally: freeze and send; then put what arrives."""
    everywhere = range(LENGTH)
    own = case.plain(case.inputs).at
    frozen = [put("z", layer, everywhere, own["z", layer]) for layer in range(N_LAYERS)]

    def puts(sites, at, seen):
        for site in sites:
            rows = seen[site.component, site.layer]
            yield put(site.component, site.layer, at, rows, site.head)

    sent = puts(path.senders, path.at or everywhere, case.plain_runs["other"].at)
    arrived = case.plain(case.inputs, writes=[*frozen, *sent]).at
    received = puts(path.receivers, path.to or everywhere, arrived)
    return case.plain(case.inputs, writes=[*received, *then]).logits[-1]


EARLY = Site("z", 0, 1), Site("z", 1, 2)
PATHS = {
    "heads -> logits": (EARLY, (Site("resid_post", 3),), {}),
    "heads -> a head's query": (EARLY, (Site("q", 2, 3),), {}),
    "heads -> keys and values": (EARLY, (Site("k", 3, 0), Site("v", 3, 1)), {}),
    "all heads of a layer": ((Site("z", 1),), (Site("resid_mid", 3),), {}),
    "image embeddings -> an MLP": (
        (Site("embed"),),
        (Site("mlp_out", 2),),
        {"at": Positions.of(IMAGE), "to": Positions.of(IMAGE)},
    ),
    "a head's result -> the last row": (
        (Site("result", 1, 0),),
        (Site("resid_pre", 3),),
        {"to": Positions.of(LAST)},
    ),
}


@every_kind
def test_path_patch(case):
    paths = [PathPatch(*ends, "other", **where) for *ends, where in PATHS.values()]
    clean, *done = case.run(mv.NOTHING, *paths)
    for name, path, found in zip(PATHS, paths, done, strict=True):
        check_close(found, in_two_stages(case, path))
        assert (found - clean).abs().max() > 10 * CLOSE, f"{name} did nothing"


@on_one
def test_path_patch_beside_another_intervention(case):
    path = PathPatch(EARLY, (Site("resid_post", 2),), "other")
    ablate = Ablate(Site("mlp_out", 3), Positions.of(LAST))
    (found,) = case.run((path, ablate))
    check_close(found, in_two_stages(case, path, then=[write_of(ablate, {}, {})]))
