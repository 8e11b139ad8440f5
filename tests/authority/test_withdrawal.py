"""Withdrawn samples: who may withdraw them, and that no key is issued for them any more."""

import os
import random
import signal
import subprocess
import sys
import threading
from dataclasses import asdict

import numpy as np
import pytest

from authority.conftest import add_part
from authority.test_authority import mixed
from authority.test_service import served  # noqa: F401  (a fixture)
from cloister.authority import authority as authority_module
from cloister.authority import database, deletion, tokens
from cloister.authority.authority import Authority
from cloister.authority.client import AuthorityClient
from cloister.authority.registration import NewPart
from cloister.authority.requests import KINDS, Evaluation, Forward, Gradient, Labels
from cloister.authority.stored import read_stored
from cloister.authority.unblinding import unblinding_term
from cloister.base.rng import SystemRandom
from cloister.data.id_spans import NO_IDS, IdSpans
from cloister.errors import (
    AuthorityUnavailable,
    EncryptionError,
    FunctionError,
    InputError,
    UnknownDatasetError,
)
from cloister.ring.bounds import MAX_ID_SPANS
from cloister.ring.linear import Geometry

RNG = SystemRandom()
GEOMETRY = Geometry((4, 4), 2, (3, 3), 2, kernel=(2, 2))
DELTA = np.random.default_rng(1).integers(-9, 10, (10, 3, 3, 2)).astype(np.int16)
SOME = IdSpans.of([(2, 4), (7, 8)])
LEFT = np.array([0, 1, 4, 5, 6, 8, 9], np.int64)


def requests(ids):
    """One of every kind."""
    made = {
        "forward": Forward("set", ids, mixed(2)),
        "gradient": Gradient("set", ids, GEOMETRY, DELTA[: len(ids)]),
        "labels": Labels("set", ids),
        "evaluation": Evaluation("set", ids, np.ones((len(ids), 3), np.int16)),
    }
    assert set(made) == set(KINDS)
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("receiver", ["server", "trusted"])
def test_a_key_does_not_leave_for_samples_withdrawn_while_it_was_made(
    kits, kind, receiver, monkeypatch
):
    kit = kits(budget=32)

    def slow(*given, **more):
        kit.authority.withdraw("set", SOME)
        return unblinding_term(*given, **more)

    monkeypatch.setattr(authority_module, "unblinding_term", slow)
    with pytest.raises(EncryptionError, match="sample 2 was withdrawn, no key is issued"):
        kit.authority.ask(requests(kit.ids)[kind], receiver)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("receiver", ["server", "trusted"])
def test_no_key_of_any_kind_is_issued_for_a_withdrawn_sample(kit, kind, receiver):
    before = requests(kit.ids)[kind]
    charged_anew = receiver == "server" and kind in ("gradient", "evaluation")
    if not charged_anew:
        kit.authority.ask(before, receiver)
    kit.authority.withdraw("set", SOME)
    spent = kit.authority.spent("set")
    for ids in (kit.ids, np.array([7], np.int64), np.array([0, 3], np.int64)):
        with pytest.raises(EncryptionError, match=r"sample [27|3] was withdrawn"):
            # Also a key that was issued before: a repeat is free, but not for these.
            kit.authority.ask(requests(ids)[kind], receiver)
    for name, value in asdict(spent).items():
        np.testing.assert_array_equal(value, getattr(kit.authority.spent("set"), name))
    if not charged_anew:
        assert kit.authority.ask(requests(LEFT)[kind], receiver) is not None


def test_the_ledger_keeps_what_was_spent_and_says_what_was_withdrawn(kit):
    kit.authority.ask(Forward("set", kit.ids, mixed(3)), receiver="server")
    before = kit.authority.summary("set")
    assert kit.authority.withdraw("set", SOME) == 3
    assert kit.authority.withdraw("set", IdSpans.of([(3, 6)])) == 2
    assert kit.authority.withdraw("set", SOME) == 0
    after = kit.authority.summary("set")
    assert (before.withdrawn, after.withdrawn, after.samples) == (0, 5, 10)
    assert (before.rank_max, before.bits_max) == (after.rank_max, after.bits_max)
    kit.authority.close()
    (stored,), _ = read_stored(kit.folder)
    assert stored.summary == after
    kit.authority = Authority(kit.folder)
    assert kit.authority.withdrawn("set").spans == [(2, 6), (7, 8)]
    assert kit.authority.summary("set") == after
    # A part that is registered later is not touched by it.
    add_part(kit.authority, "set", kit.x[:4], kit.labels[:4], seed=3)
    assert kit.authority.withdrawn("set").count == 5


def test_only_ids_that_the_data_set_holds_are_withdrawn(kit):
    for spans in ([(9, 11)], [(10, 12)], [(3, 4), (40, 50)]):
        with pytest.raises(EncryptionError, match="holds no sample"):
            kit.authority.withdraw("set", IdSpans.of(spans))
    with pytest.raises(EncryptionError, match="no sample is named"):
        kit.authority.withdraw("set", NO_IDS)
    with pytest.raises(UnknownDatasetError):
        kit.authority.withdraw("other", SOME)
    assert kit.authority.withdrawn("set").count == 0


def register(client, samples, *, name="set"):
    known = client.find(name)
    part, digest, key = (RNG.random_bytes(n) for n in (16, 32, 32))
    new = NewPart(part.hex(), samples, digest.hex(), key, known.label_key, is_first=False)
    return client.register(known.agreement, new)


def test_a_token_withdraws_the_parts_that_it_registered_and_no_others(kit, served):  # noqa: F811
    north, south = served("client"), served("client")
    first, second = register(north, 5), register(south, 4)
    third = register(north, 3)
    assert (first, second, third) == (10, 15, 19)
    # Another client's samples, alone, beside its own, and across the border of two parts; and
    # those of a client that had no token.
    for spans in ([(15, 16)], [(10, 12), (17, 18)], [(14, 16)], [(0, 1)], [(0, 22)]):
        with pytest.raises(FunctionError, match="registered with another token"):
            north.withdraw("set", IdSpans.of(spans))
    assert kit.authority.withdrawn("set").count == 0
    assert north.withdraw("set", IdSpans.of([(11, 13), (19, 22)])) == 5
    assert south.withdraw("set", IdSpans.of([(15, 19)])) == 4
    # Two parts of one client that lie side by side are one span.
    register(south, 2), register(south, 2)
    assert south.withdraw("set", IdSpans.of([(23, 25)])) == 2
    assert served("server").withdrawn("set").spans == [(11, 13), (15, 22), (23, 25)]
    assert south.withdrawn("set").count == 11


def test_a_part_that_another_token_registers_again_stays_its_first_client_s(kit, served):  # noqa: F811
    north, south = served("client"), served("client")
    known = north.find("set")
    new = NewPart("c" * 32, 5, "d" * 64, bytes(range(32)), known.label_key, is_first=False)
    assert north.register(known.agreement, new) == south.register(known.agreement, new) == 10
    with pytest.raises(FunctionError, match="registered with another token"):
        south.withdraw("set", IdSpans.of([(10, 15)]))
    assert north.withdraw("set", IdSpans.of([(10, 15)])) == 5


def test_a_server_a_revoked_token_and_a_token_of_another_data_set_withdraw_nothing(
    kit, served  # noqa: F811
):  # fmt: skip
    for role in ("server", "trusted"):
        with pytest.raises(FunctionError, match=f"role {role} may not ask for withdraw"):
            served(role).withdraw("set", SOME)
    other = tokens.issue(kit.folder / database.FILE, "client", name="o", rng=RNG, dataset="other")
    with pytest.raises(FunctionError, match="is for data set other"):
        served("client", token=other).withdraw("set", SOME)
    north = served("client")
    register(north, 5)
    tokens.revoke(kit.folder / database.FILE, "test")
    with pytest.raises(InputError, match="token is missing or unknown"):
        north.withdraw("set", IdSpans.of([(10, 12)]))
    assert kit.authority.withdrawn("set").count == 0


def test_the_operator_withdraws_any_client_s_samples(kit, served):  # noqa: F811
    register(served("client"), 5)
    assert kit.authority.withdraw("set", IdSpans.of([(8, 12)]), token_id=None) == 4


def test_hostile_sets_of_ids_are_refused(kit, served):  # noqa: F811
    client = served("client")
    register(client, 5)

    def ask(array):
        client._https.call("withdraw", {"dataset": "set"}, (array,))

    for array in (
        np.array([10, 12, 13], np.int64), np.array([12, 10], np.int64),
        np.array([-5, 12], np.int64), np.array([10, 2**60], np.int64),
    ):  # fmt: skip
        with pytest.raises(InputError):
            ask(array)
    with pytest.raises(Exception, match=r"at most|too large|bytes"):
        ask(np.arange(2 * MAX_ID_SPANS + 4, dtype=np.int64))
    with pytest.raises(FunctionError, match="another token"):
        ask(np.array([0, 12], np.int64))
    assert kit.authority.withdrawn("set").count == 0


def test_a_deletion_takes_the_withdrawal_with_it(kit):
    kit.authority.withdraw("set", SOME)
    kit.authority.close()
    assert deletion.delete(kit.folder, "set").samples == 10
    kit.authority = Authority(kit.folder)
    with pytest.raises(UnknownDatasetError):
        kit.authority.withdrawn("set")


def test_a_damaged_record_is_refused(kit):
    kit.authority.withdraw("set", SOME)
    kit.authority.close()
    with database.changing(kit.folder / database.FILE) as connection:
        connection.execute("UPDATE datasets SET withdrawn = ?", (b"1234567",))
    kit.authority = Authority(kit.folder)
    with pytest.raises(EncryptionError, match="use a backup"):
        kit.authority.ask(Forward("set", LEFT, mixed(2)), receiver="server")


# An authority whose clients withdraw one sample after the other; it says which are withdrawn.
SERVING = """
import sys
from pathlib import Path
from cloister.authority import service
from cloister.authority.authority import Authority

folder = Path(sys.argv[1])
with Authority(folder) as authority:
    server = service.serve(folder, authority, listen="127.0.0.1:0")
    print(server.url, flush=True)
    sys.stdin.read()
"""


KILLS = 3


def test_kill_9_of_the_authority_forgets_no_withdrawal_that_was_answered(kit):
    client, server = (
        tokens.issue(kit.folder / database.FILE, role, name="", rng=RNG)
        for role in ("client", "server")
    )
    kit.authority.close()
    first, answered, drawn = None, 0, random.Random(os.urandom(8))
    for _ in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVING, str(kit.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        url = process.stdout.readline().strip()
        options = {"public": kit.folder / "authority.pub", "retry_for_s": 0.0}
        with (
            AuthorityClient(url, token=client, **options) as north,
            AuthorityClient(url, token=server, **options) as trainer,
        ):
            first = register(north, 10_000) if first is None else first
            # What was answered holds after every kill; the last one may hold as well.
            found = trainer.withdrawn("set")
            assert found.spans in ([], [(first, first + found.count)])
            assert answered <= found.count <= answered + 1
            answered = found.count
            killer = threading.Timer(drawn.uniform(0, 0.3), process.kill)
            killer.start()
            with pytest.raises(AuthorityUnavailable):
                for place in range(first + answered, first + 10_000):
                    north.withdraw("set", IdSpans.of([(place, place + 1)]))
                    answered += 1
        killer.join()
        assert process.wait() == -signal.SIGKILL
        process.stdin.close()
        process.stdout.close()
    kit.authority = Authority(kit.folder)
    assert answered <= kit.authority.withdrawn("set").count <= answered + 1
