"""`python -m cloister` is the command line."""

import sys

from cloister.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
