"""A meter against a model of it: any order of spends, kills, copies, old files and clocks.

The model knows of every copy of the folder what its ledger says, and what the counter says. It
predicts every refusal. What was released is compared with the quota after every step.
"""

import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from cloister.errors import (
    BudgetError,
    CounterError,
    ForkError,
    MeterError,
    RollbackError,
    TicketError,
)
from tickets.licences import DIGEST, NOW, TICKET, MemoryCounter, meter

QUOTA, COPIES = TICKET.quota, 3
COPY = st.integers(0, COPIES - 1)
COUNT = st.integers(1, 4)


class Killed(BaseException):
    """The process died."""


class FlakyCounter(MemoryCounter):
    """Moves as far as it is told, and then its caller dies; another copy may move it before."""

    steps: int | None = None
    others: int = 0

    def advance(self, before: int, to: int) -> None:
        if self.others:
            self.value, self.others = self.value + self.others, 0
        if self.value != before:
            raise CounterError(f"is at {self.value}")
        if self.steps is not None:
            self.value += min(self.steps, to - before)
            raise Killed
        super().advance(before, to)


class Ledger:
    """What the ledger of a copy says: outputs, those of its last receipt, and its time."""

    def __init__(self, spent: int = 0, last: int = 0, time: int = 0) -> None:
        self.spent, self.last, self.time = spent, last, time

    def copied(self) -> "Ledger":
        return Ledger(self.spent, self.last, self.time)


class MeterMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="meter-model-"))
        self.counter = FlakyCounter()
        self.ledgers = [Ledger() for _ in range(COPIES)]
        self.now = NOW
        self.released: list[int] = []

    def teardown(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def folder(self, copy: int) -> Path:
        return self.root / f"copy{copy}" / "meter"

    def wanted(self, copy: int, count: int) -> type[Exception] | None:
        """The refusal of a spend, or of opening if `count` is 0; settles the model's counter."""
        ledger, value = self.ledgers[copy], self.counter.value
        if not TICKET.not_before <= self.now <= TICKET.not_after:
            return TicketError
        if not ledger.spent - ledger.last <= value <= ledger.spent:
            return RollbackError
        if count and self.now < ledger.time:
            return MeterError
        if count and ledger.spent + count > QUOTA:
            return BudgetError
        return None

    def spend(self, copy: int, count: int) -> None:
        """A process opens a copy and spends; what it returns was released."""
        self.folder(copy).parent.mkdir(exist_ok=True)
        opened = meter(self.folder(copy), counter=self.counter, at=self.now)
        self.released += opened.spend(count, DIGEST).receipt.serials

    def note(self, copy: int, count: int) -> None:
        ledger = self.ledgers[copy]
        self.ledgers[copy] = Ledger(ledger.spent + count, count, self.now)

    @rule(copy=COPY, count=COUNT)
    def a_process_spends(self, copy: int, count: int) -> None:
        wanted = self.wanted(copy, count)
        before = list(self.released)
        try:
            self.spend(copy, count)
        except (MeterError, BudgetError, TicketError) as error:
            assert wanted is type(error)
            assert self.released == before
        else:
            assert wanted is None
            self.note(copy, count)
            first = TICKET.first_serial + self.ledgers[copy].spent - count
            assert self.released[-count:] == list(range(first, first + count))

    @rule(copy=COPY, count=COUNT, steps=st.integers(0, 4))
    def a_process_dies_while_the_counter_moves(self, copy: int, count: int, steps: int) -> None:
        """It dies in the move of the spend, or in the one that finishes an earlier spend."""
        wanted, ledger = self.wanted(copy, count), self.ledgers[copy]
        pending = wanted in (None, MeterError, BudgetError) and self.counter.value < ledger.spent
        self.counter.steps = steps
        try:
            self.spend(copy, count)
        except Killed:
            assert pending or wanted is None
            if not pending:
                self.note(copy, count)
        except (MeterError, BudgetError, TicketError) as error:
            assert wanted is type(error)
            assert not pending
        else:
            raise AssertionError("the counter did not move, and outputs were released")
        finally:
            self.counter.steps = None

    @rule(copy=COPY, count=COUNT, others=COUNT)
    def another_copy_is_faster(self, copy: int, count: int, others: int) -> None:
        """It moves the counter between this one's question and its move, and releases."""
        wanted, ledger = self.wanted(copy, count), self.ledgers[copy]
        if wanted is not None or self.counter.value < ledger.spent:
            return
        if self.counter.value + others > QUOTA:
            return
        first = TICKET.first_serial + self.counter.value
        self.counter.others = others
        try:
            self.spend(copy, count)
        except ForkError:
            self.note(copy, count)
            self.released += range(first, first + others)
        else:
            raise AssertionError("two copies moved the counter from one value")

    @rule(copy=COPY, other=COPY)
    def the_folder_is_copied(self, copy: int, other: int) -> None:
        if copy == other or not self.folder(copy).exists():
            return
        shutil.rmtree(self.folder(other).parent, ignore_errors=True)
        shutil.copytree(self.folder(copy).parent, self.folder(other).parent)
        self.ledgers[other] = self.ledgers[copy].copied()

    @rule(copy=COPY)
    def the_folder_is_emptied(self, copy: int) -> None:
        shutil.rmtree(self.folder(copy).parent, ignore_errors=True)
        self.ledgers[copy] = Ledger()

    @rule(seconds=st.sampled_from([-700, -1, 1, 600]))
    def the_clock_is_set(self, seconds: int) -> None:
        self.now += seconds

    @precondition(lambda self: abs(self.now - NOW) > 900)
    @rule()
    def the_clock_is_set_right(self) -> None:
        self.now = NOW

    @rule(copy=COPY)
    def a_process_opens(self, copy: int) -> None:
        """A copy whose counter agrees always opens, and then both say the same."""
        wanted = self.wanted(copy, 0)
        self.folder(copy).parent.mkdir(exist_ok=True)
        try:
            left = meter(self.folder(copy), counter=self.counter, at=self.now).left()
        except (MeterError, TicketError) as error:
            assert wanted is type(error)
        else:
            assert wanted is None
            assert left == QUOTA - self.ledgers[copy].spent
            assert self.counter.value == self.ledgers[copy].spent

    @invariant()
    def no_serial_is_released_twice_and_none_beyond_the_quota(self) -> None:
        released = getattr(self, "released", [])
        assert len(set(released)) == len(released) <= QUOTA
        if released:
            assert len(released) <= self.counter.value <= QUOTA


MeterMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestMeter = MeterMachine.TestCase
