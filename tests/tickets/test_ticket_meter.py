"""Meters: serials are spent before outputs leave, each once, never more than the quota."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from cloister.attest.clock import Clock
from cloister.errors import (
    AttestationError,
    BudgetError,
    CounterError,
    ForkError,
    InputError,
    MeterError,
    RollbackError,
    ServiceUnavailable,
    TicketError,
)
from cloister.tickets import ticket_meter
from cloister.tickets.insecure_file_counter import InsecureFileCounter
from cloister.tickets.receipt_ledger import ReceiptLedger
from cloister.tickets.ticket import CounterKind, CounterRule
from cloister.tickets.ticket_meter import LEDGER
from tickets.licences import (
    BUNDLE,
    DIGEST,
    FOREIGN_KEY,
    KEY,
    NOW,
    TICKET,
    Hands,
    MemoryCounter,
    meter,
    ticket,
)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "meter"


def spent(folder: Path, *counts: int, **chosen) -> list[range]:
    opened = meter(folder, **chosen)
    return [opened.spend(count, DIGEST).receipt.serials for count in counts]


def put_back(path: Path, kept: Path) -> None:
    """An old state of a file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
        shutil.copytree(kept, path)
    else:
        shutil.copy2(kept, path)


# ---- spending


def test_serials_follow_each_other_across_openings(folder):
    assert spent(folder, 1, 3) == [range(100, 101), range(101, 104)]
    assert meter(folder).left() == 6
    assert spent(folder, 6) == [range(104, 110)]
    assert meter(folder).left() == 0


def test_what_is_spent_is_on_the_disk_and_on_the_counter_before_it_is_returned(folder):
    counter = MemoryCounter()
    opened = meter(folder, counter=counter)
    receipt = opened.spend(4, DIGEST).receipt
    assert counter.moves == [(0, 4)]
    assert meter(folder, counter=counter).receipts()[-1].receipt == receipt


def test_the_quota_is_spent_whole_or_not_at_all(folder):
    opened = meter(folder)
    opened.spend(8, DIGEST)
    for refused in (3, 2**40):
        for ask in (opened.require, lambda count: opened.spend(count, DIGEST)):
            with pytest.raises(BudgetError, match=f"2 of its 10 outputs are left, and {refused} "):
                ask(refused)
    assert opened.left() == 2
    opened.require(2)
    assert opened.spend(2, DIGEST).receipt.serials == range(108, 110)
    with pytest.raises(BudgetError, match="0 of its 10"):
        opened.spend(1, DIGEST)


@pytest.mark.parametrize("count", [0, -1])
def test_less_than_one_output_is_refused(folder, count):
    opened = meter(folder)
    for ask in (opened.require, lambda count: opened.spend(count, DIGEST)):
        with pytest.raises(InputError, match="there is none to release"):
            ask(count)
    assert opened.left() == 10


def test_two_runtimes_spend_disjoint_ranges_of_one_licence(tmp_path):
    one = ticket(first_serial=0, last_serial=9)
    other = ticket(first_serial=10, last_serial=19)
    opened = [
        meter(tmp_path / name / "meter", given, counter=MemoryCounter())
        for name, given in (("one", one), ("other", other))
    ]
    serials = [s for m in opened for _ in range(5) for s in m.spend(2, DIGEST).receipt.serials]
    assert serials == list(range(20))
    for one in opened:
        with pytest.raises(BudgetError):
            one.spend(1, DIGEST)


def test_a_counter_need_not_begin_at_zero(folder):
    counter = MemoryCounter(57)
    given = ticket(counter=CounterRule(CounterKind.INSECURE_FILE, start=57))
    opened = meter(folder, given, counter=counter)
    assert opened.spend(2, DIGEST).receipt.serials == range(100, 102)
    assert counter.moves == [(57, 59)]
    assert meter(folder, given, counter=counter).left() == 8


# ---- attacks: replay, rollback, fork


def test_replay_of_a_ticket_in_an_empty_folder_is_refused(folder):
    spent(folder, 1)
    shutil.rmtree(folder)
    with pytest.raises(RollbackError, match="ledger has 0 outputs, and 1 were released"):
        meter(folder)
    with pytest.raises(RollbackError, match="the folder was emptied, or a copy"):
        meter(folder.with_name("another"))


def test_rollback_of_the_ledger_is_refused(folder, tmp_path):
    spent(folder, 2)
    shutil.copytree(folder, tmp_path / "old")
    spent(folder, 3)
    put_back(folder, tmp_path / "old")
    with pytest.raises(RollbackError, match="ledger has 2 outputs, and 5 were released"):
        meter(folder)


def test_rollback_under_an_open_meter_is_refused(folder, tmp_path):
    opened = meter(folder)
    opened.spend(2, DIGEST)
    shutil.copy(folder / LEDGER, tmp_path / "old")
    opened.spend(3, DIGEST)
    put_back(folder / LEDGER, tmp_path / "old")
    for use in (opened.left, lambda: opened.require(1), lambda: opened.spend(1, DIGEST)):
        with pytest.raises(RollbackError):
            use()


def test_rollback_of_the_counter_is_refused(folder, tmp_path):
    spent(folder, 2)
    shutil.copy(tmp_path / "counter", tmp_path / "old")
    spent(folder, 3, 1)
    put_back(tmp_path / "counter", tmp_path / "old")
    with pytest.raises(RollbackError, match="ledger has 6 outputs, and its counter 2"):
        meter(folder)
    (tmp_path / "counter").unlink()
    with pytest.raises(RollbackError, match="and its counter 0"):
        meter(folder)


def test_rollback_of_the_counter_by_the_last_spend_gains_nothing(folder, tmp_path):
    """It looks as a process that died within the spend: the outputs stay spent."""
    spent(folder, 2)
    shutil.copy(tmp_path / "counter", tmp_path / "old")
    spent(folder, 3)
    put_back(tmp_path / "counter", tmp_path / "old")
    assert meter(folder).left() == 5
    assert InsecureFileCounter.open(tmp_path / "counter").read() == 5


def test_rollback_of_ledger_and_file_counter_together_is_not_noticed(folder, tmp_path):
    """Why the counter is called insecure; other counters are out of the host's reach."""
    spent(folder, 2)
    shutil.copytree(folder, tmp_path / "old")
    shutil.copy(tmp_path / "counter", tmp_path / "old-counter")
    spent(folder, 8)
    put_back(folder, tmp_path / "old")
    put_back(tmp_path / "counter", tmp_path / "old-counter")
    assert meter(folder).left() == 8


def test_fork_that_is_used_second_is_refused(folder, tmp_path):
    counter = MemoryCounter()
    spent(folder, 2, counter=counter)
    shutil.copytree(folder, tmp_path / "copy")
    one, copy = (meter(path, counter=counter) for path in (folder, tmp_path / "copy"))
    one.spend(1, DIGEST)
    with pytest.raises(RollbackError, match="a copy of it was used"):
        copy.spend(1, DIGEST)
    assert one.spend(1, DIGEST).receipt.serials == range(103, 104)


class Race(MemoryCounter):
    """A counter that another copy of the meter moves first, once."""

    def __init__(self, by: int) -> None:
        super().__init__()
        self.by = by

    def advance(self, before: int, to: int) -> None:
        self.value, self.by = self.value + self.by, 0
        super().advance(before, to)


@pytest.mark.parametrize(("own", "others"), [(1, 4), (4, 1), (2, 2)])
def test_fork_that_loses_the_race_releases_nothing(folder, own, others):
    """Whatever the copy wrote into its ledger, it gains no output that another one released."""
    counter = Race(others)
    opened = meter(folder, counter=counter)
    with pytest.raises(ForkError, match=f"its counter is at {others} outputs, and was at 0"):
        opened.spend(own, DIGEST)
    try:
        left = meter(folder, counter=counter).left()
    except RollbackError:
        assert own < others
    else:
        assert own >= others
        assert left == 10 - own
        assert counter.value == own


def test_copies_that_run_at_once_release_the_quota_between_them(folder, tmp_path):
    """Several copies and one counter, all at once: each serial once."""
    given = ticket(quota=100)
    counter = InsecureFileCounter.open(tmp_path / "counter")
    meter(folder, given)
    copies = [tmp_path / f"copy{i}" for i in range(4)]
    for copy in copies:
        shutil.copytree(folder, copy)
    released: list[int] = []

    def use(copy: Path) -> None:
        for count in (1, 2, 3, 1, 2, 3):
            try:
                released.extend(
                    meter(copy, given, counter=counter).spend(count, DIGEST).receipt.serials
                )
            except MeterError:
                return

    threads = [threading.Thread(target=use, args=(copy,)) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert released
    assert len(set(released)) == len(released) <= counter.read()


class Stuck(MemoryCounter):
    """A counter that stops before its move, or within it."""

    def __init__(self, steps: int, error: Exception) -> None:
        super().__init__()
        self.steps, self.error = steps, error

    def advance(self, before: int, to: int) -> None:
        if self.error is not None:
            self.value = before + self.steps
            raise self.error
        super().advance(before, to)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("error", [CounterError("no power"), ServiceUnavailable("unreachable")])
def test_a_counter_that_fails_within_a_move_costs_the_outputs_and_no_more(folder, steps, error):
    counter = Stuck(steps, error)
    opened = meter(folder, counter=counter)
    wanted = ForkError if steps and isinstance(error, CounterError) else type(error)
    with pytest.raises(wanted):
        opened.spend(3, DIGEST)
    if steps < 3:
        with pytest.raises((CounterError, ForkError, ServiceUnavailable)):
            opened.require(1)
    assert len(opened.receipts()) == 1
    counter.error = None
    assert opened.left() == 7
    assert counter.value == 3
    assert opened.spend(1, DIGEST).receipt.serials == range(103, 104)


# ---- another ticket, key, bundle, counter


def test_the_meter_of_another_ticket_is_refused(folder):
    counter = MemoryCounter()
    spent(folder, 1, counter=counter)
    with pytest.raises(MeterError, match=r"row 1 does not open.*another ticket or key"):
        meter(folder, ticket(license="acme-8"), counter=counter)
    with pytest.raises(MeterError, match="row 1 does not open"):
        meter(folder, ticket(quota=11), counter=counter)
    with pytest.raises(MeterError, match="row 1 does not open"):
        meter(folder, counter=counter, key=FOREIGN_KEY)
    assert meter(folder, counter=counter).left() == 9


def test_a_key_of_another_length_is_refused(folder):
    with pytest.raises(InputError, match="32 bytes, not 31"):
        meter(folder, key=KEY[1:])
    assert not folder.exists()


def test_another_bundle_or_counter_is_refused_before_anything_is_written(folder):
    with pytest.raises(TicketError, match="buys outputs of bundle"):
        meter(folder, ticket(bundle_id=bytes([1]) * 16), counter=MemoryCounter())
    lease = CounterRule(CounterKind.LEASE)
    with pytest.raises(TicketError, match="metered by a counter of kind lease"):
        meter(folder, ticket(counter=lease), counter=MemoryCounter())
    assert BUNDLE.vendor == TICKET.vendor
    assert not folder.exists()


def test_a_counter_below_its_start_is_refused(folder):
    given = ticket(counter=CounterRule(CounterKind.INSECURE_FILE, start=5))
    with pytest.raises(RollbackError, match="its counter -1"):
        meter(folder, given, counter=MemoryCounter(4))


# ---- time


@pytest.mark.parametrize("at", [NOW - 1001, NOW + 1001])
def test_no_output_is_released_outside_of_the_period(folder, at):
    with pytest.raises(TicketError, match=r"is not valid before|expired"):
        meter(folder, at=at)
    hands = Hands(NOW)
    opened = meter(folder, clock=Clock(hands))
    hands.at = NOW + 1001
    for ask in (opened.require, lambda count: opened.spend(count, DIGEST)):
        with pytest.raises(TicketError, match="expired"):
            ask(1)
    assert meter(folder).left() == 10


def test_a_clock_that_steps_back_within_a_process_is_refused(folder):
    hands = Hands()
    opened = meter(folder, clock=Clock(hands))
    opened.spend(1, DIGEST)
    hands.at -= 5
    with pytest.raises(AttestationError, match="clock: stepped back"):
        opened.spend(1, DIGEST)


def test_a_clock_that_steps_back_between_processes_is_refused(folder):
    spent(folder, 1, at=NOW + 500)
    opened = meter(folder, at=NOW + 499)
    for ask in (opened.require, lambda count: opened.spend(count, DIGEST)):
        with pytest.raises(MeterError, match=r"reads .*08:08:19.*, and the last .*08:08:20"):
            ask(1)
    assert spent(folder, 1, at=NOW + 500) == [range(101, 102)]


# ---- damaged files


def test_a_ledger_that_is_none_is_refused(folder):
    spent(folder, 1)
    (folder / LEDGER).write_bytes(b"not a database, but long enough" * 50)
    with pytest.raises(MeterError, match="is damaged, or no ledger"):
        meter(folder)


def test_an_empty_ledger_is_an_old_one(folder):
    spent(folder, 1)
    (folder / LEDGER).write_bytes(b"")
    with pytest.raises(RollbackError):
        meter(folder)


@pytest.mark.parametrize("size", [100, 4096, 5000])
def test_a_truncated_ledger_is_refused(folder, size):
    spent(folder, 1)
    os.truncate(folder / LEDGER, size)
    with pytest.raises(MeterError):
        meter(folder)


def test_no_byte_of_a_ledger_gives_an_output_back(folder, tmp_path):
    """SQLite may not notice it; then the meter still knows what was spent."""
    counter = MemoryCounter()
    spent(folder, 1, 2, counter=counter)
    whole = (folder / LEDGER).read_bytes()
    refused = 0
    for place in range(0, len(whole), 97):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        (folder / LEDGER).write_bytes(changed)
        try:
            assert meter(folder, counter=counter).left() == 7
        except MeterError:
            refused += 1
    assert refused > 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE receipts SET sealed = zeroblob(3000000000) WHERE number = 2", "big|disk|memory"),
        ("UPDATE receipts SET sealed = zeroblob(100000) WHERE number = 2", "is no sealed receipt"),
        ("UPDATE receipts SET sealed = zeroblob(20) WHERE number = 2", "too short to be genuine"),
        ("UPDATE receipts SET sealed = zeroblob(600) WHERE number = 2", "was changed"),
        ("UPDATE receipts SET number = 3 WHERE number = 2", "row 3 does not open"),
        ("UPDATE receipts SET number = -3 WHERE number = 1", None),
        ("UPDATE receipts SET number = 9223372036854775807 WHERE number = 2", "does not open"),
        ("INSERT INTO receipts SELECT 3, sealed FROM receipts WHERE number = 2", "row 3 does not"),
        ("DELETE FROM receipts WHERE number = 2", "ledger has 1 outputs, and 3"),
        ("DELETE FROM receipts WHERE number = 1", None),
        ("DROP TABLE receipts", "none that this version reads"),
        (
            "DROP TABLE receipts; CREATE VIEW receipts AS SELECT 7 AS number, 'x' AS sealed",
            "none that this version reads",
        ),
        (
            "DROP TABLE receipts; CREATE VIEW receipts AS WITH RECURSIVE endless (number) AS "
            "(SELECT 1 UNION ALL SELECT number + 1 FROM endless) SELECT number, 'x' AS sealed "
            "FROM endless",
            "none that this version reads",
        ),
        (
            "CREATE TRIGGER undo AFTER INSERT ON receipts BEGIN DELETE FROM receipts; END",
            "none that this version reads",
        ),
        ("PRAGMA user_version = 2", "none that this version reads"),
        ("PRAGMA application_id = 2", "none that this version reads"),
    ],
)
def test_a_hostile_ledger_is_refused_and_releases_nothing(folder, change, message):
    counter = MemoryCounter()
    spent(folder, 1, 2, counter=counter)
    with closing(sqlite3.connect(folder / LEDGER, isolation_level=None)) as database:
        try:
            database.executescript(change)
        except sqlite3.Error as error:
            assert str(error) == "string or blob too big"
            return
    if message is None:
        # The last row decides how much is spent; what is before it matters to who reads it.
        opened = meter(folder, counter=counter)
        assert opened.left() == 7
        with pytest.raises(MeterError, match=r"does not follow receipt|does not open"):
            opened.receipts()
        return
    with pytest.raises(MeterError, match=message):
        meter(folder, counter=counter)


def test_a_row_of_a_fork_does_not_open_the_chain(folder, tmp_path):
    """Receipts of two copies are under one key: the chain tells them apart."""
    counter = MemoryCounter()
    spent(folder, 1, counter=counter)
    shutil.copytree(folder, tmp_path / "copy")
    spent(folder, 2, 2, counter=counter)
    meter(tmp_path / "copy", counter=MemoryCounter(1)).spend(2, bytes(32))
    with closing(sqlite3.connect(folder / LEDGER, isolation_level=None)) as database:
        database.execute("ATTACH ? AS copy", (str(tmp_path / "copy" / LEDGER),))
        database.execute(
            "UPDATE receipts SET sealed = (SELECT sealed FROM copy.receipts WHERE number = 2) "
            "WHERE number = 2"
        )
    with pytest.raises(MeterError, match="receipt 3: does not follow receipt 2"):
        meter(folder, counter=counter).receipts()


def test_files_that_are_links_or_of_others_are_refused(folder, tmp_path):
    spent(folder, 1)
    shutil.move(folder / LEDGER, tmp_path / "elsewhere")
    (folder / LEDGER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MeterError, match="is a link"):
        meter(folder)
    (folder / LEDGER).unlink()
    os.mkfifo(folder / LEDGER)
    with pytest.raises(MeterError, match="is not a regular file"):
        meter(folder)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"meter .*file: File exists"):
        meter(tmp_path / "file")


def test_a_folder_that_vanishes_is_refused(folder):
    opened = meter(folder)
    shutil.rmtree(folder)
    with pytest.raises(MeterError, match="No such file"):
        opened.spend(1, DIGEST)


def test_the_files_are_for_their_owner_alone(folder):
    spent(folder, 1)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / LEDGER).stat().st_mode & 0o777 == 0o600


def test_nothing_of_a_receipt_can_be_read_in_the_ledger(folder):
    receipt = meter(folder).spend(1, DIGEST)
    data = (folder / LEDGER).read_bytes()
    secrets = (b"acme-7", b"commitment", DIGEST.hex().encode(), receipt.data, KEY)
    assert not any(one in data for one in secrets)


# ---- several threads and processes


def test_threads_together_do_not_spend_more_than_the_quota(folder):
    opened, serials = meter(folder), []

    def use() -> None:
        while True:
            try:
                serials.extend(opened.spend(1, DIGEST).receipt.serials)
            except BudgetError:
                return

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(serials) == list(range(100, 110))


def test_a_folder_that_another_process_holds_is_waited_for_and_then_refused(folder, monkeypatch):
    opened = meter(folder)
    monkeypatch.setattr(ticket_meter, "LOCK_TIMEOUT_S", 0.02)
    with ticket_meter._locked(folder), pytest.raises(MeterError, match="another process uses it"):
        opened.spend(1, DIGEST)
    assert opened.left() == 10


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
from cloister.errors import BudgetError
from tickets.licences import DIGEST, meter, ticket
opened = meter(Path(sys.argv[1]), ticket(quota=40))
sys.stdin.readline()
try:
    while True:
        for serial in opened.spend(3, DIGEST).receipt.serials:
            print(serial, flush=True)
except BudgetError:
    pass
"""


def child(folder: Path, code: str = CHILD) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, folder, Path(__file__).parents[1]],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_processes_together_do_not_spend_more_than_the_quota(folder):
    children = [child(folder) for _ in range(3)]
    serials = [int(line) for one in children for line in one.communicate("go\n")[0].split()]
    assert sorted(serials) == list(range(100, 139))
    assert meter(folder, ticket(quota=40)).left() == 1


DIES = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
from cloister.tickets.insecure_file_counter import InsecureFileCounter
from tickets.licences import DIGEST, meter, ticket
folder, given = Path(sys.argv[1]), ticket(quota=90)
files = ("ticket_meter.py", "receipt_ledger.py", "insecure_file_counter.py", "sqlite.py")
def spend_until(lines):
    left = lines
    def trace(frame, event, _):
        nonlocal left
        if os.path.basename(frame.f_code.co_filename) not in files:
            return None
        if event == "line":
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)
    print(*meter(folder, given).spend(2, DIGEST).receipt.serials, end=" ", flush=True)
    os._exit(0)
sys.stdin.readline()
for lines in range(1, 1000, 3):
    pid = os.fork()
    if pid == 0:
        spend_until(lines)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    opened = meter(folder, given)
    counter = InsecureFileCounter.open(folder.parent / "counter").read()
    print(status, 90 - opened.left(), counter, len(opened.receipts()), flush=True)
    if status == 0:
        break
"""


def test_killed_at_any_line_a_meter_opens_again_and_releases_nothing_twice(folder):
    """From the first opening on: before, within and after both commits, and before the release."""
    with child(folder, DIES) as one:
        *killed, finished = one.communicate("go\n")[0].splitlines()
        assert one.returncode == 0
    assert len(killed) > 60
    before, seen = 0, set()
    for line in killed:
        status, spent_now, counter, receipts = map(int, line.split())
        assert status == -signal.SIGKILL
        assert spent_now == counter == 2 * receipts
        assert spent_now - before in (0, 2)
        seen.add(spent_now - before)
        before = spent_now
    assert seen == {0, 2}
    assert (
        finished == f"{100 + before} {101 + before} 0 {before + 2} {before + 2} {before // 2 + 1}"
    )


def test_a_kill_between_ledger_and_counter_costs_its_outputs(folder, monkeypatch):
    counter = MemoryCounter()
    opened = meter(folder, counter=counter)
    opened.spend(1, DIGEST)

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(counter, "advance", dies)
    with pytest.raises(KeyboardInterrupt):
        opened.spend(3, DIGEST)
    monkeypatch.undo()
    assert counter.value == 1
    again = meter(folder, counter=counter)
    assert counter.moves == [(0, 1), (1, 4)]
    assert again.left() == 6
    assert [one.receipt.count for one in again.receipts()] == [1, 3]


def test_a_kill_before_the_ledger_is_written_costs_nothing(folder, monkeypatch):
    opened = meter(folder)

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ReceiptLedger, "append", dies)
    with pytest.raises(KeyboardInterrupt):
        opened.spend(3, DIGEST)
    monkeypatch.undo()
    assert meter(folder).left() == 10
