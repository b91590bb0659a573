"""`python -m bptt`, which is what torchrun starts."""

import sys

from bptt.cli import main

if __name__ == "__main__":
    sys.exit(main())
