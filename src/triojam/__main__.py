"""`python -m triojam`."""

import sys

from triojam.cli import main

if __name__ == "__main__":
    sys.exit(main())
