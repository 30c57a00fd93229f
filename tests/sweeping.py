"""Models, prompts and interventions that sweeps are judged on; no tests stand here.

A `Scene` is one tiny model with a prompt, another prompt's run and vectors of every
shape. `every_intervention` lists each kind of intervention at each site; `recipes`
draws lists of several at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial

import tiny
import torch
from hypothesis import strategies as st
from torch import Tensor

import mechvlm as mv
from mechvlm import Ablate, Add, Knockout, Patch, PathPatch, Positions, Site, reference
from mechvlm.errors import InterventionError, MechVLMWarning
from mechvlm.interventions import Intervention, parts
from mechvlm.models import attention
from mechvlm.models.checking import shape_at
from mechvlm.record import Run, record
from mechvlm.sites import COMPONENTS, PER_HEAD

CLOSE = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Largest difference of two logits of the same meaning; they reach 7 in these models.

The engine adds the same numbers in another order: up to 4e-6 was seen in fp32.
"""

KINDS = tiny.EVERY_KIND
QUESTION = "what color is the cat ?"
BATCHES = (1, 7, 64, None)


def name_of(kind: tiny.Kind) -> str:
    """What a kind is called in a test's id."""
    return "-".join(map(str, (kind.family, kind.backbone, kind.kv_heads, kind.tower)))


@dataclass(frozen=True, eq=False)
class Scene:
    """What an intervention needs to be run."""

    vlm: mv.HookedVLM
    prompt: mv.Prompt
    runs: dict[str, Run]
    vectors: dict[str, Tensor]
    reads: Tensor

    @classmethod
    def of(cls, vlm: mv.HookedVLM, prompt: mv.Prompt, other: mv.Prompt) -> Scene:
        """A scene whose run `other` has every site."""
        vectors = _vectors(vlm, prompt.layout.n)
        run = record(vlm, other, COMPONENTS)
        return cls(vlm, prompt, {"other": run}, vectors, vlm.reads(prompt))

    @property
    def given(self) -> dict[str, dict[str, Run] | dict[str, Tensor]]:
        """What sweeps take besides the interventions."""
        return {"runs": self.runs, "vectors": self.vectors}

    @property
    def atol(self) -> float:
        """Largest difference that is rounding."""
        return CLOSE[self.vlm.cfg.dtype]

    def engine(self, todo: list[Intervention], **more: object) -> Tensor:
        """The engine's answers."""
        return _quietly(mv.intervene, self.vlm, self.prompt, todo, **self.given, **more)

    def truth(self, todo: list[Intervention], **more: object) -> Tensor:
        """The reference's answers."""
        run = reference.intervene
        return _quietly(run, self.vlm, self.prompt, todo, **self.given, **more)


def _quietly(run, *given, **more):
    """Without the warning that a drawn cut is one already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MechVLMWarning)
        return run(*given, **more)


def check_equal(scene: Scene, found: Tensor, wanted: Tensor) -> None:
    """Answers agree to rounding."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=scene.atol)


def check(scene: Scene, todo: list[Intervention], *batches: int | None) -> Tensor:
    """The engine means what the reference means; how far each moved the logits."""
    clean, *wanted = scene.truth([mv.NOTHING, *todo])
    for batch in batches or BATCHES:
        before, *found = scene.engine([mv.NOTHING, *todo], batch_tokens=batch)
        check_equal(scene, before, clean)
        for what, one, other in zip(todo, found, wanted, strict=True):
            off = (one - other).abs().max()
            assert off <= scene.atol, f"{what!r}: off by {off:.2g}, {batch=}"
    return (torch.stack(wanted) - clean).abs().amax(dim=1)


# --- scenes ---------------------------------------------------------------------------


@cache
def scene_of(kind: tiny.Kind, dtype: torch.dtype = torch.float32) -> Scene:
    """One kind with an image; in fp64 its norms compute in fp64 too."""
    vlm = mv.HookedVLM(*tiny.build(kind))
    if dtype == torch.float64:
        widen_norms(vlm.double())
        # Hugging Face's eager softmax is fp32 too; what stands in for it is not.
        vlm.hf_model.config.text_config._attn_implementation = attention.NAME
    prompts = (tiny.ask(vlm, QUESTION, tiny.picture(seed)) for seed in range(2))
    return Scene.of(vlm, *prompts)


def widen_norms(vlm: mv.HookedVLM) -> None:
    """Hugging Face's norms compute in fp32 whatever they are given."""
    offset = (vlm.ln_final.w - vlm.ln_final.norm.weight).detach()
    assert torch.equal(offset, offset.round()), "a norm's offset is a whole number"
    for module in vlm.hf_model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(_norm, module, vlm.cfg.eps, float(offset[0]))


def _norm(module: torch.nn.Module, eps: float, offset: float, x: Tensor) -> Tensor:
    scale = (x.pow(2).mean(dim=-1, keepdim=True) + eps).rsqrt()
    return x * scale * (offset + module.weight)


def _vectors(vlm: mv.HookedVLM, n: int) -> dict[str, Tensor]:
    """One of each shape: `a` for all positions alike, and `b 3` for three of them."""
    draw = torch.Generator().manual_seed(5)
    shapes = {
        shape_at(vlm.cfg, Site(component, None if component == "embed" else 0, head))
        for component in COMPONENTS
        for head in ((None, 0) if component in PER_HEAD else (None,))
    }
    return {
        name: torch.randn(shape, generator=draw).to(vlm.cfg.dtype)
        for one in sorted(shapes)
        for name, shape in [
            (f"a {one}", one),
            *((f"b {k} {one}", (k, *one)) for k in range(1, n + 1)),
        ]
    }


# --- every kind of intervention at every site -----------------------------------------


def sites_of(scene: Scene, layers: tuple[int, ...]) -> Iterator[Site]:
    """Every component, of all heads and of the last one."""
    cfg = scene.vlm.cfg
    for component in COMPONENTS:
        n_heads = cfg.n_key_value_heads if component in "kv" else cfg.n_heads
        heads = (None, n_heads - 1) if component in PER_HEAD else (None,)
        for layer in (None,) if component == "embed" else layers:
            yield from (Site(component, layer, head) for head in heads)


def writes_at(scene: Scene, site: Site, at: Positions) -> Iterator[Intervention]:
    """Every kind of write to a site."""
    shape, n = shape_at(scene.vlm.cfg, site), scene.prompt.layout.n
    elsewhere = Positions.of((3 * p + 1) % n for p in at)
    if len(elsewhere) == len(at):
        yield Patch(site, at, "other", from_=elsewhere)
    yield Patch(site, at, "other")
    yield Ablate(site, at)
    yield Ablate(site, at, f"a {shape}")
    yield Ablate(site, at, f"b {len(at)} {shape}")
    yield Add(site, at, f"a {shape}", scale=-1.5)
    yield Add(site, at, f"b {len(at)} {shape}")


def cuts_of(scene: Scene) -> list[Knockout]:
    """Windows, layers with holes, heads, the image's own positions."""
    at, n = scene.prompt.layout, scene.vlm.cfg.n_layers
    last, image, query = at["last"], at["image"], at["query"]
    few = Positions.of(image.indices[1::3])
    return [
        Knockout(range(n), last, image),
        Knockout(range(1, 3), last, query),
        Knockout((0, 2), query, image),
        Knockout((3, 1), last | query, few, heads=(0,)),
        Knockout(range(n), last, query | few, heads=(1, 3)),
        Knockout(range(n - 1), image, few),
        Knockout(range(2), few, image - few, heads=(2,)),
        Knockout(range(n - 1, n), last, last),
    ]


def paths_of(scene: Scene) -> list[PathPatch]:
    """Several senders and receivers; some positions of each."""
    at, n = scene.prompt.layout, scene.vlm.cfg.n_layers
    kv, last = scene.vlm.cfg.n_key_value_heads - 1, at["last"]
    heads = Site("z", 0, 1), Site("z", 1, 2)
    some = at["query"] | Positions.of(at["image"].indices[::3])
    return [
        PathPatch(heads, (Site("resid_post", n - 1),), "other"),
        PathPatch(heads, (Site("q", 2, 3), Site("k", 3, kv)), "other"),
        PathPatch(heads, (Site("v", 2),), "other", to=some),
        PathPatch((Site("z", 1),), (Site("resid_mid", n - 1),), "other", to=last),
        PathPatch((Site("embed"),), (Site("mlp_out", 2),), "other", at=some, to=some),
        PathPatch((Site("result", 1, 0),), (Site("resid_pre", 3),), "other", at=some),
        PathPatch((Site("mlp_out", 0),), (Site("mlp_post", 1), Site("q", 3)), "other"),
        PathPatch((Site("z", 2, 0),), (Site("result", 2), Site("q", 3, 0)), "other"),
        PathPatch((Site("result", 0, 3),), (Site("attn_out", 0),), "other"),
        PathPatch(heads, (Site("z", 2, 3), Site("attn_out", 3)), "other", to=some),
        *frozen_paths_of(scene),
    ]


def frozen_paths_of(scene: Scene) -> list[PathPatch]:
    """The same with MLPs that keep their output, and every kind of sender."""
    at, n = scene.prompt.layout, scene.vlm.cfg.n_layers
    kv, last = scene.vlm.cfg.n_key_value_heads - 1, at["last"]
    heads = Site("z", 0, 1), Site("z", 1, 2)
    some = at["query"] | last | Positions.of(at["image"].indices[::3])
    ends = {
        "logits": (Site("resid_post", n - 1),),
        "query": (Site("q", 2, 3),),
        "key": (Site("k", 3, kv),),
        "values": (Site("v", 2), Site("v", 3, kv)),
        "mlp": (Site("mlp_out", 2),),
        "inside": (Site("mlp_post", 2), Site("q", 3)),
        "head": (Site("z", 2, 3),),
        "attention": (Site("attn_out", 2), Site("resid_mid", 3)),
        "result": (Site("result", 2, 0),),
    }
    senders = [
        *(heads, heads[:1], (Site("z", 1),), (Site("result", 1, 0), heads[0])),
        *((Site("mlp_out", 1),), (Site("mlp_post", 0), Site("mlp_out", 1))),
        *((Site("embed"),), (Site("attn_out", 1), Site("mlp_post", 1))),
        (Site("resid_pre", 1), Site("resid_mid", 1), Site("z", 2, 0)),
    ]
    frozen = partial(PathPatch, run="other", mlps="frozen")
    made = [frozen(one, other) for one in senders[:2] for other in ends.values()]
    made += [frozen(one, ends["key"], at=some, to=some | last) for one in senders]
    made += [frozen(one, ends["attention"][:1], at=at["image"]) for one in senders[3:]]
    made += [frozen(one, ends["logits"], to=last) for one in senders[2:5]]
    return made


def several_of(scene: Scene) -> list[Intervention]:
    """Several at once, on the same site and positions too, in both orders."""
    at = scene.prompt.layout
    some, image = at["query"] | at["last"], at["image"]
    shape, few = shape_at(scene.vlm.cfg, Site("resid_mid", 1)), image.indices[::2]
    patch = Patch(Site("resid_mid", 1), some | image, "other")
    add = Add(Site("resid_mid", 1), some, f"a {shape}", scale=2)
    leave, enter = Site("resid_post", 0), Site("resid_pre", 1)
    zero, head = Ablate(leave, some), Ablate(Site("z", 1, 1), some | image)
    cut, finer, *_ = cuts_of(scene)
    return [
        (patch, add),
        (add, patch),
        (zero, Patch(enter, Positions.of(few), "other")),
        (Add(enter, some, f"a {shape}"), zero),
        (Patch(Site("embed"), image, "other"), Ablate(Site("resid_pre", 0), some)),
        (Patch(Site("z", 1), some, "other"), head, Ablate(Site("result", 1, 2), some)),
        (cut, finer, (mv.NOTHING, (Knockout(range(4), some, image, (0,)),), head)),
        (paths_of(scene)[1], cut, add),
        (add, paths_of(scene)[2], head, paths_of(scene)[3]),
        (patch, Ablate(Site("k", 2), some), Ablate(Site("v", 2, 0), some), head),
    ]


def every_intervention(scene: Scene) -> list[Intervention]:
    """Each kind at each site of two layers, and several at once."""
    at = scene.prompt.layout
    few = Positions.of(at["image"].indices[::5]) | at["query"]
    ends = (Site("resid_post", 3), Site("z", 3, 2), Site("mlp_post", 3))
    return [
        *(w for site in sites_of(scene, (1,)) for w in writes_at(scene, site, few)),
        *(w for site in ends for w in writes_at(scene, site, at["last"])),
        *(Patch(s, at["image"], "other") for s in sites_of(scene, (0, 2))),
        *cuts_of(scene),
        *paths_of(scene),
        *several_of(scene),
    ]


# --- random interventions -------------------------------------------------------------


def is_blind(scene: Scene, intervention: Intervention) -> bool:
    """Whether cuts leave a row nothing to read, which is refused."""
    n_heads = scene.vlm.cfg.n_heads
    left = scene.reads[:, None].repeat(1, n_heads, 1, 1)
    for cut in parts(intervention):
        if isinstance(cut, Knockout):
            heads = range(n_heads) if cut.heads is None else cut.heads
            for layer in cut.layers:
                for head in heads:
                    rows = torch.tensor(list(cut.target))[:, None]
                    left[layer, head][rows, list(cut.source)] = False
    return bool((scene.reads.any(dim=-1)[:, None] & ~left.any(dim=-1)).any())


# Strategies draw recipes of plain values: beartype, which watches over every value of
# mechvlm's, is random itself, and Hypothesis refuses that while it draws.
numbers = st.integers(0, 999)
spots = (
    st.tuples(st.just("few"), st.lists(numbers, min_size=1, max_size=4))
    | st.tuples(st.just("run"), st.tuples(numbers, numbers))
    | st.tuples(st.just("group"), st.sampled_from(["last", "image", "query"]))
)
sites = st.tuples(st.sampled_from(COMPONENTS), numbers, st.none() | numbers)
some_sites = st.lists(sites, min_size=1, max_size=3)
some_numbers = st.lists(numbers, min_size=1, max_size=4)
writes = st.tuples(st.just("write"), sites, spots, numbers)
cuts = st.tuples(st.just("cut"), some_numbers, spots, spots, st.none() | some_numbers)
mlps = st.sampled_from(["recomputed", "frozen"])
paths = st.tuples(
    st.just("path"), some_sites, some_sites, mlps, st.none() | spots, st.none() | spots
)
single = writes | writes | cuts | paths
several = st.lists(single, min_size=2, max_size=4)
recipes = st.lists(
    single | several | st.lists(single | several, min_size=2, max_size=2),
    min_size=1,
    max_size=4,
)
"""Lists of single interventions, of several at once and of nested ones."""


def made(scene: Scene, recipe: object) -> Intervention:
    """The intervention of a recipe; NOTHING where it would be refused."""
    if isinstance(recipe, list):
        each = tuple(made(scene, one) for one in recipe)
        return mv.NOTHING if is_blind(scene, each) else each
    kind, *how = recipe
    return {"write": _write, "cut": _cut, "path": _path}[kind](scene, *how)


def _write(scene: Scene, where, spot, number) -> Intervention:
    every = list(writes_at(scene, _site(scene, where), _positions(scene, spot)))
    return every[number % len(every)]


def _cut(scene: Scene, layers, target, source, heads) -> Intervention:
    cfg = scene.vlm.cfg
    layers = tuple(dict.fromkeys(number % cfg.n_layers for number in layers))
    if heads is not None:
        heads = tuple(dict.fromkeys(number % cfg.n_heads for number in heads))
    target, source = _positions(scene, target), _positions(scene, source)
    made = Knockout(layers, target, source, heads)
    if is_blind(scene, made):
        rest = Positions.of(range(scene.prompt.layout.n)) - target
        made = Knockout(layers, target, source & rest or rest, heads)
    return mv.NOTHING if is_blind(scene, made) else made


def _path(scene: Scene, senders, receivers, mlps, *spots) -> Intervention:
    ends = [tuple(_site(scene, one) for one in each) for each in (senders, receivers)]
    spots = [None if spot is None else _positions(scene, spot) for spot in spots]
    for one, other in (ends, ends[::-1]):
        with suppress(InterventionError):
            return PathPatch(one, other, "other", *spots, mlps)
    return mv.NOTHING


def _positions(scene: Scene, spot) -> Positions:
    n, (kind, which) = scene.prompt.layout.n, spot
    if kind == "group":
        return scene.prompt.layout[which]
    at = [number % n for number in which]
    return Positions.of(range(min(at), max(at) + 1) if kind == "run" else at)


def _site(scene: Scene, where) -> Site:
    (component, layer, head), cfg = where, scene.vlm.cfg
    n_heads = cfg.n_key_value_heads if component in "kv" else cfg.n_heads
    return Site(
        component,
        None if component == "embed" else layer % cfg.n_layers,
        None if head is None or component not in PER_HEAD else head % n_heads,
    )


def watch(patch, modules, note):
    """Tell `note` of every call of some modules, without a hook: those are heard."""
    for module in modules:

        def noted(*args, module=module, forward=module.forward, **kwargs):
            given = args[0] if args else kwargs.get("hidden_states")
            note(module, given)
            return forward(*args, **kwargs)

        patch.setattr(module, "forward", noted)
