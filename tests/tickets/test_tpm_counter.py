"""Counters of TPMs: recorded ones everywhere, and one that runs where swtpm is installed."""

import shutil
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attest.forge import ec_key
from attest.played_tpm import PlayedTpm
from attest.tpm_server import answering, recorded, running, swtpm  # noqa: F401
from cloister.attest.tpm_commands import Signed, Tpm, TpmKeyHandle, open_tpm
from cloister.attest.tpm_structures import TpmKey
from cloister.base.rng import InsecureSeededRandom, SystemRandom
from cloister.errors import AttestationError, CounterError, RollbackError
from cloister.tickets.ticket import MAX_SERIAL, CounterKind, CounterRule
from cloister.tickets.tpm_counter import INDEX, TpmCounter
from tickets.licences import meter, ticket

RNG = SystemRandom()
COMMITMENT = bytes(32)


def opened(path, **options):
    return TpmCounter.open(path, rng=RNG, **options)


def test_a_recorded_counter(tmp_path):
    with answering(tmp_path, recorded("counter")) as tpm:
        counter = TpmCounter.open(tpm.path, rng=InsecureSeededRandom(7))
        assert counter.kind is CounterKind.TPM
        assert len(counter.identity) == 32
        assert counter.read() == 1
        counter.advance(1, 3)
        assert counter.read() == 3
        assert tpm.left == []


def test_an_old_answer_of_the_tpm_is_refused(tmp_path):
    """Who stands between repeats what the TPM once said, to a question with another nonce."""
    exchange = recorded("counter")
    with answering(tmp_path, exchange) as tpm:
        counter = TpmCounter.open(tpm.path, rng=InsecureSeededRandom(7))
        create, certify, flush = tpm.left[:3]
        tpm.any_command = True
        for answers in ([create, certify, flush], [create, certify, flush]):
            tpm.left[:] = answers
            with pytest.raises(CounterError, match="nonce: expected"):
                TpmCounter(tpm.path, counter.index, counter.key, counter.name, RNG).read()


NAME = b"\0\x0b" + bytes(32)
FIVE = (5).to_bytes(8, "big")


class PlayedCounter:
    """A TPM (tpm_commands.Tpm) that certifies what a test chooses."""

    def __init__(self, tpm, contents=FIVE, name=NAME, offset=0, nonce=None):
        self.tpm, self.nonce = tpm, nonce
        self.made = {"contents": contents, "name": name, "offset": offset}

    def certify(self, handle, index, nonce, size):
        self.tpm.qualifying = nonce if self.nonce is None else self.nonce
        statement = self.tpm.certified(**self.made)
        return Signed(statement, self.tpm.signature(statement))


OWN, OTHER = (ec_key(name, ec.SECP256R1) for name in ("tpm", "another"))


@pytest.mark.parametrize(
    ("key", "played", "text"),
    [
        (OWN, {}, None),
        (OWN, {"name": NAME[:-1] + b"\1"}, "index: expected 000b"),
        (OWN, {"offset": 1}, "offset: expected 0, found 1"),
        (OWN, {"contents": FIVE[1:]}, "is no value of a counter"),
        (OWN, {"contents": FIVE + b"\0"}, "is no value of a counter"),
        (OWN, {"contents": (MAX_SERIAL + 1).to_bytes(8, "big")}, "is no value of a counter"),
        (OWN, {"nonce": bytes(31)}, "nonce: expected"),
        (OTHER, {}, "key: expected"),
    ],
)
def test_statements_of_something_else_are_refused(key, played, text):
    tpm = PlayedTpm(key=key)
    pinned = TpmKey.parse(PlayedTpm(key=OWN).public).name
    counter = TpmCounter(Path("tpm"), INDEX, pinned, NAME, RNG)
    handle = TpmKeyHandle(1, tpm.public, tpm.parent)
    if text is None:
        assert counter._certified(PlayedCounter(tpm), handle) == 5
        # Of a key that says it lies elsewhere.
        tpm.parent = b"\x40\0\0\1"
        with pytest.raises(CounterError, match="signer: expected"):
            counter._certified(PlayedCounter(tpm), handle)
        return
    with pytest.raises((CounterError, AttestationError), match=text):
        counter._certified(PlayedCounter(tpm, **played), handle)


@pytest.mark.parametrize("index", [0, 0x01400001, 0x017FFFFF, 0x01C00000])
def test_only_indices_of_the_owner(tmp_path, index):
    with pytest.raises(CounterError, match="is not the owner's"):
        TpmCounter.open(tmp_path, rng=RNG, index=index)


def test_a_tpm_that_is_not_there(tmp_path):
    with pytest.raises(CounterError, match=r"counter .*none: No such file or directory"):
        opened(tmp_path / "none")


class TestSwtpm:
    """A TPM that runs."""

    def test_it_counts_and_is_the_same_when_opened_again(self, swtpm):  # noqa: F811
        counter = opened(swtpm)
        first = counter.read()
        counter.advance(first, first + 3)
        again = opened(swtpm)
        assert (again.read(), again.identity) == (first + 3, counter.identity)
        assert opened(swtpm, index=INDEX + 1).identity != counter.identity

    def test_it_moves_only_from_where_it_is_and_only_up(self, swtpm):  # noqa: F811
        counter = opened(swtpm)
        first = counter.read()
        for before in (first - 1, first + 1):
            with pytest.raises(CounterError, match=f"is at {first}, and at {before}"):
                counter.advance(before, before + 5)
        for to in (first, first - 1, MAX_SERIAL + 1):
            with pytest.raises(CounterError, match="cannot go from"):
                counter.advance(first, to)
        assert counter.read() == first

    def test_of_several_callers_at_most_one_returns(self, swtpm):  # noqa: F811
        counter, returned = opened(swtpm), []
        first = counter.read()
        passed = threading.Barrier(3)

        def move():
            passed.wait()
            try:
                counter.advance(first, first + 4)
            except CounterError:
                return
            returned.append(True)

        threads = [threading.Thread(target=move) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(returned) <= 1
        assert counter.read() > first

    def test_another_process_that_moves_it_in_between_is_noticed(self, swtpm, monkeypatch):  # noqa: F811
        counter = opened(swtpm)
        first, increment = counter.read(), Tpm.increment

        def both(tpm, index):
            increment(tpm, index)
            increment(tpm, index)

        monkeypatch.setattr(Tpm, "increment", both)
        with pytest.raises(CounterError, match=f"is at {first + 2}, and at {first + 1}"):
            counter.advance(first, first + 2)

    def test_a_counter_that_is_removed_begins_above_what_it_had(self, swtpm):  # noqa: F811
        counter = opened(swtpm)
        counter.advance(counter.read(), counter.read() + 5)
        last = counter.read()
        with open_tpm(swtpm) as tpm:
            tpm.undefine(INDEX)
        with pytest.raises(CounterError, match="no such index"):
            counter.read()
        assert opened(swtpm).read() > last

    def test_another_tpm_is_another_counter(self, swtpm, tmp_path):  # noqa: F811
        counter = opened(swtpm)
        with running(tmp_path / "other") as path:
            other = opened(path)
            assert other.identity != counter.identity
            there = TpmCounter(path, counter.index, counter.key, counter.name, RNG)
            with pytest.raises(CounterError, match="key: expected"):
                there.read()

    def test_a_meter_spends_by_it(self, swtpm, tmp_path):  # noqa: F811
        counter = opened(swtpm)
        rule = CounterRule(CounterKind.TPM, counter.identity, counter.read())
        given = ticket(counter=rule, quota=3)
        own = meter(tmp_path / "meter", given, counter=counter)
        shutil.copytree(tmp_path / "meter", tmp_path / "old")
        own.spend(2, COMMITMENT)
        assert counter.read() == rule.start + 2
        assert own.left() == 1
        assert meter(tmp_path / "meter", given, counter=opened(swtpm)).left() == 1
        shutil.rmtree(tmp_path / "meter")
        (tmp_path / "old").rename(tmp_path / "meter")
        with pytest.raises(RollbackError):
            meter(tmp_path / "meter", given, counter=opened(swtpm))
