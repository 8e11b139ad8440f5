"""What a worker sees of inputs at a split: the values that cross it, from the wire's transcript."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float32, Int64

from cloister.errors import InputError
from cloister.wire.transcript import Entry, Transcript

WORDS = 2.0**32


@dataclass(frozen=True, eq=False)
class SplitView:
    """The crossing values of `count` inputs, in the order in which the split names them.

    values   each with the inputs along its first axis, images with their channels first
    """

    values: tuple[Float32[np.ndarray, "n ..."], ...]

    @property
    def count(self) -> int:
        """How many inputs there are."""
        return len(self.values[0])

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each value of one input."""
        return tuple(value.shape[1:] for value in self.values)

    def of(self, positions: Int64[np.ndarray, " m"]) -> Self:
        """The view of some of the inputs."""
        return type(self)(tuple(value[positions] for value in self.values))


def observe(transcript: Transcript, *, inputs: int) -> SplitView:
    """What the open segment of a session was sent for its inputs, in their order.

    inputs   how many there were: a micro-batch that was repeated crossed twice

    Raises   InputError when the transcript has no payloads, several segments, or other inputs
    """
    sent = [one for one in transcript.messages(direction="to_worker") if _in_the_clear(one)]
    return SplitView(_values(sent, inputs, what="values in the clear"))


def observe_blinded(transcript: Transcript, *, target_id: int, inputs: int) -> SplitView:
    """The blinded requests of one linear node, as numbers from -0.5 to 0.5.

    target_id   the linear node's number on the wire

    Raises   InputError when the transcript has no such payloads, or other inputs
    """
    sent = [
        one
        for one in transcript.messages(target_id=target_id, direction="to_worker")
        if one.dtype == np.uint32
    ]
    words = _values(sent, inputs, what=f"blinded requests of node {target_id}")
    return SplitView(tuple(map(_as_numbers, words)))


def _in_the_clear(entry: Entry) -> bool:
    return entry.dtype == np.float32


def _values(sent: Sequence[Entry], inputs: int, *, what: str) -> tuple[np.ndarray, ...]:
    if len({entry.target_id for entry in sent}) > 1:
        raise InputError(f"transcript: {what} of several targets; observe a plan with one segment")
    requests: dict[tuple[str, int], list[np.ndarray]] = {}
    for entry in sent:
        if entry.payload is None:
            raise InputError("transcript: no payloads; run the session with record_payloads=True")
        requests.setdefault((entry.worker, entry.request_id), []).append(entry.payload)
    seen = sum(len(tensors[0]) for tensors in requests.values())
    if seen != inputs:
        raise InputError(f"transcript: {what} of {seen} inputs, of {inputs} that were run")
    parts = zip(*requests.values(), strict=True)
    return tuple(np.concatenate(part) for part in parts)


def _as_numbers(words: np.ndarray) -> Float32[np.ndarray, "n ..."]:
    numbers = np.asarray(words / WORDS - 0.5, np.float32)
    # Linear nodes are sent images with their channels last.
    return np.ascontiguousarray(numbers.transpose(0, 3, 1, 2)) if numbers.ndim == 4 else numbers
