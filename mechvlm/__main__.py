"""`python -m mechvlm` is the `mechvlm` command."""

from mechvlm.cli import main

main()
