"""The `mechvlm` command: words in, the same public calls as from Python.

Nothing heavy is imported before a command needs it, so that help answers at once: the
modules `app`, `commands`, `options`, `given`, `told` and `files` are light, and a
command imports the one that does its work.
"""

import sys

try:
    from mechvlm.cli import commands as commands
    from mechvlm.cli.app import app, main
except KeyboardInterrupt:  # Ctrl-C before `main` can hear it
    sys.stderr.write("mechvlm: stopped\n")
    raise SystemExit(130) from None

__all__ = ["app", "main"]
