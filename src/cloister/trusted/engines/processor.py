"""Which builds of a module this processor runs."""

import platform
from collections.abc import Iterable

from cloister.errors import InputError

_V3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
_V4 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_NEEDS: dict[str, set[str]] = {
    "native-x86-64-v4": _V3 | _V4,
    "native-x86-64-v3": _V3,
    "native-x86-64": set(),
}
"""By the kernel's words; it leaves out what the operating system does not save."""


def runnable_builds() -> tuple[str, ...]:
    """The native builds that this processor can run, the fastest one first."""
    return _runnable(_flags())


def _runnable(flags: set[str]) -> tuple[str, ...]:
    return tuple(build for build, needed in _NEEDS.items() if needed <= flags)


def require_x86_64(*, name: str) -> None:
    """Refuse to start an engine elsewhere: the filter of system calls is that of one machine.

    Raises   InputError
    """
    if platform.machine() != "x86_64":
        raise InputError(
            f"module {name!r}: engines run on x86-64 only, and this is {platform.machine()}"
        )


def best_build(builds: Iterable[str], *, name: str) -> str:
    """The fastest native build of a module that this processor runs.

    Raises   InputError
    """
    found = [build for build in runnable_builds() if build in set(builds)]
    if not found:
        raise InputError(
            f"module {name!r}: has no native build for this processor; compile it with "
            "--target native"
        )
    return found[0]


def _flags() -> set[str]:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            word, _, rest = line.partition(":")
            if word.strip() == "flags":
                return set(rest.split())
    return set()
