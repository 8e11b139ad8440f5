import numpy as np
import pytest

from cloister.errors import InputError
from cloister.wire.messages import TensorSpec
from cloister.wire.transcript import Entry, RecordingLink, Transcript
from wire.loopback import U32, ask, blinded, honest, linear, slow


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
