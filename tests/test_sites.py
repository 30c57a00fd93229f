"""Sites are TransformerLens's hook names with a meaning, and nothing else is a site."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechvlm.errors import LayerError, SiteError
from mechvlm.sites import COMPONENTS, PER_HEAD, Site

# Written out once more, from TransformerLens's list of HookedTransformer's names.
NAMES = {
    "embed": "hook_embed",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "q": "blocks.{}.attn.hook_q",
    "k": "blocks.{}.attn.hook_k",
    "v": "blocks.{}.attn.hook_v",
    "z": "blocks.{}.attn.hook_z",
    "result": "blocks.{}.attn.hook_result",
    "attn_out": "blocks.{}.hook_attn_out",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "mlp_post": "blocks.{}.mlp.hook_post",
    "resid_post": "blocks.{}.hook_resid_post",
}


def site(component, layer, head=None):
    """A site of any component; what does not apply to it is left out."""
    layer = None if component == "embed" else layer
    return Site(component, layer, head if component in PER_HEAD else None)


def test_the_list_of_components_is_whole():
    assert set(NAMES) == set(COMPONENTS)


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("layer", [0, 9, 10, 31, 107])
def test_a_site_is_its_hook_name(component, layer):
    found = site(component, layer, head=2)
    assert found.hook_name == NAMES[component].format(layer)
    assert Site.parse(found.hook_name, head=found.head) == found


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_site_is_a_hook_point_of_a_model(component, tiny_vlm):
    found = site(component, 1)
    vlm = tiny_vlm
    if component == "result":
        assert found.hook_name not in vlm.hook_dict
        with vlm.attn_results([(found.hook_name, print)]):
            assert found.hook_name in vlm.hook_dict
    assert (found.hook_name in vlm.hook_dict) == (component != "result")


@given(
    component=st.sampled_from(COMPONENTS),
    layer=st.integers(0, 200),
    head=st.none() | st.integers(0, 63),
)
def test_a_site_prints_as_it_is_written(component, layer, head):
    found = site(component, layer, head)
    assert eval(repr(found), {"Site": Site}) == found
    assert hash(eval(repr(found), {"Site": Site})) == hash(found)
    assert found != site(component, layer + 1, head) or component == "embed"


@pytest.mark.parametrize(
    "name",
    ["", "embed", "blocks.hook_resid_pre", "blocks.x.hook_resid_pre", "hook_pos_embed",
     "blocks.-1.hook_resid_pre", "blocks.3.hook_resid_prE",
     "blocks.3.attn.hook_pattern",
     "blocks.3.hook_resid_pre.", " blocks.3.hook_resid_pre", "xblocks.3.hook_mlp_out",
     "blocks.3.hook_mlp_out\n", "vision_projector.hook_out", "ln_final.hook_scale"],
)  # fmt: skip
def test_other_names_are_no_sites(name):
    with pytest.raises(SiteError, match=r"is no site; known are hook_embed, blocks\."):
        Site.parse(name)


def test_a_site_needs_a_layer_just_where_it_has_one():
    with pytest.raises(SiteError, match="'z' with layer=None: 'embed' has no layer"):
        Site("z")
    with pytest.raises(SiteError, match="'embed' with layer=0: 'embed' has no layer"):
        Site("embed", 0)
    with pytest.raises(LayerError, match="layer -1 is negative; layers count from 0"):
        Site("z", -1)


def test_a_head_needs_a_component_with_heads():
    with pytest.raises(SiteError, match="'mlp_out' has no heads, but head=1 was given"):
        Site("mlp_out", 3, head=1)
    with pytest.raises(SiteError, match="'embed' has no heads"):
        Site.parse("hook_embed", head=0)
    with pytest.raises(LayerError, match="head -1 is negative; heads count from 0"):
        Site("z", 3, head=-1)


def test_the_errors_are_also_pythons_own():
    with pytest.raises(ValueError, match="is no site"):
        Site.parse("resid")
    with pytest.raises(IndexError, match="negative"):
        Site("z", -1)
