"""The logit lens: what every position would say if the model stopped there."""

from __future__ import annotations

from mechvlm.analyses.logit_lens.hits import object_hit_rate, object_lens
from mechvlm.analyses.logit_lens.lens import logit_lens
from mechvlm.analyses.logit_lens.track import answer_track

__all__ = ["answer_track", "logit_lens", "object_hit_rate", "object_lens"]
