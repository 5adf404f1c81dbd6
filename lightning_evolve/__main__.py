"""``python -m lightning_evolve`` is the same as the console script ``lightning-evolve``."""

import sys

from lightning_evolve.cli import main

if __name__ == "__main__":
    sys.exit(main())
