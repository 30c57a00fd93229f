"""What row-wise passes cost: multiplications and memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mechvlm.cone import Reads, Step
from mechvlm.interventions import Intervention, Knockout, parts
from mechvlm.models.config import Config
from mechvlm.models.rowwise.kernels import kernel_for, plain
from mechvlm.models.rowwise.rows import WORTH_TWO_CALLS

__all__ = ["Costs"]


@dataclass(frozen=True)
class Costs:
    """Costs of computing rows of one model on one prompt.

    A work of 1 is one multiplication with its addition.

    Attributes:
        cfg: The model's numbers.
        reads: Who may read whom.
    """

    cfg: Config
    reads: Reads

    @property
    def into_heads(self) -> int:
        """Work of queries, keys and values of one row."""
        n_heads = self.cfg.n_heads + 2 * self.cfg.n_key_value_heads
        return self.cfg.d_model * n_heads * self.cfg.d_head

    @property
    def behind_heads(self) -> int:
        """Work of the output projection and the MLP of one row."""
        d_model, cfg = self.cfg.d_model, self.cfg
        return d_model * cfg.n_heads * cfg.d_head + self.mlp

    @property
    def mlp(self) -> int:
        """Work of the MLP of one row."""
        return 3 * self.cfg.d_model * self.cfg.d_mlp

    def attention(self, layer: int, rows: range) -> int:
        """Work of scores and their sums, for rows that read all that they may."""
        return 2 * self.cfg.n_heads * self.cfg.d_head * self.reads.pairs(layer, rows)

    @property
    def unembedding(self) -> int:
        """Work of the logits of one row."""
        return self.cfg.d_model * self.cfg.d_vocab

    def whole(self) -> int:
        """Work of one whole pass that reads the last position out."""
        n, layers = self.reads.n, range(self.reads.n_layers)
        linear = n * (self.into_heads + self.behind_heads)
        attention = sum(self.attention(layer, range(n)) for layer in layers)
        return len(layers) * linear + attention + self.unembedding

    def done(self, steps: Iterable[Step]) -> int:
        """Work that the steps of one intervention are."""
        return sum(map(self._done, steps))

    def _done(self, step: Step) -> int:
        rows, out = len(step.rows), len(step.out)
        if step.layer == self.reads.n_layers:
            return self.unembedding
        if not step.attends:
            return rows * self.behind_heads
        if out > WORTH_TWO_CALLS * rows:
            linear = rows * (self.into_heads + self.behind_heads)
            return linear + self.attention(step.layer, step.rows)
        linear = rows * self.into_heads + out * (self.into_heads + self.behind_heads)
        return linear + self.attention(step.layer, step.out)

    def least(self, steps: Iterable[Step]) -> int:
        """Work of just those cells that can change and matter."""
        return sum(map(self._least, steps))

    def _least(self, step: Step) -> int:
        if step.layer == self.reads.n_layers:
            return self.unembedding
        if not step.attends:
            return step.n_out * self.mlp
        of_keys = 2 * self.cfg.d_model * self.cfg.n_key_value_heads * self.cfg.d_head
        linear = step.n_out * (self.into_heads + self.behind_heads)
        share = step.n_out / max(1, len(step.out))
        attention = round(share * self.attention(step.layer, step.out))
        return linear + step.n_keys * of_keys + attention

    def row_bytes(self, interventions: Iterable[Intervention]) -> int:
        """Memory of one row on its way through a layer, in a sweep of these."""
        cfg, size = self.cfg, self.cfg.dtype.itemsize
        every = (part for each in interventions for part in parts(each))
        cuts = [part for part in every if isinstance(part, Knockout)]
        by_head = any(cut.heads is not None for cut in cuts)
        masks = (cfg.n_heads if by_head else bool(cuts)) * (size + 2) * self.reads.n
        capped = cfg.attn_scores_soft_cap is not None
        spelled_out = capped or kernel_for(cfg.device.type, cfg.dtype) is plain
        # Scores that are spelled out are there in some copies, in fp32.
        scores = 16 * cfg.n_heads * self.reads.n * spelled_out
        activations = size * (3 * cfg.d_mlp + 10 * cfg.d_model) + 16 * cfg.d_model
        return activations + masks + scores

    def kept_bytes(self) -> int:
        """Memory of one row's own keys and values in every layer, for generating."""
        cfg = self.cfg
        width = 2 * cfg.n_key_value_heads * cfg.d_head
        return cfg.n_layers * width * cfg.dtype.itemsize

    def base_bytes(self) -> int:
        """Memory of a base run: the stream, heads, keys and values of every layer."""
        cfg, size = self.cfg, self.cfg.dtype.itemsize
        heads = (cfg.n_heads + 2 * cfg.n_key_value_heads) * cfg.d_head
        return cfg.n_layers * self.reads.n * size * (cfg.d_model + heads)
