"""Mistakes of kind, made in a process in which beartype does not stop them first."""

import subprocess
import sys

REFUSED = """
from mechvlm.errors import ArgumentError
for call, *kind, said in cases:
    try:
        call()
    except (kind[0] if kind else ArgumentError) as error:
        assert said in str(error), (said, str(error))
    else:
        raise AssertionError(said)
"""


def check_refusals(script, cwd=None):
    """Run a script that sets `cases`: a call, its error, and words of the message.

    Without an error, `ArgumentError` is meant.
    """
    words = [sys.executable, "-c", script + REFUSED]
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
