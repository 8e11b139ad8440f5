"""The pad store: every pad once, whatever happens to processes, disks and files."""

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from cloister.base.rng import SystemRandom
from cloister.errors import PadReusedError, PadsExhausted, PadStoreError, RangeError, ShapeError
from cloister.trusted.pads import pad_file
from cloister.trusted.pads.pad_ledger import PadLedger
from cloister.trusted.pads.source import erase, reclaim
from cloister.trusted.pads.store import PadStore
from trusted import pad_crash_child
from trusted.pad_crash_child import DIGEST, LAYOUT, contents

KILLS = 200


@pytest.fixture
def places(tmp_path):
    (tmp_path / "trusted").mkdir()
    return tmp_path / "folder", tmp_path / "trusted" / "key"


@pytest.fixture
def store(places):
    return PadStore.create(places[0], plan_digest=DIGEST, key_file=places[1], rng=SystemRandom())


def reopen(places, **options):
    return PadStore.open(places[0], plan_digest=DIGEST, key_file=places[1], **options)


def fill(store, count):
    ids = store.reserve(count)
    for pad_id in ids:
        store.put(pad_id, contents(pad_id))
    return list(ids)


def same(pad):
    wanted, found = contents(pad.pad_id), LAYOUT.views(pad.terms)
    assert pad.terms.dtype == np.uint32
    assert found.keys() == wanted.keys()
    for index, array in wanted.items():
        np.testing.assert_array_equal(found[index], array)


def test_pads_come_back_in_order_and_once(store, places):
    assert fill(store, 5) == [0, 1, 2, 3, 4]
    first = store.take(2)
    second = reopen(places).take(3)
    assert [pad.pad_id for pad in first + second] == [0, 1, 2, 3, 4]
    for pad in first + second:
        same(pad)
        pad.terms.fill(0)
    with pytest.raises(PadsExhausted, match="0 unused pads left, 1 needed"):
        store.take(1)
    assert not list(places[0].iterdir())


def test_all_or_nothing(store):
    fill(store, 3)
    with pytest.raises(PadsExhausted, match="3 unused pads left, 4 needed"):
        store.take(4)
    assert store.take(0) == []
    assert [pad.pad_id for pad in store.take(3)] == [0, 1, 2]


def test_status_counts(store):
    empty = store.status()
    assert (empty.ready, empty.used, empty.lost, empty.ready_bytes) == (0, 0, 0, 0)
    fill(store, 4)
    store.reserve(1)
    fill(store, 1)
    store.take(4)
    status = store.status()
    assert (status.ready, status.used, status.lost) == (1, 4, 0)
    store.take(1)
    status = store.status()
    assert (status.ready, status.used, status.lost) == (0, 5, 1)
    assert status.plan_digest == DIGEST


def test_status_of_bytes_is_what_lies_on_disk(store, places):
    fill(store, 3)
    status = PadStore.inspect(places[0], key_file=places[1])
    assert status == store.status()
    assert status.ready_bytes == sum(path.stat().st_size for path in places[0].iterdir())
    assert status.pad_bytes * 3 == status.ready_bytes


def test_an_id_whose_turn_has_passed_is_dropped(store, places):
    early, late = store.reserve(2)
    store.put(late, contents(late))
    assert [pad.pad_id for pad in store.take(1)] == [late]
    store.put(early, contents(early))
    assert not list(places[0].iterdir())
    with pytest.raises(PadsExhausted):
        store.take(1)


def test_recycled_memory_is_overwritten_by_the_next_pads(store):
    fill(store, 4)
    first = store.take(2)
    arrays = {id(pad.terms) for pad in first}
    store.recycle(first)
    assert not any(pad.terms.size for pad in first), "spent pads cannot be read again"
    second = store.take(2)
    assert {id(pad.terms) for pad in second} == arrays
    store.recycle(first)
    for pad in second:
        same(pad)


def test_erased_memory_holds_nothing(store):
    fill(store, 2)
    memory = reclaim(store.take(2))
    assert len(memory) == 2
    assert all(terms.any() for terms in memory)
    erase(memory)
    assert not any(terms.any() for terms in memory)


def test_memory_is_erased_when_its_next_pad_cannot_be_read(store, places):
    fill(store, 2)
    first = store.take(1)
    terms = first[0].terms
    store.recycle(first)
    damaged = places[0] / "1.pad"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(PadStoreError):
        store.take(1)
    assert not terms.any()


def test_keys_are_the_stores_own_and_stay(store, places, tmp_path):
    other = PadStore.create(
        tmp_path / "other", plan_digest=DIGEST, key_file=tmp_path / "key2", rng=SystemRandom()
    )
    assert len(store.pad_key) == 32
    assert reopen(places).pad_key == store.pad_key != other.pad_key
    fill(store, 1)
    assert store.take(1)[0].key == store.pad_key
    ledger = PadLedger.open(places[1])
    assert store.pad_key not in (ledger.store_key, store._files.key)
    assert store.pad_key.hex() not in repr(store) and repr(ledger.store_key) not in repr(ledger)


def test_nothing_secret_lies_in_the_folder(store, places):
    fill(store, 1)
    sealed = (places[0] / "0.pad").read_bytes()
    assert contents(0)[0].tobytes()[:16] not in sealed
    assert places[1].stat().st_mode & 0o777 == 0o600
    for secret in (store.pad_key, PadLedger.open(places[1]).store_key):
        assert secret not in sealed


@pytest.mark.parametrize(
    ("unblinding", "text"),
    [
        ({}, "without any node"),
        ({0: np.zeros((2, 2), np.int32)}, "node 0: must be uint32"),
        ({3: np.zeros((0, 2), np.uint32)}, "node 3: must be uint32 and not empty"),
        ({0: np.zeros((5, 4, 3), np.uint32)}, "other nodes or shapes"),
    ],
)
def test_arrays_unlike_the_others_are_refused(store, places, unblinding, text):
    fill(store, 1)
    (pad_id,) = store.reserve(1)
    with pytest.raises(ShapeError, match=text):
        store.put(pad_id, unblinding)
    assert len(list(places[0].iterdir())) == 1


def test_ids_must_be_reserved_and_counts_sensible(store):
    with pytest.raises(PadStoreError, match="pad 0 was not reserved"):
        store.put(0, contents(0))
    with pytest.raises(RangeError):
        store.reserve(-1)
    with pytest.raises(RangeError):
        store.take(-1)


def test_counters_never_go_back(places, store):
    fill(store, 1)
    store.take(1)
    ledger = PadLedger.open(places[1])
    with pytest.raises(PadReusedError, match="never go back"), ledger.update() as counters:
        counters.next_use = 0
    with pytest.raises(PadStoreError), ledger.update() as counters:
        counters.next_use = counters.next_make + 1


# Refusals on opening


def test_a_store_of_another_plan_is_refused(store, places):
    with pytest.raises(PadStoreError, match="of plan 00010203, not of plan ffffffff"):
        PadStore.open(places[0], plan_digest=b"\xff" * 32, key_file=places[1])


def test_the_wrong_key_file_is_refused(store, places, tmp_path):
    fill(store, 1)
    PadStore.create(
        tmp_path / "other", plan_digest=DIGEST, key_file=tmp_path / "key2", rng=SystemRandom()
    )
    with pytest.raises(PadStoreError, match="another store than key file"):
        PadStore.open(places[0], plan_digest=DIGEST, key_file=tmp_path / "key2")


def test_missing_parts_are_named(store, places, tmp_path):
    with pytest.raises(PadStoreError, match="nowhere: does not exist"):
        PadStore.open(tmp_path / "nowhere", plan_digest=DIGEST, key_file=places[1])
    with pytest.raises(PadStoreError, match="nokey: does not exist"):
        PadStore.open(places[0], plan_digest=DIGEST, key_file=tmp_path / "nokey")


def test_nothing_is_overwritten_by_create(store, places, tmp_path):
    with pytest.raises(PadStoreError, match="exists already"):
        PadStore.create(
            tmp_path / "new", plan_digest=DIGEST, key_file=places[1], rng=SystemRandom()
        )
    fill(store, 1)
    with pytest.raises(PadStoreError, match="holds pads of another store already"):
        PadStore.create(
            places[0], plan_digest=DIGEST, key_file=tmp_path / "key2", rng=SystemRandom()
        )
    same(store.take(1)[0])


def test_the_key_file_may_not_lie_in_the_folder(tmp_path):
    with pytest.raises(PadStoreError, match="inside the store's folder"):
        PadStore.create(
            tmp_path, plan_digest=DIGEST, key_file=tmp_path / "sub" / "key", rng=SystemRandom()
        )


def test_a_plan_digest_has_32_bytes(tmp_path):
    with pytest.raises(PadStoreError, match="32 bytes"):
        PadStore.create(
            tmp_path / "s", plan_digest=b"short", key_file=tmp_path / "k", rng=SystemRandom()
        )
    assert not (tmp_path / "k").exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "interrupted; delete it"), (b"not a database, but long enough" * 50, "is damaged")],
)
def test_something_else_as_key_file(store, places, tmp_path, content, text):
    other = tmp_path / "other"
    other.write_bytes(content)
    other.chmod(0o600)
    with pytest.raises(PadStoreError, match=text):
        PadStore.open(places[0], plan_digest=DIGEST, key_file=other)


def test_another_database_as_key_file(store, places, tmp_path):
    other = tmp_path / "other"
    with closing(sqlite3.connect(other)) as database:
        database.execute("CREATE TABLE t (x)")
        database.commit()
    other.chmod(0o600)
    with pytest.raises(PadStoreError, match="not the key file of a pad store"):
        PadStore.open(places[0], plan_digest=DIGEST, key_file=other)
    other.chmod(0o640)
    with pytest.raises(PadStoreError, match="chmod 600"):
        PadStore.open(places[0], plan_digest=DIGEST, key_file=other)


@pytest.mark.parametrize("size", [100, 4096, 5000, 8000])
def test_a_truncated_key_file_is_refused(store, places, size):
    fill(store, 1)
    os.truncate(places[1], size)
    with pytest.raises(PadStoreError, match="damaged"):
        reopen(places).take(1)
    with pytest.raises(PadStoreError, match="damaged"):
        store.take(1)


def test_no_damage_to_the_key_file_turns_a_counter(store, places):
    fill(store, 9)
    store.take(5)
    good = places[1].read_bytes()
    rng = np.random.default_rng(3)
    # The row sits at the end of its page.
    for position in [*range(len(good) - 250, len(good)), *rng.integers(0, len(good), 100)]:
        bad = bytearray(good)
        bad[position] ^= 1 << int(rng.integers(8))
        places[1].write_bytes(bad)
        try:
            status = reopen(places).status()
        except PadStoreError:
            continue
        assert (status.used, status.lost) == (5, 0)


def test_a_locked_store_says_so(store, places):
    fill(store, 1)
    with closing(sqlite3.connect(places[1], isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(PadStoreError, match="locked by another process"):
            reopen(places, busy_timeout_s=0.05)
    assert [pad.pad_id for pad in reopen(places).take(1)] == [0]


# Hostile storage


def test_every_damaged_byte_is_noticed_and_nothing_else_is_lost(store, places):
    fill(store, 2)
    good = (places[0] / "0.pad").read_bytes()
    rng = np.random.default_rng(5)
    head = 8 + 16 + 32 + 8
    for position in [*range(head + 12), *rng.integers(head, len(good), 40), len(good) - 1]:
        bad = bytearray(good)
        bad[position] ^= 1 << int(rng.integers(8))
        (places[0] / "0.pad").write_bytes(bad)
        with pytest.raises(PadStoreError, match=r"0\.pad"):
            store.take(1)
        assert not (places[0] / "0.pad").exists()
    assert [pad.pad_id for pad in store.take(1)] == [1]
    assert store.status().lost == 1


@pytest.mark.parametrize("size", [0, 1, 63, 64, 100, -1, +1])
def test_cut_and_extended_files_are_refused(store, places, size):
    fill(store, 2)
    path = places[0] / "0.pad"
    whole = path.stat().st_size
    os.truncate(path, size if 0 < size < 1000 and size != 1 else whole + size)
    with pytest.raises(PadStoreError, match=r"0\.pad") if size else pytest.raises(PadsExhausted):
        store.take(3 if not size else 1)
    reopen(places)


def test_swapped_and_renamed_files_are_refused(store, places):
    fill(store, 3)
    folder = places[0]
    (folder / "0.pad").rename(folder / "x")
    (folder / "1.pad").rename(folder / "0.pad")
    (folder / "x").rename(folder / "1.pad")
    for _ in range(2):
        with pytest.raises(PadStoreError, match="copied or renamed"):
            store.take(1)
    assert [pad.pad_id for pad in store.take(1)] == [2]


def test_parts_of_two_files_do_not_fit_together(store, places):
    fill(store, 2)
    first, second = ((places[0] / f"{i}.pad").read_bytes() for i in (0, 1))
    (places[0] / "0.pad").write_bytes(first[:64] + second[64:])
    with pytest.raises(PadStoreError, match="was changed"):
        store.take(1)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_plain_files_are_read(store, places, tmp_path, kind):
    fill(store, 2)
    path = places[0] / "0.pad"
    path.rename(tmp_path / "moved")
    if kind == "link":
        path.symlink_to(tmp_path / "moved")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(PadStoreError, match=r"0\.pad"):
        store.take(1)
    assert [pad.pad_id for pad in store.take(1)] == [1]


def test_a_restored_folder_gives_no_pad_twice(store, places, tmp_path):
    fill(store, 3)
    shutil.copytree(places[0], tmp_path / "copy")
    assert [pad.pad_id for pad in store.take(2)] == [0, 1]
    shutil.rmtree(places[0])
    shutil.copytree(tmp_path / "copy", places[0])
    assert store.status().ready == 1
    assert [pad.pad_id for pad in store.take(1)] == [2]
    shutil.rmtree(places[0])
    shutil.copytree(tmp_path / "copy", places[0])
    with pytest.raises(PadsExhausted):
        store.take(1)
    with pytest.raises(PadsExhausted):
        reopen(places).take(1)
    assert not list(places[0].iterdir())


def test_an_old_file_under_a_new_name_is_refused(store, places, tmp_path):
    fill(store, 1)
    shutil.copy(places[0] / "0.pad", tmp_path / "old")
    store.take(1)
    fill(store, 1)
    shutil.copy(tmp_path / "old", places[0] / "1.pad")
    with pytest.raises(PadStoreError, match="copied or renamed"):
        store.take(1)


def test_a_restored_key_file_is_noticed_when_newer_pads_are_there(store, places, tmp_path):
    fill(store, 2)
    shutil.copy(places[1], tmp_path / "old key")
    store.take(2)
    fill(store, 1)
    os.replace(tmp_path / "old key", places[1])
    with pytest.raises(PadStoreError, match="older copy"):
        reopen(places)


def test_planted_files_do_no_harm(store, places):
    fill(store, 1)
    for name in ("7.pad", "0001.pad", "-1.pad", "x.pad", "calibration.json", f"{2**70}.pad"):
        (places[0] / name).write_bytes(b"planted")
    opened = reopen(places)
    assert opened.status().ready == 1
    assert [pad.pad_id for pad in opened.take(1)] == [0]
    with pytest.raises(PadsExhausted):
        opened.take(1)


def test_a_file_planted_before_the_first_pad_is_not_read(store, places):
    store.reserve(1)
    (places[0] / "0.pad").write_bytes(bytes(64))
    with pytest.raises(PadsExhausted):
        store.take(1)


# Full disks


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_loses_nothing(store, places, monkeypatch, call, code):
    fill(store, 1)
    (pad_id,) = store.reserve(1)

    def full(*_arguments):
        raise OSError(code, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(pad_file.os, call, full)
        with pytest.raises(PadStoreError, match="free space or choose another folder"):
            store.put(pad_id, contents(pad_id))
    assert [path.name for path in places[0].iterdir()] == ["0.pad"]
    store.put(pad_id, contents(pad_id))
    assert [pad.pad_id for pad in store.take(2)] == [0, pad_id]


def test_a_partial_write_is_continued(store, monkeypatch):
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(pad_file.os, "write", lambda file, data: real(file, data[:13]))
        fill(store, 1)
    same(store.take(1)[0])


def test_running_out_of_file_handles_sets_nothing_aside(store, monkeypatch):
    fill(store, 1)

    def none_left(*_arguments, **_options):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(pad_file.os, "open", none_left)
        with pytest.raises(PadStoreError, match="Too many open files"):
            store.take(1)
    assert [pad.pad_id for pad in store.take(1)] == [0]


# Killed processes


class Children:
    """The processes of pad_crash_child.py."""

    def __init__(self, places, log):
        self.log = log
        script = Path(pad_crash_child.__file__)
        self.process = subprocess.Popen(
            [sys.executable, "-P", script, *map(str, places), log],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, task):
        self.process.stdin.write(task + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self, count=1):
        self.process.stdin.write("wait\n")
        self.process.stdin.flush()
        return [int(self.process.stdout.readline()) for _ in range(count)]

    def noted(self, kind):
        lines = self.log.read_text().split("\n") if self.log.exists() else []
        return [int(line.split()[1]) for line in lines if line.startswith(kind + " ")]


@pytest.fixture
def children(store, places, tmp_path):
    children = Children(places, tmp_path / "log")
    with children.process:
        yield children
        children.process.stdin.close()


def check_consistent(children, places):
    """Opens, has no leftovers, made and used no id twice, and counts what was noted."""
    status = reopen(places).status()
    names = [path.name for path in places[0].iterdir()]
    assert all(name.endswith(".pad") for name in names)
    assert status.ready == len(names)
    used, made = children.noted("used"), children.noted("made")
    assert len(set(used)) == len(used)
    assert len(set(made)) == len(made)
    assert not children.noted("wrong")
    assert len(used) <= status.used
    return status


def test_no_pad_is_used_twice_across_200_kills(children, places):
    rng = np.random.default_rng(11)
    for _ in range(KILLS):
        pid = children.start("forever")
        time.sleep(rng.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        assert children.wait() == [-signal.SIGKILL]
        check_consistent(children, places)
    children.start("drain")
    assert children.wait() == [0]
    status = check_consistent(children, places)
    assert status.ready == 0
    # A killed process may have taken up to two pads without noting them, and lost up to three.
    assert status.used - len(children.noted("used")) <= 2 * KILLS
    assert status.lost <= 3 * KILLS


def test_no_pad_is_used_twice_whatever_line_a_process_dies_at(children, store, places):
    line, ended = 0, []
    while ended != [0]:
        line += 1
        children.start(f"line {line}")
        ended = children.wait()
        assert ended in ([0], [-signal.SIGKILL])
        check_consistent(children, places)
        pad_crash_child.make(store, children.log, 1)
        pad_crash_child.drain(store, children.log)
    assert check_consistent(children, places).ready == 0
    assert line > 100, line


def test_two_processes_die_while_two_others_go_on(children, places):
    pids = [children.start("forever") for _ in range(4)]
    for pid in pids:
        time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
    children.wait(4)
    check_consistent(children, places)


def test_four_processes_never_share_a_pad(children, store, places):
    ids = fill(store, 60)
    for _ in range(4):
        children.start("drain")
    assert children.wait(4) == [0] * 4
    assert sorted(children.noted("used")) == ids
    assert check_consistent(children, places).used == 60


def test_threads_never_share_a_pad(store):
    ids, taken = fill(store, 40), []

    def run():
        for _ in range(10):
            taken.extend(pad.pad_id for pad in store.take(1))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == ids


def test_a_file_that_may_not_grow_is_a_full_disk(children, places):
    children.start("full")
    assert children.wait() == [0]
    check_consistent(children, places)


def test_the_leftover_of_a_living_maker_stays(store, places, monkeypatch):
    seen = []
    real = os.replace

    def replace(source, target):
        reopen(places)
        seen.append(os.path.exists(source))
        real(source, target)

    (pad_id,) = store.reserve(1)
    monkeypatch.setattr(pad_file.os, "replace", replace)
    store.put(pad_id, contents(pad_id))
    assert seen == [True]
    same(store.take(1)[0])
