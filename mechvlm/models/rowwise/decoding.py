"""Generation under many interventions at once, each an arm of one sweep.

The prompt is run once, and each arm computes only the cells of the prompt that it
changes. Then all arms go on together, one row each: their own keys and values beside
those of the prompt, which they share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mechvlm.cone import Cones
from mechvlm.interventions import Intervention
from mechvlm.models.attention import Answer, Asked, answering
from mechvlm.models.generation import (
    Generation,
    KeptLogits,
    Speaker,
    check_arms,
    ends_of,
    longest,
    said,
)
from mechvlm.models.lowering import Sources
from mechvlm.models.passes import stopped
from mechvlm.models.rowwise.base import Base, base_pass, read_out
from mechvlm.models.rowwise.batches import Item, Placed
from mechvlm.models.rowwise.costs import Costs
from mechvlm.models.rowwise.packing import check_rows, most_rows, packed
from mechvlm.models.rowwise.row_attention import Attention, Group
from mechvlm.models.rowwise.rows import Keys, RowPass
from mechvlm.models.rowwise.script import BEFORE, BEHIND, Script
from mechvlm.models.setting import Setting
from mechvlm.progress import bar_of
from mechvlm.prompts import Prompt

__all__ = ["generate_many"]


@torch.no_grad()
def generate_many(
    vlm: Speaker,
    prompt: Prompt,
    base: Base | None,
    arms: Sequence[Intervention],
    max_new_tokens: int,
    sources: Sources,
    *,
    logits: KeptLogits,
    batch_tokens: int | None,
    progress: str | bool | None,
) -> list[Generation]:
    """Continue a prompt greedily in each arm; see `HookedVLM.generate_many`."""
    if base is not None:
        base.check(vlm)
    check_rows(batch_tokens)
    longer = longest(prompt, max_new_tokens)
    setting = vlm.setting(longer)
    check_arms(vlm, longer, arms, sources, setting.reads)
    cones = Cones(setting.reads, prompt.layout.last)
    items = [Item(arm, cones.of(arm)) for arm in arms]
    most = _most_arm_rows(vlm, setting, arms, batch_tokens)
    base = base_pass(vlm, prompt) if base is None else base
    found: dict[int, Generation] = {}
    with bar_of(len(arms), progress) as bar:
        for members in _chunks(items, most, max_new_tokens - 1):
            together = _Arms(vlm, base, setting, [items[i] for i in members], sources)
            ends = ends_of(vlm.hf_model)
            answers = _spoken(together, max_new_tokens, ends, logits)
            for i, (chosen, kept) in zip(members, answers, strict=True):
                found[i] = said(vlm, prompt, arms[i], chosen, kept)
            bar.update(len(members))
    return [found[i] for i in range(len(arms))]


def _most_arm_rows(
    vlm: Speaker,
    setting: Setting,
    arms: Sequence[Intervention],
    batch_tokens: int | None,
) -> int:
    costs = Costs(vlm.cfg, setting.reads)
    row_bytes = costs.row_bytes(arms) + costs.kept_bytes()
    return most_rows(vlm.cfg, row_bytes, batch_tokens)


def _chunks(items: Sequence[Item], most: int, more: int) -> Iterator[tuple[int, ...]]:
    """Arms that go together; those that change nothing of the prompt go first."""
    still = tuple(i for i, item in enumerate(items) if not item.steps)
    at_once = max(1, most // max(1, more))
    for start in range(0, len(still), at_once):
        yield still[start : start + at_once]
    for each in packed(items, most, more):
        yield each.members


def _spoken(
    arms: _Arms, max_new_tokens: int, ends: set[int], logits: KeptLogits
) -> list[tuple[list[int], Float[Tensor, "step vocab"]]]:
    """Token ids of each arm's answer, and the logits that they were chosen from."""
    steps = [arms.start()]
    chosen = steps[0].argmax(dim=-1)
    words = [[word] for word in chosen.tolist()]
    for _ in range(max_new_tokens - 1):
        if all(said[-1] in ends for said in words):
            break
        step = arms.go_on(chosen)
        chosen = step.argmax(dim=-1)
        for said_so_far, word in zip(words, chosen.tolist(), strict=True):
            if said_so_far[-1] not in ends:
                said_so_far.append(word)
        if logits == "all":
            steps.append(step)
    kept = torch.stack(steps, dim=1)
    return [(w, kept[i, : len(w)].clone()) for i, w in enumerate(words)]


@dataclass(frozen=True, eq=False)
class _Kept:
    """Own keys and values of arms that begin to differ at the same position.

    Attributes:
        arms: Which arms these are.
        start: The first position that they have of their own.
        key: `[arm kv_head position d_head]`, with room for all that is generated.
        value: The same of the values.
    """

    arms: tuple[int, ...]
    start: int
    key: Tensor
    value: Tensor


class _Arms:
    """Several arms of one prompt, generating in step."""

    def __init__(
        self,
        vlm: Speaker,
        base: Base,
        setting: Setting,
        items: Sequence[Item],
        sources: Sources,
    ) -> None:
        self._vlm, self._base, self._setting = vlm, base, setting
        self._items, self._sources = items, sources
        self._script = Script(items, sources, vlm.cfg.n_heads, setting.reads.n)
        self._layers = [block.layer for block in vlm.tapped.blocks]
        self._kept: list[list[_Kept]] = []
        self._next = base.prompt.layout.n
        self._attend: Answer = lambda _: None

    def start(self) -> Float[Tensor, "arm vocab"]:
        """Run what the arms change of the prompt; logits of their first word."""
        logits = self._base.logits.repeat(len(self._items), 1)
        changed = [i for i, item in enumerate(self._items) if item.steps]
        keys: Mapping[int, Keys] = {}
        if changed:
            items = [self._items[i] for i in changed]
            made = RowPass(self._vlm, self._base, items, self._sources, keep_keys=True)
            reached, last = made.run()
            if reached:
                logits[[changed[i] for i in reached]] = read_out(self._vlm, last).to(
                    logits.device
                )
            keys = made.keys
        for number in range(len(self._layers)):
            own = _own(keys.get(number), changed)
            self._kept.append(list(self._room(number, own)))
        return logits

    def _room(self, number: int, own: _Own) -> Iterator[_Kept]:
        """Own keys and values of one layer, and room for those to come."""
        n, n_all = self._next, self._setting.reads.n
        alike: dict[int, list[int]] = {}
        for arm in range(len(self._items)):
            start = own[arm][0].start if arm in own else n
            alike.setdefault(start, []).append(arm)
        sides = (self._base.key[number], self._base.value[number])
        for start, arms in alike.items():
            key, value = (
                each.new_empty(len(arms), len(each), n_all - start, each.shape[-1])
                for each in sides
            )
            for room, each in zip((key, value), sides, strict=True):
                room[:, :, : n - start] = each[:, start:]
            for i, arm in enumerate(arms):
                if arm in own:
                    rows, *mine = own[arm]
                    for room, given in zip((key, value), mine, strict=True):
                        room[i, :, : len(rows)] = given
            yield _Kept(tuple(arms), start, key, value)

    def go_on(self, words: Tensor) -> Float[Tensor, "arm vocab"]:
        """Feed each arm its word; logits of its next one."""
        at, n_arms = self._next, len(self._items)
        here = range(at, at + 1)
        places = {arm: Placed(here, arm) for arm in range(n_arms)}
        rows = self._embedded(words)
        attentions = [layer.attn for layer in self._layers]
        config = self._vlm.tapped.text_config
        with answering(config, attentions, self._answer):
            for number, layer in enumerate(self._layers):
                rows = rows.to(self._base.stream[number].device)
                rows = self._script.between(number, places, rows)
                self._attend = partial(self._read, number, here)
                rows = self._script.called(
                    layer,
                    number,
                    rows,
                    given=self._setting.called(number, torch.full((n_arms,), at)),
                    places=places,
                    components=BEFORE | BEHIND,
                    d_head=self._vlm.cfg.d_head,
                )
        number = len(self._layers)
        rows = self._script.between(number, places, rows)
        self._next += 1
        self._script.masks.forget()
        return read_out(self._vlm, rows).to(self._base.logits.device)

    def _answer(self, asked: Asked) -> Tensor | None:
        return self._attend(asked)

    def _embedded(self, words: Tensor) -> Float[Tensor, "arm d_model"]:
        """What enters the first layer for each arm's word."""
        name = self._vlm.family.language_model
        language_model = self._vlm.hf_model.get_submodule(name)
        ids = words[None].to(self._vlm.cfg.device)
        run = lambda: language_model(input_ids=ids, use_cache=False)  # noqa: E731
        return stopped(language_model, 0, run)[0]

    def _read(self, number: int, here: range, asked: Asked) -> Tensor:
        """Attention of one row of each arm, which becomes part of what it keeps."""
        mask = self._setting.reads.mask(number)
        shared = replace(self._base.shared(number), mask=mask)
        attention = Attention(shared, self._script.masks)
        found = asked.query.new_empty(asked.query[0].transpose(0, 1).shape)
        for kept in self._kept[number]:
            arms, end = list(kept.arms), here.stop - kept.start
            kept.key[:, :, end - 1] = asked.key[0][:, arms].transpose(0, 1)
            kept.value[:, :, end - 1] = asked.value[0][:, arms].transpose(0, 1)
            group = Group(
                items=kept.arms,
                rows=range(kept.start, here.stop),
                out=here,
                first_row=0,
                first_out=0,
                cuts=tuple(self._script.cuts(number, arm) for arm in arms),
            )
            output = attention.of_group(
                asked.query[0][:, arms],
                kept.key[:, :, :end],
                kept.value[:, :, :end],
                group,
            )
            found[arms] = output.transpose(0, 1)
        return found[None]


_Own = dict[int, tuple[range, Tensor, Tensor]]


def _own(keys: Keys | None, arms: Sequence[int]) -> _Own:
    """Each arm's own positions in a layer, and their keys and values."""
    if keys is None:
        return {}
    found = {}
    for i, place in keys.batch.places.items():
        rows = slice(place.start, place.start + len(place.rows))
        found[arms[i]] = place.rows, keys.key[:, rows], keys.value[:, rows]
    return found
