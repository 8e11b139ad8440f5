"""Queries of hidden modules: counted before they are answered, and never given back."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from cloister.errors import BudgetError, InputError
from cloister.trusted import query_counter
from cloister.trusted.query_counter import QueryCounter

ONE, OTHER = bytes(32), bytes([1]) * 32


@pytest.fixture
def path(tmp_path) -> Path:
    QueryCounter.create(tmp_path / "counter")
    return tmp_path / "counter"


def test_each_module_has_its_own_count(path):
    counter = QueryCounter.open(path)
    assert counter.used(ONE) == 0
    assert counter.charge(ONE, 3, limit=10) == 7
    assert counter.charge(ONE, 7, limit=10) == 0
    assert counter.charge(OTHER, 1, limit=2) == 1
    assert (QueryCounter.open(path).used(ONE), QueryCounter.open(path).used(OTHER)) == (10, 1)


@pytest.mark.parametrize("count", [1, 4, 2**40])
def test_nothing_is_counted_of_what_is_refused(path, count):
    counter = QueryCounter.open(path)
    counter.charge(ONE, 10, limit=10)
    with pytest.raises(BudgetError, match=f"0 of its 10 queries are left, and {count} are asked"):
        counter.charge(ONE, count, limit=10)
    assert counter.used(ONE) == 10


def test_the_error_says_what_to_do_and_names_the_module(path):
    with pytest.raises(BudgetError, match=r"module 0101.*; give fewer inputs, or ask its vendor"):
        QueryCounter.open(path).charge(OTHER, 2, limit=1)


def test_a_plan_with_a_smaller_limit_has_none_left(path):
    counter = QueryCounter.open(path)
    counter.charge(ONE, 8, limit=10)
    with pytest.raises(BudgetError, match="0 of its 5"):
        counter.charge(ONE, 1, limit=5)
    assert counter.charge(ONE, 1, limit=20) == 11


# ---- several threads and processes

CHILD = """
import sys
from pathlib import Path
from cloister.errors import BudgetError
from cloister.trusted.query_counter import QueryCounter
counter, taken = QueryCounter.open(Path(sys.argv[1])), 0
sys.stdin.readline()
try:
    while True:
        counter.charge(bytes(32), 3, limit=40)
        taken += 3
        print("charged", flush=True)
except BudgetError:
    pass
print(taken)
"""


def child(path: Path, code: str = CHILD) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_processes_together_do_not_charge_more_than_the_limit(path):
    children = [child(path) for _ in range(3)]
    taken = [int(one.communicate("go\n")[0].split()[-1]) for one in children]
    assert sum(taken) == QueryCounter.open(path).used(ONE) == 39


def test_threads_together_do_not_charge_more_than_the_limit(path):
    counter, taken = QueryCounter.open(path), []

    def take():
        while True:
            try:
                counter.charge(ONE, 1, limit=30)
            except BudgetError:
                return
            taken.append(1)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == counter.used(ONE) == 30


def test_a_process_that_is_killed_gives_no_query_back(path):
    """What it was told is counted, is counted; it may be killed within a charge."""
    told = 0
    for lines in (1, 3):
        with child(path) as one:
            one.stdin.write("go\n")
            one.stdin.flush()
            for _ in range(lines):
                assert one.stdout.readline() == "charged\n"
            os.kill(one.pid, signal.SIGKILL)
            told += 3 * (lines + one.stdout.read().count("charged"))
        used = QueryCounter.open(path).used(ONE)
        assert told <= used <= told + 3
        told = used


DIES = """
import os, signal, sys
from pathlib import Path
from cloister.trusted import query_counter
counter, left = query_counter.QueryCounter(Path(sys.argv[1])), int(sys.stdin.readline())
files = ("query_counter.py", "sqlite.py")
def trace(frame, event, _):
    global left
    if os.path.basename(frame.f_code.co_filename) not in files:
        return None
    if event == "line":
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return trace
pid = os.fork()
if pid == 0:
    sys.settrace(trace)
    counter.charge(bytes(32), 3, limit=1000)
    print("charged", flush=True)
    os._exit(0)
os.wait()
"""


def test_killed_at_any_line_of_a_charge_it_is_counted_or_not_begun(path):
    outcomes = set()
    for line in range(1, 60, 4):
        before = QueryCounter.open(path).used(ONE)
        with child(path, DIES) as one:
            printed, _ = one.communicate(f"{line}\n")
        used = QueryCounter.open(path).used(ONE) - before
        assert used in (0, 3)
        assert used == 3 or not printed
        outcomes.add(used)
    assert outcomes == {0, 3}


# ---- files


def test_a_file_is_made_once_and_for_its_owner(path):
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="File exists"):
        QueryCounter.create(path)
    with pytest.raises(InputError, match="No such file"):
        QueryCounter.open(path.with_name("elsewhere"))
    path.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        QueryCounter.open(path)


def test_a_counter_that_was_changed_is_refused(path):
    counter = QueryCounter.open(path)
    counter.charge(ONE, 5, limit=10)
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE counter SET used = '{}'")
        database.commit()
    for use in (counter.used, lambda digest: counter.charge(digest, 1, limit=10)):
        with pytest.raises(InputError, match="is damaged"):
            use(ONE)


def test_another_file_is_refused(tmp_path):
    for name, content in (("empty", b""), ("text", b"not a database, but long enough" * 50)):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
        with pytest.raises(InputError, match=r"is none that this version reads|is damaged, or no"):
            QueryCounter.open(tmp_path / name)


def test_a_file_of_another_format_is_refused(path, monkeypatch):
    monkeypatch.setattr(query_counter, "FORMAT", 2)
    with pytest.raises(InputError, match="none that this version reads"):
        QueryCounter.open(path)


def test_a_locked_file_is_waited_for_and_then_refused(path):
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        counter = QueryCounter(path, busy_timeout_s=0.01)
        with pytest.raises(InputError, match="locked by another process"):
            counter.charge(ONE, 1, limit=9)
    assert QueryCounter.open(path).charge(ONE, 1, limit=9) == 8


@pytest.mark.parametrize("size", [100, 4096, 5000])
def test_a_truncated_file_is_refused(path, size):
    counter = QueryCounter.open(path)
    counter.charge(ONE, 5, limit=10)
    os.truncate(path, size)
    with pytest.raises(InputError, match="damaged"):
        counter.charge(ONE, 1, limit=10)
