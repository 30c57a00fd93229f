"""Direct paths into heads beside TransformerLens's own, on text alone."""

import tiny
import torch

import mechvlm as mv
from mechvlm import PathPatch, Site

CLOSE = 1e-5
"""Largest difference of two logits in fp32; they reach 7."""
SOURCE = 1, 2
RED, BLUE = 18, 19


def texts(vlm):
    """Two texts of one length and other words."""
    return (
        vlm.prompt_raw(f"what color is the {one} ? the {other} cat is a")
        for one, other in (("cat", "red"), ("dog", "blue"))
    )


def check_against(kind, component):
    """Every later head's input, from one head, at all positions."""
    # Here, for the tests of TransformerLens 3 are collected beside this one.
    from transformer_lens.patching import get_act_patch_direct_path

    vlm = mv.HookedVLM(*tiny.build(kind))
    base, donor = texts(vlm)
    bridge = vlm.to_bridge()
    caches = [bridge.run_with_cache(each.ids)[1] for each in (donor, base)]
    theirs = get_act_patch_direct_path(
        bridge,
        base.ids,
        *caches,
        lambda logits: logits[0, -1, RED] - logits[0, -1, BLUE],
        *SOURCE,
        component=component,
        verbose=False,
    )
    later = [(i, h) for i in range(SOURCE[0] + 1, 4) for h in range(vlm.cfg.n_heads)]
    head = (Site("z", *SOURCE),)
    paths = [
        PathPatch(head, (Site(component, *each),), "donor", mlps="frozen")
        for each in later
    ]
    ours, clean = (
        mv.intervene(
            vlm,
            base,
            todo,
            runs={"donor": mv.record(vlm, donor, ["z"])},
            metric=mv.logit_difference(vlm, RED, BLUE),
        )
        for todo in (paths, [mv.NOTHING])
    )
    wanted = torch.stack([theirs[each] for each in later])
    torch.testing.assert_close(ours, wanted, rtol=0, atol=CLOSE)
    assert ((ours - clean).abs() > 10 * CLOSE).float().mean() > 0.7


def test_queries_keys_and_values_hear_what_they_hear_there():
    for component in ("q", "k", "v"):
        check_against(tiny.KINDS[0], component)


def test_queries_of_grouped_heads():
    """TransformerLens refuses keys and values there; their heads are shared."""
    check_against(tiny.KINDS[1], "q")
