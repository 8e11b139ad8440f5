"""Private memory: populated when it is allocated, and not rounded up to huge pages."""

import mmap
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cloister.base import private_memory as under_test
from cloister.base.private_memory import HUGE_PAGE, populate, private_memory

LARGE = 32 * HUGE_PAGE + 3 * mmap.PAGESIZE
UNKNOWN_ADVICE = 9999
FAULTS_BESIDE = 64
"""Page faults that the interpreter may have meanwhile."""
BYTES_BESIDE = 2 * HUGE_PAGE
"""Memory that the interpreter may take meanwhile."""


@pytest.fixture(params=["populated", "touched"])
def _kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "touched":
        monkeypatch.setattr(under_test, "MADV_POPULATE_WRITE", UNKNOWN_ADVICE)
    yield


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _resident() -> int:
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    (line,) = [line for line in rollup.splitlines() if line.startswith("Rss:")]
    return int(line.split()[1]) * 1024


def _bytes_by_mapping(memory: np.ndarray) -> list[tuple[int, str, list[str]]]:
    """How much of an array lies in each mapping of this process, its permissions and flags."""
    first, last = memory.ctypes.data, memory.ctypes.data + memory.nbytes
    found: list[tuple[int, str, list[str]]] = []
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        name, *fields = line.split()
        if not name.endswith(":"):
            begin, end = (int(part, 16) for part in name.split("-"))
            size, permissions = min(end, last) - max(begin, first), fields[0]
        elif name == "VmFlags:" and size > 0:
            found.append((size, permissions, fields))
    return found


@pytest.mark.usefixtures("_kernel")
@pytest.mark.parametrize("nbytes", [1, 5000, HUGE_PAGE - 1, HUGE_PAGE, LARGE])
def test_memory_is_writable_zeros_of_the_size_asked_for(nbytes: int) -> None:
    memory = private_memory(nbytes)
    assert memory.shape == (nbytes,)
    assert memory.dtype == np.uint8
    assert not memory.any()
    memory[-1] = 7
    assert memory[-1] == 7


def test_no_bytes_are_an_empty_array() -> None:
    assert private_memory(0).size == 0


@pytest.mark.parametrize(
    ("nbytes", "alignment"), [(1, mmap.PAGESIZE), (HUGE_PAGE, HUGE_PAGE), (LARGE, HUGE_PAGE)]
)
def test_memory_is_aligned(nbytes: int, alignment: int) -> None:
    kept = [private_memory(nbytes) for _ in range(3)]
    assert [memory.ctypes.data % alignment for memory in kept] == [0, 0, 0]


@pytest.mark.usefixtures("_kernel")
def test_writing_to_it_causes_no_page_faults() -> None:
    memory = private_memory(LARGE)
    before = _faults()
    memory.fill(1)
    assert _faults() - before < FAULTS_BESIDE


def test_faults_are_seen_where_memory_is_not_populated() -> None:
    memory = np.frombuffer(mmap.mmap(-1, LARGE), np.uint8)
    before = _faults()
    memory.fill(1)
    assert _faults() - before >= LARGE // HUGE_PAGE


@pytest.mark.usefixtures("_kernel")
def test_a_part_is_populated_and_the_rest_is_not() -> None:
    memory = mmap.mmap(-1, 8 * LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    before = _resident()
    populate(memory, LARGE, LARGE)
    assert abs(_resident() - before - LARGE) < BYTES_BESIDE


def test_other_processes_do_not_share_it() -> None:
    found = _bytes_by_mapping(private_memory(LARGE))
    assert found
    assert {permissions for _, permissions, _ in found} == {"rw-p"}


def test_huge_pages_are_asked_for_whole_ones_alone() -> None:
    memory = private_memory(LARGE)
    advised = sum(size for size, _, flags in _bytes_by_mapping(memory) if "hg" in flags)
    assert advised == LARGE // HUGE_PAGE * HUGE_PAGE


def test_small_memory_takes_its_pages_and_no_more() -> None:
    before = _resident()
    small = [private_memory(mmap.PAGESIZE + 1) for _ in range(1000)]
    assert not any("hg" in flags for one in small[::100] for _, _, flags in _bytes_by_mapping(one))
    assert _resident() - before < 2000 * mmap.PAGESIZE + BYTES_BESIDE


def test_the_end_of_large_memory_is_not_rounded_up() -> None:
    before = _resident()
    kept = [private_memory(HUGE_PAGE + mmap.PAGESIZE) for _ in range(16)]
    assert _resident() - before < 16 * (HUGE_PAGE + mmap.PAGESIZE) + BYTES_BESIDE
    assert len(kept) == 16


def test_memory_goes_with_its_last_view() -> None:
    memory = private_memory(LARGE)
    view = memory[:10]
    address = memory.ctypes.data
    del memory
    view[0] = 1  # still there
    assert _mapped(address)
    del view
    assert not _mapped(address)


def _mapped(address: int) -> bool:
    lines = Path("/proc/self/maps").read_text(encoding="ascii").splitlines()
    spans = [line.split()[0].split("-") for line in lines]
    return any(int(begin, 16) <= address < int(end, 16) for begin, end in spans)


def test_what_no_machine_has_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="no memory for"):
        private_memory(1 << 60)
