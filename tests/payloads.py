"""What a page's script is given, read in Python: shared by the tests of figures."""

import base64
import struct

import numpy as np


def unpacked(text: str) -> np.ndarray:
    """Numbers of which the page holds the upper three bytes of each 32-bit float."""
    raw = base64.b64decode(text)
    each = (b"\0" + raw[i : i + 3] for i in range(0, len(raw), 3))
    return np.array([struct.unpack("<f", four)[0] for four in each])
