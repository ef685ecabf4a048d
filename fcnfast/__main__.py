"""`python -m fcnfast`: the command line without its console script."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
