"""`cloister`, whose data sets are the same in every run: what it draws follows from its arguments.

Started as `seeded_cloister.py ARGUMENTS`; a port and a temporary folder change nothing.
"""

import sys
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cloister.cli.main import main
from training.same_draws import same_draws

if __name__ == "__main__":
    names = [Path(one).name for one in sys.argv[1:] if "://" not in one]
    with same_draws(zlib.crc32("\0".join(names).encode())):
        raise SystemExit(main(sys.argv[1:]))
