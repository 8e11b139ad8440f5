"""`python -m cloister` is the command line."""

import sys

from cloister.cli.command import run

if __name__ == "__main__":
    sys.exit(run())
