"""The papers whose methods this package implements, by the key its results carry."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from mechvlm.errors import ResultError

__all__ = ["PAPERS", "cite"]

PAPERS: Mapping[str, str] = MappingProxyType(
    {
        "arXiv:2005.00928": (
            "Abnar, Zuidema: Quantifying Attention Flow in Transformers. ACL 2020."
        ),
        "arXiv:2202.05262": (
            "Meng, Bau, Andonian, Belinkov: Locating and Editing Factual Associations"
            " in GPT. NeurIPS 2022."
        ),
        "arXiv:2211.00593": (
            "Wang, Variengien, Conmy, Shlegeris, Steinhardt: Interpretability in the"
            " Wild: a Circuit for Indirect Object Identification in GPT-2 Small. ICLR"
            " 2023."
        ),
        "arXiv:2304.14767": (
            "Geva, Bastings, Filippova, Globerson: Dissecting Recall of Factual"
            " Associations in Auto-Regressive Language Models. EMNLP 2023."
        ),
        "arXiv:2306.13394": (
            "Fu, Chen, Shen et al.: MME: A Comprehensive Evaluation Benchmark for"
            " Multimodal Large Language Models. 2023."
        ),
        "arXiv:2310.10348": (
            "Syed, Rager, Conmy: Attribution Patching Outperforms Automated Circuit"
            " Discovery. 2023."
        ),
        "arXiv:2403.17806": (
            "Hanna, Pezzelle, Belinkov: Have Faith in Faithfulness: Going Beyond"
            " Circuit Overlap When Finding Model Mechanisms. COLM 2024."
        ),
        "arXiv:2404.15255": (
            "Heimersheim, Nanda: How to Use and Interpret Activation Patching. 2024."
        ),
        "arXiv:2406.16320": (
            "Golovanevsky, Rudman, Palit, Singh, Eickhoff: What Do VLMs NOTICE? A"
            " Mechanistic Interpretability Pipeline for Gaussian-Noise-free Text-Image"
            " Corruption and Evaluation. NAACL 2025."
        ),
        "arXiv:2410.07149": (
            "Neo, Ong, Torr, Geva, Krueger, Barez: Towards Interpreting Visual"
            " Information Processing in Vision-Language Models. ICLR 2025."
        ),
        "arXiv:2411.17491": (
            "Kaduri, Bagon, Dekel: What's in the Image? A Deep-Dive into the Vision of"
            " Vision Language Models. CVPR 2025."
        ),
        "arXiv:2411.18620": (
            "Zhang, Yadav, Han, Shutova: Cross-modal Information Flow in Multimodal"
            " Large Language Models. CVPR 2025."
        ),
        "arXiv:2412.14133": (
            "Cohen, Gottesman, Geva, Giryes: Performance Gap in Entity Knowledge"
            " Extraction Across Modalities in Vision Language Models. ACL 2025."
        ),
    }
)


@runtime_checkable
class Attributed(Protocol):
    """Anything with an `attrs` mapping, as every labelled result has."""

    @property
    def attrs(self) -> Mapping[object, object]:
        """Attributes of the result."""
        ...


def cite(result: Attributed | str) -> str:
    """Citation of the paper behind a result.

    Args:
        result: A labelled result of an analysis, or a paper key ("arXiv:2304.14767").

    Returns:
        One line: authors, title, venue, and the key itself.

    Raises:
        ResultError: The result names no paper, or one that is not known here.

    Example:
        >>> cite("arXiv:2404.15255").split(":")[0]
        'Heimersheim, Nanda'
    """
    key = result if isinstance(result, str) else result.attrs.get("paper")
    if not isinstance(key, str) or key not in PAPERS:
        known = ", ".join(PAPERS)
        raise ResultError(
            f"no paper is known as {key!r}. Wanted one of: {known}. Results of the"
            ' analyses carry it as `result.attrs["paper"]`.'
        )
    return f"{PAPERS[key]} {key}"
