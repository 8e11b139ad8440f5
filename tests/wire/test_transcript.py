import copy

import numpy as np
import pytest

from cloister.errors import InputError
from cloister.wire.inprocess import InProcessLink
from cloister.wire.messages import TensorSpec
from cloister.wire.shm.arena import Region
from cloister.wire.shm.exchange import PreparedRequests, make_exchange
from cloister.wire.transcript import Entry, RecordingLink, Transcript
from cloister.worker.engine import Engine
from wire.loopback import U32, ask, blinded, expected, honest, linear, slow


@pytest.fixture
def transcript():
    return Transcript()


@pytest.mark.parametrize("payloads", [True, False])
def test_everything_that_crosses_is_recorded(transcript, payloads):
    with honest("in-process") as plain:
        link = RecordingLink(plain, transcript, payloads=payloads)
        link.load_linear(1, linear())
        link.load_linear(2, linear(2))
        x = blinded(2)
        for request, target in ((1, 1), (2, 2), (3, 1)):
            buffer = link.send_buffer(TensorSpec(U32, x.shape))
            buffer[...] = x
            answer = ask(link, request, buffer, target_id=target)
        assert (answer == slow(linear(), x)).all()
        assert link.name == plain.name
        assert link.bytes_sent == plain.bytes_sent > 0
        assert link.bytes_received == plain.bytes_received > 0
    assert len(transcript) == 6
    sent = transcript.messages(target_id=1, direction="to_worker")
    received = transcript.messages(target_id=2, direction="from_worker")
    assert [entry.request_id for entry in sent] == [1, 3]
    assert [entry.request_id for entry in received] == [2]
    assert transcript.nbytes("to_worker") == 3 * x.nbytes
    for entry in transcript.entries:
        assert entry.dtype == np.uint32
        assert (entry.payload is not None) == payloads
    if payloads:
        assert (sent[0].payload == x).all()
        assert (received[0].payload == slow(linear(2), x)).all()
        assert not np.may_share_memory(sent[1].payload, buffer)


def test_save_and_load(transcript, tmp_path):
    payload = np.arange(6, dtype=np.int16).reshape(1, 2, 3)
    transcript.entries.extend(
        [
            Entry(
                "to_worker", 1, 0, "gpu:1", payload.dtype, payload.shape, payload.nbytes, payload
            ),
            Entry("from_worker", 1, 0, "gpu:1", np.dtype(np.float32), (), 4),
        ]
    )
    path = tmp_path / "transcript"
    transcript.save(path)
    loaded = Transcript.load(path)
    assert [entry._asdict() | {"payload": None} for entry in loaded.entries] == [
        entry._asdict() | {"payload": None} for entry in transcript.entries
    ]
    assert (loaded.entries[0].payload == payload).all()
    assert loaded.entries[1].payload is None
    Transcript().save(path)
    assert Transcript.load(path).entries == []


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "t.npz"
    with pytest.raises(InputError, match=r"t\.npz"):
        Transcript.load(path)
    for content in (b"", b"PK\3\4 broken", b"\x93NUMPY"):
        path.write_bytes(content)
        with pytest.raises(InputError):
            Transcript.load(path)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(InputError):
        Transcript.load(path.with_suffix(".npy"))
    np.savez(path, a=np.zeros(3))
    with pytest.raises(InputError):
        Transcript.load(path)


EXCHANGE = make_exchange(
    3, Region(0, 0, 4096), TensorSpec(U32, (1, 4)), Region(0, 4096, 4096), TensorSpec(U32, (1, 2))
)


def test_exchanges_of_native_code_come_in_their_place(transcript):
    class Silent(InProcessLink):
        """Has a native channel, it says."""

        def exchanged(self, first_request_id, exchanges):
            told.append(first_request_id)

    told, other = [], Transcript()
    plain = Silent(Engine().handle)
    link = RecordingLink(plain, transcript, payloads=False)
    link.exchanged(7, PreparedRequests.of([EXCHANGE, EXCHANGE]))
    link.load_linear(1, linear(1))
    link.submit(9, 1, (blinded(),), expected())
    RecordingLink(plain, other, payloads=False).exchanged(20, PreparedRequests.of([EXCHANGE]))
    transcript.follow(other)
    assert told == [7, 20]
    crossed = [(e.direction, e.request_id, e.shape) for e in transcript.entries]
    assert crossed == [
        ("to_worker", 7, (1, 4)), ("from_worker", 7, (1, 2)), ("to_worker", 8, (1, 4)),
        ("from_worker", 8, (1, 2)), ("to_worker", 9, (2, 5, 7, 3)), ("to_worker", 20, (1, 4)),
        ("from_worker", 20, (1, 2)),
    ]  # fmt: skip
    assert transcript.entries == transcript.entries
    assert len(transcript) == 7


def test_an_interrupt_loses_and_repeats_nothing(transcript):
    tries = iter([KeyboardInterrupt, None])

    def entries():
        yield Entry("to_worker", 1, 3, "w", np.dtype(np.uint32), (1,), 4)
        if stop := next(tries):
            raise stop
        yield Entry("from_worker", 1, 3, "w", np.dtype(np.uint32), (1,), 4)

    transcript.defer(entries)
    with pytest.raises(KeyboardInterrupt):
        len(transcript)
    assert [entry.direction for entry in transcript.entries] == ["to_worker", "from_worker"]


def test_copies_are_equal(transcript):
    transcript.defer(lambda: [Entry("to_worker", 1, 3, "w", np.dtype(np.uint32), (1,), 4)])
    again = copy.copy(transcript)
    assert again == transcript
    assert again != Transcript()
    assert "to_worker" in repr(again)
