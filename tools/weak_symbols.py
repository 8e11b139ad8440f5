"""Find functions that a linker could take from an object of another instruction set.

An inline function that is not in an unnamed namespace is a weak symbol of every object that uses
it, and the linker keeps one copy for all. A copy from an object compiled for AVX-512 would end the
process on a processor without it. So objects compiled for an instruction set define no weak symbol
at all, and run no code before `main`.

    python tools/weak_symbols.py NM ARCHIVE...
"""

import re
import subprocess
import sys

_SPECIAL = re.compile(r"_(avx2|avx512|amx)\.cpp\.o(bj)?\b")
_HARMLESS = re.compile(r"DW\.ref\.__gxx_personality_v0")
"""Pointers to the exception handler: data, the same in every object."""


def mixable(nm: str, archive: str) -> list[str]:
    """Each weak symbol and start-up function of an object for an instruction set, with its object.

    Raises ValueError when the archive has no such object.
    """
    listed = subprocess.run([nm, "-A", "-P", archive], capture_output=True, text=True, check=True)
    found, objects = [], set()
    for line in listed.stdout.splitlines():
        place, symbol, kind = line.rsplit(":", 1)[0], *line.rsplit(":", 1)[1].split()[:2]
        if not (special := _SPECIAL.search(place)):
            continue
        objects.add(special[0])
        weak = kind in "VWu" and not _HARMLESS.fullmatch(symbol)
        if weak or symbol.startswith("_GLOBAL__sub_I"):
            found.append(f"{place}: {symbol}")
    if not objects:
        raise ValueError(f"{archive}: no object for an instruction set; nothing was checked")
    return found


def main(nm: str, archives: list[str]) -> int:
    """Exit status: 1 if anything was found."""
    found = [symbol for archive in archives for symbol in mixable(nm, archive)]
    for symbol in found:
        sys.stderr.write(f"{symbol}: put it into an unnamed namespace\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
