"""The counter in a file: it goes up by one caller at a time, and cannot tell an old file."""

import os
import shutil
import threading

import pytest

from cloister.errors import CounterError
from cloister.tickets.insecure_file_counter import InsecureFileCounter
from cloister.tickets.ticket import MAX_SERIAL


@pytest.fixture
def path(tmp_path):
    return tmp_path / "counter"


def test_it_says_insecure():
    assert "insecure" in InsecureFileCounter.kind
    assert InsecureFileCounter.__name__.startswith("Insecure")


def test_a_new_counter_is_at_zero_and_moves_from_where_it_is(path):
    counter = InsecureFileCounter.open(path)
    assert counter.read() == 0
    counter.advance(0, 1)
    counter.advance(1, 7)
    assert InsecureFileCounter.open(path).read() == 7
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("before", [0, 6, 8])
def test_it_does_not_move_from_elsewhere(path, before):
    counter = InsecureFileCounter.open(path)
    counter.advance(0, 7)
    with pytest.raises(CounterError, match=f"is at 7, and at {before} for its caller"):
        counter.advance(before, 9)
    assert counter.read() == 7


@pytest.mark.parametrize(("before", "to"), [(7, 7), (7, 6), (7, 0), (7, MAX_SERIAL + 1), (7, -1)])
def test_it_only_goes_up(path, before, to):
    counter = InsecureFileCounter.open(path)
    counter.advance(0, 7)
    with pytest.raises(CounterError, match="cannot go from"):
        counter.advance(before, to)
    assert counter.read() == 7


def test_of_several_threads_one_moves_it(path):
    counter, moved = InsecureFileCounter.open(path), []

    def move(to: int) -> None:
        try:
            counter.advance(0, to)
        except CounterError:
            return
        moved.append(to)

    threads = [threading.Thread(target=move, args=(to,)) for to in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [counter.read()] == moved


def test_an_old_file_is_not_noticed(path, tmp_path):
    """The reason for its name."""
    counter = InsecureFileCounter.open(path)
    shutil.copy(path, tmp_path / "old")
    counter.advance(0, 5)
    shutil.copy(tmp_path / "old", path)
    assert counter.read() == 0


def test_damaged_files_and_others_are_refused(path):
    path.write_bytes(b"not a database, but long enough" * 50)
    with pytest.raises(CounterError, match="is damaged, or no counter"):
        InsecureFileCounter.open(path)
    path.unlink()
    counter = InsecureFileCounter.open(path)
    counter.advance(0, 5)
    for size in (100, 5000):
        os.truncate(path, size)
        with pytest.raises(CounterError):
            counter.read()
    path.unlink()
    with pytest.raises(CounterError, match="cannot be opened"):
        counter.read()
    with pytest.raises(CounterError, match="No such file"):
        InsecureFileCounter.open(path / "below")
