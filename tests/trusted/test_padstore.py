"""The pad store: every pad once, whatever happens to processes, disks and files."""

import contextlib
import errno
import linecache
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

from cloister.base import sqlite
from cloister.base.process_identity import this_process
from cloister.base.rng import SystemRandom
from cloister.errors import PadReusedError, PadsExhausted, PadStoreError, RangeError, ShapeError
from cloister.ring.pad_block import BLOCK_ROWS_MAX
from cloister.trusted.pads import block_file, opened_blocks
from cloister.trusted.pads.pad_ledger import PadLedger
from cloister.trusted.pads.source import erase, reclaim
from cloister.trusted.pads.store import PadStore
from trusted import pad_crash_child
from trusted.pad_crash_child import DIGEST, LAYOUT, ROWS, contents, right

KILLS = 200
HEAD_BYTES = 8 + 16 + 32 + 8 + 4 + 8 + 1 + 32


@pytest.fixture
def places(tmp_path):
    (tmp_path / "trusted").mkdir()
    return tmp_path / "folder", tmp_path / "trusted" / "key"


@pytest.fixture(params=["masked", "sealed"])
def store(places, request):
    return create(*places, sealed=request.param == "sealed")


def create(folder, key, *, sealed=False, digest=DIGEST):
    return PadStore.create(
        folder, plan_digest=digest, layout=LAYOUT, sealed=sealed, key_file=key, rng=SystemRandom()
    )


def reopen(places, **options):
    return PadStore.open(places[0], plan_digest=DIGEST, key_file=places[1], **options)


def fill(store, *rows):
    """Blocks of so many rows each; the ids of all rows."""
    ids = []
    for count in rows:
        block = store.reserve(count)
        store.put_block(block, contents(block.first_id, count))
        ids += range(block.first_id, block.first_id + count)
    return ids


def ids_of(pads):
    return [pad.pad_id for pad in pads]


def as_read(block, row):
    return block * BLOCK_ROWS_MAX + row


def test_pads_come_back_in_order_and_once(store, places):
    ids = fill(store, 3, 1, 2)
    first = store.take(2)
    store.erase()
    second = reopen(places).take(4)
    assert ids_of(first + second) == ids
    assert ids == [as_read(*at) for at in [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]]
    assert all(map(right, first + second))
    with pytest.raises(PadsExhausted, match="0 unused pads left, 1 needed"):
        store.take(1)
    assert not list(places[0].iterdir())


def test_pads_of_a_block_have_its_keys_and_no_others(store):
    fill(store, 2, 2)
    pads = store.take(4)
    assert pads[0].key == pads[1].key != pads[2].key == pads[3].key
    masks = [pad.mask_key for pad in pads]
    if store._files.sealed:
        assert masks == [None] * 4
    else:
        assert masks[0] == masks[1] != masks[2] == masks[3]
        assert not set(masks) & {pad.key for pad in pads}


def test_all_or_nothing(store):
    ids = fill(store, 2, 1)
    with pytest.raises(PadsExhausted, match="3 unused pads left, 4 needed"):
        store.take(4)
    assert store.take(0) == []
    assert ids_of(store.take(3)) == ids


def test_status_counts(store):
    def counts():
        found = store.status()
        return found.ready, found.used, found.missing

    assert counts() == (0, 0, 0)
    fill(store, 3)
    store.reserve(2)
    fill(store, 1)
    assert counts() == (4, 0, 2)
    store.take(1)
    assert counts() == (1, 3, 2), "the rest of an opened block is not there for others"
    store.erase()
    assert counts() == (3, 1, 2)
    store.take(3)
    store.erase()
    assert counts() == (0, 4, 2)
    assert store.status().plan_digest == DIGEST


def test_status_of_bytes_is_what_lies_on_disk(store, places):
    fill(store, 3)
    status = PadStore.inspect(places[0], key_file=places[1])
    assert status == store.status()
    (file,) = places[0].iterdir()
    assert status.ready_bytes == file.stat().st_size - block_file.ALIGNED_BYTES
    assert status.pad_bytes * 3 == status.ready_bytes


def test_a_block_whose_turn_has_passed_is_dropped(store, places):
    early, late = store.reserve(1), store.reserve(1)
    store.put_block(late, contents(late.first_id))
    assert ids_of(store.take(1)) == [late.first_id]
    store.put_block(early, contents(early.first_id))
    assert not list(places[0].iterdir())
    with pytest.raises(PadsExhausted):
        store.take(1)


def test_the_rest_of_a_block_is_given_back_once(store, places):
    ids = fill(store, 5)
    taken = store.take(2)
    assert reopen(places).status().ready == 0
    store.erase()
    store.erase()
    for _ in range(2):
        again = reopen(places)
        taken += again.take(1)
        again.erase()
    taken += store.take(1)
    assert ids_of(taken) == ids
    assert all(map(right, taken))
    store.erase()
    assert store.status().used == 5


def test_handing_out_a_row_of_an_opened_block_writes_nothing(store, places, monkeypatch):
    ids = fill(store, 4)
    taken = store.take(1)
    before = places[1].read_bytes()

    def write(*_arguments, **_options):
        raise AssertionError("the key file was opened")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "connect", write)
        taken += store.take(1)
        taken += store.take(1)
        assert store.kind == "store"
    assert places[1].read_bytes() == before
    assert ids_of(taken + store.take(1)) == ids


def test_what_cannot_be_given_back_is_burnt(store, places):
    fill(store, 4)
    store.take(1)
    with closing(sqlite3.connect(places[1], isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        object.__setattr__(store._ledger, "busy_timeout_s", 0.05)
        store.erase()
    with pytest.raises(PadsExhausted):
        reopen(places).take(1)
    assert not list(places[0].iterdir())


def test_an_open_block_is_no_leftover(store, places):
    ids = fill(store, 3)
    taken = store.take(1)
    reopen(places)
    store.erase()
    assert ids_of(taken + reopen(places).take(2)) == ids


def test_recycled_memory_is_overwritten_by_the_next_pads(store):
    """Rows are read 256 at a time, and those of the next request ahead."""
    fill(store, 600)
    first = store.take(256)
    addresses = {pad.terms.ctypes.data for pad in first}
    store.recycle(first)
    assert not any(pad.terms.size for pad in first), "spent pads cannot be read again"
    store.recycle(first)
    second = store.take(256)
    third = store.take(88)
    assert addresses & {pad.terms.ctypes.data for pad in [*second, *third]}
    assert all(map(right, [*second, *third]))


def test_erased_memory_holds_nothing(store):
    fill(store, 2)
    memory = reclaim(store.take(2))
    assert len(memory) == 2
    assert all(terms.any() for terms in memory)
    erase(memory)
    assert not any(terms.any() for terms in memory)


def test_memory_taken_back_is_overwritten_when_the_store_is_closed(store):
    fill(store, 2)
    pads = store.take(2)
    memory = [pad.terms for pad in pads]
    store.recycle(pads)
    assert all(terms.any() for terms in memory)
    store.erase()
    assert not any(terms.any() for terms in memory)


def test_memory_is_erased_when_its_next_pad_cannot_be_read(store, places):
    fill(store, 1)
    first = store.take(1)
    terms = first[0].terms
    store.recycle(first)
    store._opened._settle()
    fill(store, 1)
    path = places[0] / "1.pad"
    damage(path, path.stat().st_size - 1)
    with pytest.raises(PadStoreError, match="was changed"):
        store.take(1)
    assert not terms.any()


def test_keys_are_the_stores_own_and_stay(store, places, tmp_path):
    other = create(tmp_path / "other", tmp_path / "key2")
    seeds = {store.reserve(1).seed for _ in range(3)}
    assert len(seeds) == 3
    assert all(len(seed) == 32 for seed in seeds)
    assert not seeds & {other.reserve(1).seed for _ in range(3)}
    assert reopen(places)._seed(0) in seeds
    ledger = PadLedger.open(places[1])
    assert not seeds & {ledger.store_key, store._files.key}
    assert store._files.key != ledger.store_key
    assert repr(ledger.store_key) not in repr(ledger)
    assert store._seed(0).hex() not in repr(store) + repr(store.reserve(1))


def test_nothing_secret_lies_in_the_folder(store, places):
    fill(store, 2)
    kept = (places[0] / "0.pad").read_bytes()
    for row in contents(0, 2):
        assert row.tobytes()[:16] not in kept
    assert places[1].stat().st_mode & 0o777 == 0o600
    assert (places[0] / "0.pad").stat().st_mode & 0o777 == 0o600
    for secret in (store._seed(0), store._files.key, PadLedger.open(places[1]).store_key):
        assert secret not in kept


@pytest.mark.parametrize(
    "terms",
    [
        np.zeros((1, LAYOUT.words), np.int32),
        np.zeros((2, LAYOUT.words), np.uint32),
        np.zeros((1, LAYOUT.words - 16), np.uint32),
        np.zeros(LAYOUT.words, np.uint32),
    ],
)
def test_other_terms_than_the_layouts_are_refused(store, places, terms):
    block = store.reserve(1)
    with pytest.raises(ShapeError, match="block 0: terms must be uint32"):
        store.put_block(block, terms)
    assert not list(places[0].iterdir())


def test_a_store_that_seals_takes_no_masked_terms(places):
    store = create(*places, sealed=True)
    block = store.reserve(1)
    with pytest.raises(PadStoreError, match="takes no masked terms"):
        store.put_block(block, contents(block.first_id), masked=True)
    store.put_block(block, contents(block.first_id))


def test_terms_that_a_maker_masked_are_stored_as_they_are(places):
    ours, theirs = create(*places), create(places[0].parent / "b", places[1].parent / "b")
    block = ours.reserve(2)
    terms = contents(block.first_id, 2)
    ours.put_block(block, terms)
    assert not np.array_equal(terms, contents(block.first_id, 2)), "masked in place"
    other = theirs.reserve(2)
    theirs.put_block(other, terms, masked=True)
    (mine,), (same) = ours.take(1), theirs.take(1)
    np.testing.assert_array_equal(mine.terms, same[0].terms)


def test_blocks_must_be_reserved_and_counts_sensible(store, tmp_path):
    other = create(tmp_path / "other", tmp_path / "key2")
    with pytest.raises(PadStoreError, match="block 0 was not reserved"):
        store.put_block(other.reserve(1), contents(0))
    for rows in (-1, 0, BLOCK_ROWS_MAX + 1):
        with pytest.raises(RangeError):
            store.reserve(rows)
    with pytest.raises(RangeError):
        store.take(-1)


def test_counters_never_go_back(places, store):
    fill(store, 3)
    store.take(1)
    store.erase()
    ledger = PadLedger.open(places[1])

    def refused(change, kind=PadReusedError):
        with pytest.raises(kind), ledger.update() as counters:
            change(counters)

    refused(lambda counters: setattr(counters, "next_use", 0))
    refused(lambda counters: setattr(counters, "next_make", 0))
    refused(lambda counters: counters.given_back.update({0: 0}))
    refused(lambda counters: counters.given_back.update({1: 0}))
    refused(lambda counters: setattr(counters, "next_use", counters.next_make + 1), PadStoreError)
    refused(lambda counters: setattr(counters, "rows_opened", -1), PadStoreError)
    assert ids_of(store.take(2)) == [1, 2]


# Refusals on opening


def test_a_store_of_another_plan_is_refused(store, places):
    with pytest.raises(PadStoreError, match="of plan 00010203, not of plan ffffffff"):
        PadStore.open(places[0], plan_digest=b"\xff" * 32, key_file=places[1])


def test_the_wrong_key_file_is_refused(store, places, tmp_path):
    fill(store, 1)
    create(tmp_path / "other", tmp_path / "key2")
    with pytest.raises(PadStoreError, match="another store than key file"):
        PadStore.open(places[0], plan_digest=DIGEST, key_file=tmp_path / "key2")


def test_missing_parts_are_named(store, places, tmp_path):
    with pytest.raises(PadStoreError, match="nowhere: does not exist"):
        PadStore.open(tmp_path / "nowhere", plan_digest=DIGEST, key_file=places[1])
    with pytest.raises(PadStoreError, match="nokey: does not exist"):
        PadStore.open(places[0], plan_digest=DIGEST, key_file=tmp_path / "nokey")


def test_nothing_is_overwritten_by_create(store, places, tmp_path):
    with pytest.raises(PadStoreError, match="exists already"):
        create(tmp_path / "new", places[1])
    fill(store, 1)
    with pytest.raises(PadStoreError, match="holds pads of another store already"):
        create(places[0], tmp_path / "key2")
    assert right(store.take(1)[0])


def test_the_key_file_may_not_lie_in_the_folder(tmp_path):
    with pytest.raises(PadStoreError, match="inside the store's folder"):
        create(tmp_path, tmp_path / "sub" / "key")


def test_a_plan_digest_has_32_bytes(tmp_path):
    with pytest.raises(PadStoreError, match="32 bytes"):
        create(tmp_path / "s", tmp_path / "k", digest=b"short")
    assert not (tmp_path / "k").exists()


def test_a_key_file_of_the_format_before_is_refused_with_the_remedy(store, places):
    with closing(sqlite3.connect(places[1])) as database:
        database.execute("PRAGMA user_version = 1")
        database.commit()
    with pytest.raises(PadStoreError, match="has format 1, this version reads 2; delete it with"):
        reopen(places)


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
    store.erase()
    good = places[1].read_bytes()
    rng = np.random.default_rng(3)
    # The row sits at the end of its page.
    for position in [*range(len(good) - 350, len(good)), *rng.integers(0, len(good), 100)]:
        bad = bytearray(good)
        bad[position] ^= 1 << int(rng.integers(8))
        places[1].write_bytes(bad)
        try:
            status = reopen(places).status()
        except PadStoreError:
            continue
        assert (status.used, status.ready, status.missing) == (5, 4, 0)


def test_a_locked_store_says_so(store, places):
    fill(store, 1)
    with closing(sqlite3.connect(places[1], isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(PadStoreError, match="locked by another process"):
            reopen(places, busy_timeout_s=0.05)
    assert ids_of(reopen(places).take(1)) == [0]


# Hostile storage


def damage(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def test_every_damaged_byte_outside_the_terms_is_noticed_and_nothing_else_is_lost(store, places):
    """Of masked terms themselves, a session refuses what they give: test_pad_tampering.py."""
    fill(store, 2, 1)
    path = places[0] / "0.pad"
    good = path.read_bytes()
    rng = np.random.default_rng(5)
    record = block_file.ALIGNED_BYTES
    used = np.zeros(LAYOUT.words, np.uint32)
    for part in LAYOUT.views(used).values():
        part[...] = 1
    gaps = record + 4 * np.flatnonzero(used == 0) + 2
    assert len(gaps) > 10
    sealed = [*rng.integers(record, record + 4 * LAYOUT.words, 40), *range(record, record + 40)]
    for position in [
        *range(HEAD_BYTES + 4),
        record - 1,
        *(sealed if store._files.sealed else gaps),
        record + store._files.record_bytes - 1,
        len(good) - 1,
    ]:
        bad = bytearray(good)
        bad[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        reader = None
        with pytest.raises(PadStoreError, match=r"0\.pad: (was changed|is not|is of|belongs)"):
            reader = store._files.open(0)
            buffer = np.zeros((1, store._files.record_bytes), np.uint8)
            for row in range(2):
                reader.read(row, buffer)
                if store._files.sealed:
                    reader.unseal(row, buffer[0], np.empty(LAYOUT.words, np.uint32))
        if reader is not None:
            reader.close()
        assert not path.exists()
    assert ids_of(store.take(1)) == [as_read(1, 0)]
    store.erase()
    assert store.status().missing == 2


@pytest.mark.parametrize("size", [1, 63, 100, 4095, 4096, 5000, -1, +1, +4096])
def test_cut_and_extended_files_are_refused(store, places, size):
    fill(store, 2, 1)
    path = places[0] / "0.pad"
    whole = path.stat().st_size
    os.truncate(path, size if 1 < size < 4096 * 2 and size != 4096 else whole + size)
    with pytest.raises(PadStoreError, match=r"0\.pad: (has the wrong size|is shorter)"):
        store.take(1)
    assert not path.exists()
    assert ids_of(store.take(1)) == [as_read(1, 0)]


def test_a_file_that_is_cut_while_it_is_open_is_refused(places):
    store = create(*places)
    ids = fill(store, 400, 1)
    taken = store.take(1)
    os.truncate(places[0] / "0.pad", 8192)
    with pytest.raises(PadStoreError, match=r"0\.pad: is shorter"):
        for _ in range(ids.index(as_read(1, 0)) - 1):
            taken += store.take(1)
    assert taken
    assert all(map(right, taken))
    assert ids_of(store.take(1)) == [as_read(1, 0)]


def test_swapped_and_renamed_files_are_refused(store, places):
    fill(store, 1, 1, 1)
    folder = places[0]
    (folder / "0.pad").rename(folder / "x")
    (folder / "1.pad").rename(folder / "0.pad")
    (folder / "x").rename(folder / "1.pad")
    for _ in range(2):
        with pytest.raises(PadStoreError, match="copied or renamed"):
            store.take(1)
    assert ids_of(store.take(1)) == [as_read(2, 0)]


def test_a_file_of_another_store_is_refused(store, places, tmp_path):
    fill(store, 1, 1)
    other = create(tmp_path / "other", tmp_path / "key2", sealed=store._files.sealed)
    fill(other, 1)
    shutil.copy(tmp_path / "other" / "0.pad", places[0] / "0.pad")
    with pytest.raises(PadStoreError, match="copied or renamed"):
        store.take(1)
    assert ids_of(store.take(1)) == [as_read(1, 0)]


def test_a_forged_head_is_refused(store, places):
    """A head that names this store and block, but was not written under its key."""
    fill(store, 1, 1)
    path = places[0] / "0.pad"
    content = bytearray(path.read_bytes())
    content[64:68] = (2).to_bytes(4, "big")
    path.write_bytes(bytes(content) + bytes(store._files.record_bytes))
    with pytest.raises(PadStoreError, match="was changed"):
        store.take(1)


def test_parts_of_two_sealed_files_do_not_fit_together(places):
    store = create(*places, sealed=True)
    fill(store, 1, 1)
    first, second = ((places[0] / f"{i}.pad").read_bytes() for i in (0, 1))
    (places[0] / "0.pad").write_bytes(first[:4096] + second[4096:])
    with pytest.raises(PadStoreError, match="was changed"):
        store.take(1)


def test_rows_of_a_sealed_block_cannot_change_places(places):
    store = create(*places, sealed=True)
    fill(store, 2)
    path, size = places[0] / "0.pad", store._files.record_bytes
    content = path.read_bytes()
    path.write_bytes(content[:4096] + content[4096 + size :] + content[4096 : 4096 + size])
    with pytest.raises(PadStoreError, match="was changed"):
        store.take(1)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_plain_files_are_read(store, places, tmp_path, kind):
    fill(store, 1, 1)
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
    assert ids_of(store.take(1)) == [as_read(1, 0)]


def test_a_restored_folder_gives_no_pad_twice(store, places, tmp_path):
    fill(store, 1, 1, 1)
    shutil.copytree(places[0], tmp_path / "copy")

    def restore():
        shutil.rmtree(places[0])
        shutil.copytree(tmp_path / "copy", places[0])

    assert ids_of(store.take(2)) == [as_read(0, 0), as_read(1, 0)]
    store.erase()
    restore()
    assert store.status().ready == 1
    assert ids_of(store.take(1)) == [as_read(2, 0)]
    store.erase()
    restore()
    with pytest.raises(PadsExhausted):
        store.take(1)
    with pytest.raises(PadsExhausted):
        reopen(places).take(1)
    assert not list(places[0].iterdir())


def test_a_restored_block_is_opened_no_further_than_it_was(store, places, tmp_path):
    ids = fill(store, 4)
    shutil.copytree(places[0], tmp_path / "copy")
    taken = store.take(2)
    store.erase()
    shutil.rmtree(places[0])
    shutil.copytree(tmp_path / "copy", places[0])
    assert ids_of(taken + reopen(places).take(2)) == ids


def test_an_old_file_under_a_new_name_is_refused(store, places, tmp_path):
    fill(store, 1)
    shutil.copy(places[0] / "0.pad", tmp_path / "old")
    store.take(1)
    store.erase()
    fill(store, 1)
    shutil.copy(tmp_path / "old", places[0] / "1.pad")
    with pytest.raises(PadStoreError, match="copied or renamed"):
        store.take(1)


def test_a_restored_key_file_is_noticed_when_newer_pads_are_there(store, places, tmp_path):
    fill(store, 1, 1)
    shutil.copy(places[1], tmp_path / "old key")
    store.take(2)
    store.erase()
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
    assert ids_of(opened.take(1)) == [0]
    with pytest.raises(PadsExhausted):
        opened.take(1)


def test_a_file_planted_before_the_first_pad_is_refused(store, places):
    store.reserve(1)
    (places[0] / "0.pad").write_bytes(bytes(8192))
    with pytest.raises(PadStoreError, match="is not a file of this version"):
        store.take(1)
    with pytest.raises(PadsExhausted):
        store.take(1)


def test_file_systems_without_direct_reads(store, monkeypatch):
    ids = fill(store, 3)
    real, refused = os.preadv, []

    def preadv(file, buffers, offset):
        if block_file.fcntl.fcntl(file, block_file.fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(offset)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(file, buffers, min(offset, 1 << 40))

    monkeypatch.setattr(block_file.os, "preadv", preadv)
    pads = store.take(3)
    assert ids_of(pads) == ids
    assert all(map(right, pads))


# Full disks


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_loses_nothing(store, places, monkeypatch, call, code):
    fill(store, 1)
    block = store.reserve(1)

    def full(*_arguments):
        raise OSError(code, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(block_file.os, call, full)
        with pytest.raises(PadStoreError, match="free space or choose another folder"):
            store.put_block(block, contents(block.first_id))
    assert [path.name for path in places[0].iterdir()] == ["0.pad"]
    store.put_block(block, contents(block.first_id))
    pads = store.take(2)
    assert ids_of(pads) == [0, block.first_id]
    assert all(map(right, pads))


def test_a_partial_write_is_continued(store, monkeypatch):
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(block_file.os, "write", lambda file, data: real(file, data[:13]))
        fill(store, 1)
    assert right(store.take(1)[0])


def test_a_partial_read_is_continued(store, monkeypatch):
    real = os.preadv
    ids = fill(store, 2)
    monkeypatch.setattr(
        block_file.os,
        "preadv",
        lambda file, buffers, offset: real(file, [buffers[0][:512]], offset),
    )
    pads = store.take(2)
    assert ids_of(pads) == ids
    assert all(map(right, pads))


def test_running_out_of_file_handles_sets_nothing_aside(store, monkeypatch):
    fill(store, 1)

    def none_left(*_arguments, **_options):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(block_file.os, "open", none_left)
        with pytest.raises(PadStoreError, match="Too many open files"):
            store.take(1)
    assert ids_of(store.take(1)) == [0]


def test_a_read_that_fails_for_now_leaves_a_store_that_works(places, monkeypatch):
    """What is given back of its block is what had been counted as opened."""
    store = create(*places)
    ids = fill(store, 600)
    taken = store.take(1)
    store._opened._settle()

    def no_memory(*_arguments, **_options):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(block_file.os, "preadv", no_memory)
        with pytest.raises(PadStoreError, match="Cannot allocate memory"):
            store.take(400)
    store.erase()
    assert ids_of(taken + store.take(599)) == ids


class Interrupt:
    """KeyboardInterrupt before one of the lines that the calling thread runs in a module."""

    def __init__(self, module, line):
        self.module, self.left = module.__file__, line
        self.came = False

    def __call__(self, frame, event, _argument):
        if frame.f_code.co_filename != self.module:
            return None
        # Where a lock is released, Python looks for interrupts afterwards.
        source = linecache.getline(self.module, frame.f_lineno).lstrip()
        if event == "line" and not source.startswith("with self._"):
            self.left -= 1
            if self.left == 0:
                self.came = True
                raise KeyboardInterrupt
        return self

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, *_error):
        sys.settrace(self._before)


@pytest.mark.parametrize("sealed", [False, True])
def test_no_pad_is_taken_twice_whatever_line_an_interrupt_comes_at(tmp_path, sealed):
    line, came = 0, True
    while came:
        line += 1
        places = tmp_path / f"{line}", tmp_path / f"{line}.key"
        store, taken = create(*places, sealed=sealed), []
        fill(store, 3, 2)
        with contextlib.suppress(KeyboardInterrupt), Interrupt(opened_blocks, line) as interrupt:
            taken += store.take(2)
            taken += store.take(1)
            store.erase()
        came = interrupt.came
        with contextlib.suppress(PadsExhausted):
            taken += store.take(1)
        store.erase()
        again = reopen(places)
        with contextlib.suppress(PadsExhausted):
            while True:
                taken += again.take(1)
        again.erase()
        assert len(set(ids_of(taken))) == len(taken), f"line {line}"
        assert all(map(right, taken))
    assert line > 60


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
    assert status.ready <= ROWS * len(names)
    used, made = children.noted("used"), children.noted("made")
    assert len(set(used)) == len(used)
    assert len(set(made)) == len(made)
    assert not children.noted("wrong")
    assert len(used) <= status.used
    assert status.ready + status.used + status.missing >= ROWS * len(made)
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
    # A process that is killed burns the rest of a block and what it had taken without a note, and
    # what it had read ahead.
    assert status.used - len(children.noted("used")) <= 2 * (ROWS + 1) * KILLS
    assert status.missing <= ROWS * KILLS


def test_no_pad_is_used_twice_whatever_line_a_process_dies_at(children, store, places):
    # Each form of a store takes every other line.
    line, ended = int(store._files.sealed), []
    while ended != [0]:
        line += 2
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
    ids = fill(store, *[2] * 30)
    for _ in range(4):
        children.start("drain")
    assert children.wait(4) == [0] * 4
    left = store.take(len(ids) - len(children.noted("used")))
    assert sorted(children.noted("used") + ids_of(left)) == ids
    assert check_consistent(children, places).used == 60


def test_threads_never_share_a_pad(store):
    ids, taken = fill(store, *[4] * 10), []

    def run():
        for _ in range(10):
            taken.extend(ids_of(store.take(1)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == ids


@pytest.mark.parametrize("number", [None, 1])
def test_a_forked_process_takes_blocks_of_its_own(store, tmp_path, monkeypatch, number):
    """Also where both have one number: each is the first of its namespace."""
    if number is not None:
        monkeypatch.setattr(os, "getpid", lambda: number)
        store._process = this_process()
    fill(store, 4, 4)
    first = store.take(1)
    store._opened._settle()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            (tmp_path / "taken").write_text(" ".join(map(str, ids_of(store.take(3)))))
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    theirs = [int(word) for word in (tmp_path / "taken").read_text().split()]
    ours = ids_of(first + store.take(3))
    assert ours == [as_read(0, row) for row in range(4)]
    assert theirs == [as_read(1, row) for row in range(3)]


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

    block = store.reserve(1)
    monkeypatch.setattr(block_file.os, "replace", replace)
    store.put_block(block, contents(block.first_id))
    assert seen == [True]
    assert right(store.take(1)[0])
