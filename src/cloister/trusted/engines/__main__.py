"""The process of an engine: `python -m cloister.trusted.engines`, started by module_engine.py."""

import sys

from cloister.trusted.engines.engine_process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
