"""The ledger of releases: a chain that every change of its past breaks, durable or not there."""

import contextlib
import json
import os
import sqlite3
import stat
import threading

import pytest

from cloister.broker import release_ledger
from cloister.broker.ledger_entry import EntryKind
from cloister.broker.ledger_verification import key_digest, read_ledger
from cloister.broker.release_ledger import (
    KEPT_REFUSALS,
    LeasedCounter,
    LicenseTerms,
    RefusedRequest,
    ReleaseLedger,
    changing,
    record_terms,
)
from cloister.errors import EncryptionError, InputError

METER, TICKET = bytes(range(16)), bytes(range(32))
RELEASE = {
    "license": "clinic",
    "chip": "aa",
    "meter": METER.hex(),
    "ticket": TICKET.hex(),
    "measurement": "bb",
    "bundle": (b"b" * 16).hex(),
    "format": "simulated",
    "hardware_rooted": False,
}


@pytest.fixture
def path(tmp_path):
    made = tmp_path / release_ledger.FILE
    release_ledger.create(
        made, {"certificate": "ce", "vendor": "cc"}, terms=LicenseTerms(), time=100
    )
    return made


def release(change, number=0, **fields):
    change.put_chip("clinic", "aa")
    change.open_counter(TICKET, METER, start=4)
    return change.append(EntryKind.RELEASE, {**RELEASE, "session": f"{number:x}", **fields}, time=7)


def filled(path, count=3):
    with changing(path) as change:
        change.put_bundle(b"b" * 16, b"k" * 32)
        fields = {"bundle": (b"b" * 16).hex(), "key_sha256": key_digest(b"k" * 32)}
        change.append(EntryKind.BUNDLE, fields, time=5)
        return [release(change, i) for i in range(count)]


def edit(path, statement, *values):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(statement, values)
        connection.commit()


def test_entries_are_read_as_they_were_written(path):
    made = filled(path)
    found = read_ledger(path)
    assert [entry.number for entry in found.entries] == [1, 2, 3, 4, 5, 6]
    assert found.entries[3:] == tuple(made)
    assert found.head == made[-1]
    assert found.counters == {(TICKET.hex(), METER.hex()): 4}
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


@pytest.mark.parametrize("number", range(1, 7))
def test_a_changed_entry_is_named(path, number):
    filled(path)
    edit(path, "UPDATE entries SET text = replace(text, '\"time\":', '\"time\":1') "
         "WHERE number = ?", number)  # fmt: skip
    with pytest.raises(EncryptionError, match=f"entry {number}: its digest is wrong"):
        read_ledger(path)


def test_a_removed_entry_is_noticed(path):
    filled(path)
    edit(path, "DELETE FROM entries WHERE number = 4")
    with pytest.raises(EncryptionError, match="entry 4: is missing"):
        read_ledger(path)


def test_an_entry_that_was_cut_off_is_missed_by_its_digest_alone(path):
    *_, last = filled(path)
    edit(path, "DELETE FROM entries WHERE number = ?", last.number)
    assert last.digest not in [entry.digest for entry in read_ledger(path).entries]


def test_swapped_entries_are_noticed(path):
    filled(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT text, digest FROM entries WHERE number > 4").fetchall()
    for number, row in zip((6, 5), rows, strict=True):
        edit(path, "UPDATE entries SET text = ?, digest = ? WHERE number = ?", *row, number)
    with pytest.raises(EncryptionError, match="entry 5: its digest is wrong"):
        read_ledger(path)


@pytest.mark.parametrize("statement", [
    "UPDATE licenses SET revoked = 1",
    "UPDATE licenses SET meters = 9",
    "DELETE FROM chips",
    "INSERT INTO chips VALUES ('clinic', 'zz')",
    "DELETE FROM meters",
    "INSERT INTO meters VALUES (x'01', x'00', 0, x'')",
    "UPDATE bundles SET bundle_key = zeroblob(32)",
    "DELETE FROM bundles",
])  # fmt: skip
def test_tables_that_do_not_follow_from_the_entries_are_noticed(path, statement):
    filled(path)
    edit(path, statement)
    with pytest.raises(EncryptionError, match="are not those that follow from its entries"):
        read_ledger(path)


@pytest.mark.parametrize("text", ['{"kind":"release"}', "{}", "[]", '{"number":7,"kind":"x"}'])
def test_an_entry_that_lacks_fields_is_refused(path, text):
    from cloister.broker import ledger_entry

    *_, last = filled(path)
    digest = ledger_entry._digest(last.digest, text)
    edit(path, "INSERT INTO entries VALUES (7, ?, ?)", text, digest)
    with pytest.raises(EncryptionError, match="entry 7"):
        read_ledger(path)


@pytest.mark.parametrize(
    ("time", "fields", "message"),
    [
        (10**30, {}, "at time 1000000000000000000000000000000"),
        (-1, {}, "at time -1"),
        (7, {"hardware_rooted": 1}, "has no hardware_rooted, or one of another type"),
        (7, {"bundle": ["b"] * 9}, "has no bundle, or one of another type"),
        (7, {"measurement": None}, "has no measurement, or one of another type"),
    ],
)
def test_an_entry_that_cannot_be_shown_is_refused(path, time, fields, message):
    with changing(path) as change:
        change.append(EntryKind.RELEASE, {**RELEASE, **fields}, time=time)
    with pytest.raises(EncryptionError, match=message):
        read_ledger(path)


@pytest.mark.parametrize(
    "script",
    [
        "ALTER TABLE entries RENAME TO kept; CREATE VIEW entries (number, text, digest) AS "
        "WITH RECURSIVE endless (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM endless) "
        "SELECT kept.number, kept.text, kept.digest FROM kept, endless WHERE kept.number = 1",
        "CREATE TRIGGER undo AFTER INSERT ON entries BEGIN DELETE FROM entries; END",
        "CREATE TABLE more (number INTEGER)",
    ],
)
def test_a_file_with_views_or_triggers_is_no_ledger(path, script):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    for opened in (read_ledger, ReleaseLedger):
        with pytest.raises(EncryptionError, match="has other tables than a ledger"):
            opened(path)


def test_nothing_of_a_change_that_failed_is_kept(path):
    before = read_ledger(path)
    ledger = ReleaseLedger(path)
    with pytest.raises(KeyError), ledger.changing() as change:
        release(change)
        raise KeyError
    assert read_ledger(path) == before
    with ledger.changing() as change:
        release(change)
    ledger.close()
    assert len(read_ledger(path).entries) == len(before.entries) + 1


def test_a_ledger_that_cannot_be_written_records_nothing_and_says_so(path):
    ledger = ReleaseLedger(path)
    ledger._connection.execute("PRAGMA query_only = ON")
    refused = pytest.raises(EncryptionError, match="nothing is released until then")
    with refused, ledger.changing() as change:
        release(change)
    ledger._connection.execute("PRAGMA query_only = OFF")
    with ledger.changing() as change:
        release(change)
    ledger.close()
    assert read_ledger(path).head.kind is EntryKind.RELEASE


def test_several_writers_make_one_chain(path):
    ledgers = [ReleaseLedger(path) for _ in range(3)]

    def write(ledger):
        for i in range(10):
            with ledger.changing() as change:
                release(change, i)

    threads = [threading.Thread(target=write, args=(one,)) for one in (*ledgers, *ledgers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ledger in ledgers:
        ledger.close()
    assert len(read_ledger(path).entries) == 2 + 60


def test_limits_of_a_licence_stand_before_those_of_all(path):
    with changing(path) as change:
        assert change.terms("clinic") == LicenseTerms()
        record_terms(change, "clinic", LicenseTerms(2, 3, True), time=8)
        assert change.terms("clinic") == LicenseTerms(2, 3, True)
        assert change.terms("other") == LicenseTerms()
    assert json.loads(read_ledger(path).head.text)["license"] == "clinic"


def test_counters_of_one_ticket_add_up(path):
    with changing(path) as change:
        for meter, count in ((b"a", 3), (b"b", 4)):
            change.open_counter(TICKET, meter, start=1)
            assert change.counter(TICKET, meter) == LeasedCounter(1, b"")
            change.set_counter(TICKET, meter, LeasedCounter(count, b"name"))
        change.open_counter(b"other", b"a", start=0)
        change.open_counter(TICKET, b"a", start=1)
        assert change.counter(TICKET, b"a") == LeasedCounter(3, b"name")
        assert change.counter(b"other", b"a") == LeasedCounter(0, b"")
        assert change.counter(b"other", b"b") is None
        assert (change.total(TICKET), change.meters(TICKET)) == (7, 2)
        assert (change.total(b"none"), change.meters(b"none")) == (0, 0)


def test_releases_older_than_an_hour_are_forgotten(path):
    with changing(path) as change:
        for time in (10, 20, 30):
            change.note_release("clinic", time=time)
        assert change.releases_since("clinic", 5) == 3
        assert change.releases_since("clinic", 20) == 1
        assert change.releases_since("clinic", 0) == 1
        assert change.releases_since("other", 0) == 0


def test_refusals_take_bounded_room(path):
    with changing(path) as change:
        for i in range(3 * KEPT_REFUSALS):
            change.count_refusals({"time": 1}, [RefusedRequest("time", i, "expired")])
        change.count_refusals({"chips": 2}, [RefusedRequest("chips", 0, "another")])
    found = read_ledger(path)
    assert found.refusals == {"chips": 2, "time": 3 * KEPT_REFUSALS}
    kept = [one.time for one in found.last_refusals if one.kind == "time"]
    assert kept == list(range(2 * KEPT_REFUSALS, 3 * KEPT_REFUSALS))
    assert [one.kind for one in found.last_refusals].count("chips") == 1


def test_what_is_no_ledger_is_refused(tmp_path, path):
    with pytest.raises(InputError, match="run `cloister broker init`"):
        read_ledger(tmp_path / "none")
    with pytest.raises(InputError, match=r"releases\.sqlite"):
        release_ledger.create(path, {}, terms=LicenseTerms(), time=0)
    other = tmp_path / "other"
    other.touch(mode=0o600)
    with pytest.raises(EncryptionError, match="is not the ledger of a broker"):
        read_ledger(other)
    other.write_bytes(b"x" * 5000)
    with pytest.raises(EncryptionError, match="is damaged or no ledger"):
        read_ledger(other)
    path.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        read_ledger(path)
