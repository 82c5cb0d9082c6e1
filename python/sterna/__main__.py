"""`python -m sterna` is the command line."""

import sys

from sterna.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
