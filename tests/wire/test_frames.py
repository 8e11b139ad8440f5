import numpy as np
import pytest

from cloister.errors import ProtocolError
from cloister.wire.codec import encode
from cloister.wire.grpc.frames import FRAME_BYTES, Assembler, to_frames
from cloister.wire.messages import Answer, Loaded


def accept(head):
    pass


def assemble(frames, assembler=None):
    assembler = assembler or Assembler(accept)
    return [m for m in map(assembler.feed, frames) if m is not None]


@pytest.mark.parametrize(
    "sizes",
    [(), (0,), (1,), (0, 5, 0), (FRAME_BYTES,), (FRAME_BYTES // 2, 3 * FRAME_BYTES + 7, 0, 9),
     (FRAME_BYTES - 61,), (FRAME_BYTES - 60,), (FRAME_BYTES - 48,)],
)  # fmt: skip
def test_any_message_passes_in_small_frames(sizes):
    rng = np.random.default_rng(1)
    tensors = tuple(rng.integers(0, 255, size, np.uint8) for size in sizes)
    frames = list(to_frames(encode(Answer(5, tensors))))
    assert all(0 < len(frame) <= FRAME_BYTES for frame in frames)
    (answer,) = assemble(frames)
    assert all((a == b).all() for a, b in zip(answer.tensors, tensors, strict=True))
    assert answer.request_id == 5


def test_messages_follow_each_other():
    frames = [
        *to_frames(encode(Answer(1, (np.zeros(FRAME_BYTES),)))),
        *to_frames(encode(Loaded(2))),
    ]
    assert [type(m) for m in assemble(frames * 2)] == [Answer, Loaded] * 2


def test_bytes_behind_the_end_are_refused():
    frames = list(to_frames(encode(Answer(1, (np.zeros(4),)))))
    with pytest.raises(ProtocolError, match="behind"):
        assemble([frames[0] + b"\0"])
    two = b"".join(to_frames(encode(Loaded(2)))) * 2
    with pytest.raises(ProtocolError, match="behind"):
        assemble([two])


def test_empty_and_large_frames_are_refused():
    first, *_ = to_frames(encode(Answer(1, (np.zeros(FRAME_BYTES),))))
    with pytest.raises(ProtocolError, match="empty"):
        assemble([first, b""])
    with pytest.raises(ProtocolError, match="truncated"):
        assemble([b""])
    with pytest.raises(ProtocolError, match="exceeds"):
        assemble([bytes(FRAME_BYTES + 1)])


def test_a_refused_head_gets_no_memory():
    def refuse(head):
        assert head.payload_bytes == 1 << 31
        raise ProtocolError("no")

    # The head of an answer too large to be made: a small one with its sizes rewritten.
    small = encode(Answer(1, (np.zeros(3, np.uint8),))).head
    huge = small.replace((3).to_bytes(8, "little"), (1 << 31).to_bytes(8, "little"))
    with pytest.raises(ProtocolError, match="no"):
        Assembler(refuse).feed(huge)
    with pytest.raises(ProtocolError, match="payload"):
        Assembler(accept, max_payload_bytes=1 << 30).feed(huge)
