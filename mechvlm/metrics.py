"""Numbers from last-position logits, each with its unit and the meaning of 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mechvlm.errors import MetricError, TokenError

__all__ = [
    "Metric",
    "Words",
    "kl_divergence",
    "log_probability",
    "logit_difference",
    "probability",
    "probability_change",
    "rank",
    "recovery",
]


_ROUNDING = 1e-5
"""Gap that is none. One prompt run twice, as a batch and alone, gives float32 logits of
10 that differ by up to 2e-6; a gap of that size makes recoveries of mere rounding."""


@runtime_checkable
class Words(Protocol):
    """What a metric needs of a model: its word for a token."""

    def to_single_token(self, word: str) -> int:
        """Token id of a word that is exactly one token."""
        ...


@dataclass(frozen=True)
class Metric:
    """A number of each run's last-position logits.

    Attributes:
        name: What is measured, as it appears in results.
        units: Its unit.
        measure: From the logits that it reads, `[run token]`, to one number per run.
        tokens: Vocabulary columns that it reads, in this order; None means all of them.
    """

    name: str
    units: str
    measure: Callable[[Tensor], Tensor]
    tokens: tuple[int, ...] | None = None

    def __call__(self, logits: Float[Tensor, "run vocab"]) -> Float[Tensor, " run"]:
        """One number per run, in `units`."""
        return self.of_columns(logits if self.tokens is None else logits[:, self._at])

    def of_columns(self, columns: Float[Tensor, "run token"]) -> Float[Tensor, " run"]:
        """The same from the columns `tokens` alone, for who computes no others."""
        return self.measure(columns.float())

    @property
    def _at(self) -> list[int]:
        return list(self.tokens or ())


def logit_difference(vlm: Words, answer: str | int, foil: str | int) -> Metric:
    """Logit of the answer minus logit of the foil, in nats of log-odds.

    Args:
        vlm: Model whose words these are.
        answer: The right answer, one word or a token id.
        foil: The wrong answer, likewise.

    Returns:
        A metric: above 0 the answer is preferred, 0 is a tie.

    Raises:
        TokenError: A word is not exactly one token.
        MetricError: Answer and foil are the same token.

    Example:
        >>> import mechvlm as mv
        >>> mv.logit_difference(mv.load("demo"), "red", "blue").name
        'logit difference red - blue'
    """
    right, wrong = _token(vlm, answer), _token(vlm, foil)
    if right == wrong:
        raise MetricError(
            f"answer {answer!r} and foil {foil!r} are the same token {right}, so their"
            " logit difference is always 0."
        )
    return Metric(
        f"logit difference {answer} - {foil}",
        "nats",
        lambda pair: pair[:, 0] - pair[:, 1],
        (right, wrong),
    )


def probability(vlm: Words, answer: str | int) -> Metric:
    """Probability of the answer, from 0 to 1.

    Raises:
        TokenError: The word is not exactly one token.

    Example:
        >>> import mechvlm as mv
        >>> import torch
        >>> vlm = mv.load("demo")
        >>> tie = torch.zeros(2, vlm.cfg.d_vocab)
        >>> [round(vlm.cfg.d_vocab * float(p)) for p in mv.probability(vlm, "red")(tie)]
        [1, 1]
    """
    token = _token(vlm, answer)
    return Metric(
        f"probability of {answer}",
        "probability",
        lambda logits: logits.softmax(dim=-1)[:, token],
    )


def log_probability(vlm: Words, answer: str | int) -> Metric:
    """Log-probability of the answer, in nats; 0 is certainty.

    Raises:
        TokenError: The word is not exactly one token.

    Example:
        >>> import mechvlm as mv
        >>> import torch
        >>> vlm = mv.load("demo")
        >>> tie = torch.zeros(2, vlm.cfg.d_vocab)
        >>> p = mv.log_probability(vlm, "red")(tie).exp()
        >>> (p * vlm.cfg.d_vocab).round().tolist()
        [1.0, 1.0]
    """
    token = _token(vlm, answer)
    return Metric(
        f"log-probability of {answer}",
        "nats",
        lambda logits: logits.log_softmax(dim=-1)[:, token],
    )


def probability_change(
    vlm: Words, answer: str | int, clean: Float[Tensor, " vocab"]
) -> Metric:
    """Change of the answer's probability, in percent of its clean probability.

    Args:
        vlm: Model whose word the answer is.
        answer: One word or a token id.
        clean: Last-position logits of the same prompt with nothing done to it.

    Returns:
        A metric 100 * (p / p_clean - 1): 0 changes nothing, -100 erases the answer.

    Raises:
        TokenError: The word is not exactly one token.
        MetricError: The clean run gives the answer no probability to lose.

    Paper: relative change of Zhang et al. 2024, arXiv:2411.18620.

    Example:
        >>> import mechvlm as mv
        >>> import torch
        >>> vlm = mv.load("demo")
        >>> tie = torch.zeros(2, vlm.cfg.d_vocab)
        >>> mv.probability_change(vlm, "red", tie[0])(tie).tolist()
        [0.0, 0.0]
    """
    token = _token(vlm, answer)
    p_clean = clean.float().softmax(dim=-1)[token]
    if p_clean == 0:
        raise MetricError(
            f"answer {answer!r} (token {token}) has probability 0 in the clean run, so"
            " it has none to lose. Is it the answer that the model gives?"
        )
    return Metric(
        f"change of probability of {answer}",
        "% of clean probability",
        lambda logits: 100 * (logits.softmax(dim=-1)[:, token] / p_clean - 1),
    )


def rank(vlm: Words, answer: str | int) -> Metric:
    """Number of tokens with a higher logit than the answer; 0 is the model's choice.

    Raises:
        TokenError: The word is not exactly one token.

    Example:
        >>> import mechvlm as mv
        >>> import torch
        >>> vlm = mv.load("demo")
        >>> tie = torch.zeros(2, vlm.cfg.d_vocab)
        >>> mv.rank(vlm, "red")(tie).tolist()
        [0.0, 0.0]
    """
    token = _token(vlm, answer)
    return Metric(
        f"rank of {answer}",
        "rank",
        lambda logits: (logits > logits[:, token, None]).sum(dim=-1).float(),
    )


def kl_divergence(clean: Float[Tensor, " vocab"]) -> Metric:
    """Kullback-Leibler divergence from the clean run's prediction, in nats.

    Args:
        clean: Last-position logits of the same prompt with nothing done to it.

    Returns:
        A metric KL(clean || run): 0 says the prediction is unchanged.

    Example:
        >>> import torch
        >>> tie = torch.zeros(2, 5)
        >>> kl_divergence(tie[0])(tie).tolist()
        [0.0, 0.0]
    """
    expected = clean.float().log_softmax(dim=-1)

    def measure(logits: Tensor) -> Tensor:
        found = logits.log_softmax(dim=-1)
        return (expected.exp() * (expected - found)).sum(dim=-1)

    return Metric("KL to the clean run", "nats", measure)


def recovery(metric: Metric, *, clean: float, corrupted: float) -> Metric:
    """Where a metric lies between its corrupted (0) and its clean value (1).

    Args:
        metric: The metric that is normalised.
        clean: Its value in the clean run.
        corrupted: Its value in the corrupted run.

    Returns:
        A metric (m - corrupted) / (clean - corrupted), a fraction: 0 at the corrupted
        value, 1 at the clean one, beyond them where an intervention overshoots.

    Raises:
        MetricError: Both values are the same but for rounding (1e-5 of the larger, or
            1e-5), so there is nothing to recover, or one is not finite.

    Paper: Heimersheim and Nanda 2024, arXiv:2404.15255.

    Example:
        >>> import mechvlm as mv
        >>> import torch
        >>> vlm = mv.load("demo")
        >>> tie = torch.zeros(2, vlm.cfg.d_vocab)
        >>> half = mv.logit_difference(vlm, "red", "blue")
        >>> mv.recovery(half, clean=4.0, corrupted=-4.0)(tie).tolist()
        [0.5, 0.5]
    """
    gap = clean - corrupted
    if not isfinite(gap):
        raise MetricError(
            f"{metric.name} is {clean:.4g} in the clean and {corrupted:.4g} in the"
            " corrupted run: a share of that gap is no number."
        )
    if abs(gap) <= _ROUNDING * max(1.0, abs(clean), abs(corrupted)):
        raise MetricError(
            f"{metric.name} is {clean:.4g} in the clean and {corrupted:.4g} in the"
            " corrupted run: there is no gap to recover. Do the two prompts really"
            " differ in what is asked about?"
        )
    return Metric(
        f"recovery of {metric.name}",
        "fraction of the clean-corrupted gap",
        lambda columns: (metric.of_columns(columns) - corrupted) / gap,
        metric.tokens,
    )


def _token(vlm: Words, word: str | int) -> int:
    if isinstance(word, str):
        return vlm.to_single_token(word)
    if word < 0:
        raise TokenError(f"token id {word} is negative; ids count from 0.")
    return word
