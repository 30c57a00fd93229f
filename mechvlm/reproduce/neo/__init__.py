"""Neo et al. 2024: where in the image tokens, and in which layers, an object is."""

from mechvlm.reproduce.neo.claims import NEO

__all__ = ["NEO"]
