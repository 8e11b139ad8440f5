"""The worker's engine: keeps the targets that one client loaded and applies them.

It checks the messages that it receives so that no client can crash it; no party trusts these
checks.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from cloister.errors import InputError, RangeError
from cloister.wire.messages import (
    MAX_TARGETS,
    PROTOCOL_VERSION,
    Answer,
    Apply,
    Failure,
    Hello,
    Loaded,
    LoadLinear,
    LoadSegment,
    MakePads,
    Message,
    Welcome,
)
from cloister.worker.budget import MemoryBudget, Reservation
from cloister.worker.linear_target import WORD_BYTES, LinearTarget, map_memory
from cloister.worker.pad_terms import linear_targets, make_terms, scratch_bytes
from cloister.worker.segment_process import HostedSegment, SegmentProcess
from cloister.worker.segments import SegmentTarget, segment_device
from cloister.worker.targets import Shared, Target, TargetStore, key_of_linear, key_of_segment
from cloister.worker.torch_maps import check_device


class Engine:
    """Handles one client's messages, one at a time.

    device    "cpu" (native kernels) or a PyTorch device such as "cuda" or "cuda:1"
    store     what is loaded, shared by all engines of one worker
    gate      entered around every computation; default: engines compute side by side
    isolate   makes the process that runs this client's segments; default: they run in this one

    Raises   InputError when the device cannot be used
    """

    def __init__(
        self,
        *,
        device: str = "cpu",
        threads: int = 1,
        name: str = "worker",
        store: TargetStore | None = None,
        gate: AbstractContextManager[object] | None = None,
        isolate: Callable[[MemoryBudget], SegmentProcess] | None = None,
    ) -> None:
        if threads < 1:
            raise InputError(f"worker: threads must be at least 1, got {threads}")
        if device != "cpu":
            check_device(device)
        self._device = device
        self._threads = threads
        self._name = name
        self._store = store or TargetStore()
        self._gate = gate or nullcontext()
        self._segments = isolate(self._store.budget) if isolate else None
        self._targets: dict[int, tuple[Shared | None, Target]] = {}
        # Counted until the next message: then the last answer has been sent.
        self._answer = Reservation(self._store.budget)

    def handle(self, message: Message) -> Message | None:
        """The reply to a message; whatever goes wrong becomes a `Failure`."""
        request_id = message.request_id if isinstance(message, Apply | MakePads) else 0
        self._answer.end()
        try:
            return self._reply(message)
        # A client must learn of every failure, among them those of engines whose exceptions
        # derive from Exception directly; nothing is hidden, the text travels in the reply.
        except Exception as error:  # noqa: BLE001
            return Failure(request_id, f"{type(error).__name__}: {error}")

    def cut(self) -> None:
        """End long computations from another thread; `close` follows."""
        if self._segments is not None:
            self._segments.cut()

    def close(self) -> None:
        """Drop everything that was loaded."""
        for target_id in tuple(self._targets):
            self._drop(target_id)
        if self._segments is not None:
            self._segments.close()
        self._answer.end()

    def _reply(self, message: Message) -> Message:
        match message:
            case Hello(version):
                if version != PROTOCOL_VERSION:
                    raise InputError(f"protocol {version} is not {PROTOCOL_VERSION}")
                return Welcome(PROTOCOL_VERSION, self._name, described(self._device))
            case LoadLinear(target_id):
                self._make_room(target_id)
                self._targets[target_id] = self._linear(message)
                return Loaded(target_id)
            case LoadSegment(target_id):
                self._make_room(target_id)
                self._targets[target_id] = self._segment(message)
                return Loaded(target_id)
            case Apply():
                return self._apply(message)
            case MakePads():
                return self._make_pads(message)
            case _:
                raise InputError(f"a worker takes no {type(message).__name__}")

    def _apply(self, message: Apply) -> Answer:
        kept = self._targets.get(message.target_id)
        if kept is None:
            raise InputError(f"target {message.target_id} is not loaded")
        shared, target = kept
        cost = target.cost(message.tensors)
        if shared is not None:
            self._store.grow(shared, cost.kept)
        self._answer.take(cost.answer)
        with self._gate:
            return Answer(message.request_id, target.run(message.tensors))

    def _make_pads(self, message: MakePads) -> Answer:
        loaded = {target_id: kept[1] for target_id, kept in self._targets.items()}
        targets = linear_targets(message, loaded)
        for target_id, (target, _) in targets.items():
            shared, _ = self._targets[target_id]
            if shared is not None:
                self._store.grow(shared, target.batch_cost(message.rows, WORD_BYTES).kept)
        self._answer.take(message.answer.nbytes + scratch_bytes(message, targets))
        with self._gate:
            return Answer(message.request_id, (make_terms(message, targets),))

    def _make_room(self, target_id: int) -> None:
        self._drop(target_id)
        if len(self._targets) >= MAX_TARGETS:
            raise RangeError(f"more than {MAX_TARGETS} targets")

    def _drop(self, target_id: int) -> None:
        shared, _ = self._targets.pop(target_id, (None, None))
        if shared is not None:
            self._store.let_go(shared)

    def _linear(self, message: LoadLinear) -> tuple[Shared | None, Target]:
        linear = message.linear
        memory = map_memory(linear.geometry, device=self._device, threads=self._threads)
        return self._store.hold(
            key_of_linear(linear),
            memory.total,
            lambda: LinearTarget(linear, device=self._device, threads=self._threads),
        )

    def _segment(self, message: LoadSegment) -> tuple[Shared | None, Target]:
        if self._segments is not None:
            self._segments.load(message)
            hosted = HostedSegment(self._segments, message.target_id, admit=self._answer.take)
            return None, hosted
        return self._store.hold(
            key_of_segment(message.model),
            2 * len(message.model),
            lambda: SegmentTarget(message.model, device=self._device, threads=self._threads),
        )


def described(device: str) -> str:
    """A device for people; segments may run on another one."""
    where = segment_device(device)
    return device if where == device else f"{device}, open segments on {where}"
