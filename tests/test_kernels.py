"""Attention over parts of the keys, merged, is attention over all of them.

Oracle: the formula written out in fp64, row by row, over all keys at once.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechvlm.interventions import Knockout
from mechvlm.layout import Positions
from mechvlm.models.rowwise.kernels import kernel_for, merged, plain, removal
from mechvlm.models.rowwise.row_attention import Attention, Group, Masks, Shared

SCALE = 0.3
BOUNDS = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 3e-2,
}
"""Rounding of numbers of size 1: about four units of the type's last place."""

every_type = pytest.mark.parametrize("dtype", BOUNDS, ids=str)
FORMS = [
    *(("open", rows, keys) for rows, keys in ((1, 1), (1, 40), (7, 7), (3, 70))),
    *(("cut", rows, keys) for rows, keys in ((1, 40), (40, 40), (3, 70))),
    *(("causal", rows, rows) for rows in (1, 7, 40)),
]


def by_hand(query, key, value, allowed, softcap=None):
    """Output and log-sum-exp of each row, from its readable keys alone."""
    query, key, value = (each.double().cpu() for each in (query, key, value))
    output, total = torch.zeros(*query.shape[:-1], value.shape[-1]), []
    output = output.double()
    for at in torch.cartesian_prod(*(torch.arange(n) for n in query.shape[:-1])):
        batch, head, row = at.tolist()
        read = allowed[batch, head, row].nonzero().flatten()
        scores = SCALE * key[batch, head, read] @ query[batch, head, row]
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        total.append(scores.exp().sum().log() if len(read) else -math.inf)
        if len(read):
            weights = scores.exp() / scores.exp().sum()
            output[batch, head, row] = weights @ value[batch, head, read]
    return output, torch.tensor(total).double().reshape(query.shape[:-1])


def drawn(dtype, *shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw).to(dtype)


def check_close(found, wanted, dtype):
    torch.testing.assert_close(
        found.double().cpu(), wanted.double(), rtol=0, atol=BOUNDS[dtype]
    )


# --- kernels --------------------------------------------------------------------------


def check_kernels(device, dtype, form, rows, keys):
    query = drawn(dtype, 3, 4, rows, 16)
    key, value = (drawn(dtype, 3, 4, keys, 16, seed=seed) for seed in (1, 2))
    allowed = torch.ones(3, 4, rows, keys, dtype=torch.bool)
    if form == "causal":
        allowed = allowed.tril()
    if form == "cut":
        allowed = torch.rand(3, 1, rows, keys) < 0.6
        allowed[..., 0] = True
    mask = removal(~allowed, dtype).to(device) if form == "cut" else None
    wanted = by_hand(query, key, value, allowed.expand(3, 4, rows, keys))
    here = [each.to(device) for each in (query, key, value)]
    for kernel in (kernel_for(device, dtype), plain):
        found = kernel(*here, SCALE, mask, causal=form == "causal")
        for one, other in zip(found, wanted, strict=True):
            check_close(one, other, dtype)


@every_type
@pytest.mark.parametrize(("form", "rows", "keys"), FORMS)
def test_a_kernel_gives_the_plain_formula(dtype, form, rows, keys):
    check_kernels("cpu", dtype, form, rows, keys)


@every_type
def test_the_usual_types_have_a_fast_kernel(dtype):
    """Where they had none, all that is shown of it here would be shown of `plain`."""
    assert kernel_for("cpu", dtype) is not plain


def test_a_device_that_is_not_known_gets_the_plain_kernel():
    for device in ("mps", "xpu", "a new one"):
        assert kernel_for(device, torch.float32) is plain


def test_a_kernel_that_lacks_a_type_or_errs_is_not_taken(monkeypatch):
    from mechvlm.models.rowwise import kernels

    def lacking(*_, **__):
        raise RuntimeError("not implemented for this type")

    def wrong(*given, **named):
        output, total = plain(*given, **named)
        return output, total + 1e-3

    def uncausal(*given, causal=False):
        return plain(*given)

    for kernel in (lacking, wrong, uncausal):
        kernel_for.cache_clear()
        monkeypatch.setitem(kernels._FAST, "cpu", kernel)
        assert kernel_for("cpu", torch.float32) is plain
    monkeypatch.setitem(kernels._FAST, "cpu", lambda *x, **y: plain(*x, **y))
    kernel_for.cache_clear()
    assert kernel_for("cpu", torch.float32) is not plain
    kernel_for.cache_clear()


def test_the_plain_kernel_caps_scores():
    query, key, value = (
        drawn(torch.float64, 1, 2, 5, 16, seed=s) * 3 for s in range(3)
    )
    allowed = torch.ones(1, 2, 5, 5, dtype=torch.bool).tril()
    wanted, total = by_hand(query, key, value, allowed, softcap=2.0)
    found, sums = plain(query, key, value, SCALE, causal=True, softcap=2.0)
    check_close(found, wanted, torch.float64)
    check_close(sums, total, torch.float64)
    free, _ = plain(query, key, value, SCALE, causal=True)
    assert (free - wanted).abs().max() > 0.1


# --- parts ----------------------------------------------------------------------------


def check_parts(device, dtype, *, causal):
    rows = keys = 24
    query = drawn(dtype, 2, 3, rows, 16)
    key, value = (drawn(dtype, 2, 3, keys, 16, seed=seed) for seed in (1, 2))
    allowed = torch.rand(2, 1, rows, keys) < 0.5
    allowed[..., 3] = True
    allowed[:, :, 5:9, :10], allowed[:, :, 5:9, 12] = False, True
    allowed[:, :, 15:, 10:] = False
    if causal:
        allowed = torch.ones(2, 1, rows, keys, dtype=torch.bool).tril()
    wanted, total = by_hand(query, key, value, allowed.expand(2, 3, rows, keys))
    for kernel in (kernel_for(device, dtype), plain):
        parts = [
            kernel(
                query.to(device),
                key[:, :, start:stop].to(device),
                value[:, :, start:stop].to(device),
                SCALE,
                removal(~allowed[..., start:stop], dtype).to(device),
            )
            for start, stop in ((0, 4), (4, 10), (10, keys))
        ]
        for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
            first, second, third = (parts[i] for i in order)
            output, sums = merged(merged(first, second), third)
            check_close(output, wanted, dtype)
            check_close(sums, total, dtype)
            assert output.dtype == dtype


@every_type
@pytest.mark.parametrize("causal", [False, True])
def test_parts_merged_are_the_whole(dtype, causal):
    """Some rows have nothing to read in one part, some in the other."""
    check_parts("cpu", dtype, causal=causal)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_kernels_on_cuda():
    for dtype in BOUNDS:
        for form in FORMS:
            check_kernels("cuda", dtype, *form)
        for causal in (False, True):
            check_parts("cuda", dtype, causal=causal)
        if dtype != torch.float64:
            assert kernel_for("cuda", dtype) is not plain


def test_a_part_that_is_all_cut_weighs_nothing_even_beside_tiny_scores():
    query = torch.full((1, 1, 1, 8), 100.0)
    key, value = -query.expand(1, 1, 2, 8), torch.tensor([1.0, 1e30])
    value = value[None, None, :, None].expand(1, 1, 2, 8)
    for dtype in BOUNDS:
        given = [x.clamp(-6e4, 6e4).to(dtype) for x in (query, key, value)]
        cut = torch.tensor([[[[False, True]]]])
        left, right = (
            kernel_for("cpu", dtype)(
                given[0],
                given[1][:, :, part],
                given[2][:, :, part],
                0.1,
                removal(cut[..., part], dtype),
            )
            for part in (slice(0, 1), slice(1, 2))
        )
        assert torch.equal(merged(left, right)[0], given[2][:, :, :1])
        assert torch.equal(merged(right, left)[0], given[2][:, :, :1])


# --- flat rows ------------------------------------------------------------------------

N, KV, SHARED_BY, WIDTH = 11, 2, 2, 8
HEADS = KV * SHARED_BY
CAUSAL = torch.ones(N, N).tril().bool()
IMAGE = CAUSAL.clone()
IMAGE[2:6, 2:6] = True
WINDOW = CAUSAL.triu(-3)


@settings(max_examples=60)
@given(
    mask=st.sampled_from([CAUSAL, IMAGE, WINDOW]),
    ends=st.lists(st.integers(0, N), min_size=2, max_size=2, unique=True).map(sorted),
    inner=st.lists(st.integers(0, N), min_size=2, max_size=2, unique=True).map(sorted),
    n_items=st.integers(1, 3),
    cut=st.sampled_from([None, (None, (0, 4)), ((1,), (4, 7)), ((0, 3), (8, 9))]),
    softcap=st.sampled_from([None, 1.5]),
)
def test_flat_rows_attend_as_whole_sequences_do(
    mask, ends, inner, n_items, cut, softcap
):
    """Grouped heads; each item has keys of its own for some positions; some are cut."""
    own, out = range(*ends), range(max(ends[0], inner[0]), min(ends[1], inner[1]))
    out = out if len(out) else range(ends[1] - 1, ends[1])
    base = [drawn(torch.float64, KV, N, WIDTH, seed=s) for s in (1, 2)]
    flat = [drawn(torch.float64, KV, n_items * len(own), WIDTH, seed=s) for s in (3, 4)]
    query = drawn(torch.float64, HEADS, n_items * len(out), WIDTH)
    table, cuts, allowed = Masks(HEADS, N), (), mask.expand(n_items, HEADS, N, N)
    allowed = allowed.clone()
    if cut is not None:
        heads, source = cut
        what = Knockout((0,), Positions.of(range(1, N)), Positions.of(source), heads)
        # Every second item is cut.
        cuts = tuple(
            (table.number(what),) if i % 2 == 0 else () for i in range(n_items)
        )
        for head in range(HEADS) if heads is None else heads:
            allowed[::2, head, 1:, list(source)] = False
    allowed = allowed[:, :, out.start : out.stop]
    if not allowed.any(dim=-1).all():
        return
    attention = Attention(Shared(*base, mask, SCALE, softcap), table)
    group = Group(tuple(range(n_items)), own, out, 0, 0, cuts)
    found = attention.of_batch(query, *flat, [group])
    whole = [x.expand(n_items, KV, N, WIDTH).clone() for x in base]
    for one, rows in zip(whole, flat, strict=True):
        rows = rows.unflatten(1, (n_items, len(own))).transpose(0, 1)
        one[:, :, own.start : own.stop] = rows
    whole = [x.repeat_interleave(SHARED_BY, dim=1) for x in whole]
    items = query.unflatten(1, (n_items, len(out))).transpose(0, 1)
    wanted, _ = by_hand(items, *whole, allowed, softcap)
    check_close(
        found[0].unflatten(0, (n_items, -1)).transpose(1, 2), wanted, torch.float64
    )


def test_equal_cuts_of_other_layers_share_a_number():
    table = Masks(HEADS, N)
    target, source = Positions.of(9, 10), Positions.of(2, 3)
    first = table.number(Knockout((0,), target, source))
    assert table.number(Knockout((3, 1), target, source)) == first
    one_head = table.number(Knockout((0,), target, source, (2,)))
    assert one_head != first
    block = table.block((first, one_head), range(8, 11))
    wanted = torch.zeros(HEADS, 3, N, dtype=torch.bool)
    wanted[:, 1:, 2:4] = True
    assert torch.equal(block, wanted)
    assert table.block((first,), range(8, 11)).shape == (1, 3, N)
