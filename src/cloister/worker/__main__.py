"""`python -m cloister.worker`."""

import sys

from cloister.worker.serve import main

if __name__ == "__main__":
    sys.exit(main())
