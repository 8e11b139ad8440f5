"""The slow interpreter: the meaning of every step of a program, in plain NumPy.

The oracle of the executor: for the same inputs, pads and check coefficients both give the same
outputs, messages, answers and counts, bit for bit. Sessions do not use it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from cloister.base.rng import keystream
from cloister.errors import VerificationError
from cloister.graph.batch import row_count
from cloister.graph.layout import from_channels_last, to_channels_last
from cloister.graph.onnx.export import model_bytes
from cloister.graph.ort_session import runtime_session
from cloister.plan.quantised import multiplied
from cloister.ring import reference
from cloister.ring.freivalds import CheckVectors
from cloister.ring.linear import LinearMap
from cloister.ring.pads import nonce
from cloister.trusted.program.not_finite import is_pooled, require_messages, runtime_model
from cloister.trusted.program.steps import (
    Exchange,
    Fused,
    Local,
    Module,
    Program,
    Segment,
)

Worker = Callable[[LinearMap, np.ndarray], np.ndarray]
ModuleFunction = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Crossed:
    """What crossed the boundary for one exchange or segment: its tensors, its answer's tensors."""

    target: int
    sent: tuple[np.ndarray, ...]
    received: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Sums:
    """Both sides of the check of one linear node, one residue for each input of the batch."""

    request: np.ndarray
    answer: np.ndarray


@dataclass
class Interpretation:
    """What one batch made; sums and counts of what is clipped by linear node, for each input."""

    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    sums: dict[int, Sums] = field(default_factory=dict)
    clipped: dict[int, np.ndarray] = field(default_factory=dict)


class Interpreter:
    """Runs batches through a program, step by step.

    checks   the coefficients of each checked linear node; answers of other nodes are not checked
    worker   what answers a message to a linear map
    modules  from the inputs to the outputs of each hidden part, by its node's name
    watch    gets what crosses, in the order of the steps
    """

    def __init__(
        self,
        program: Program,
        *,
        checks: Mapping[int, CheckVectors] | None = None,
        worker: Worker = reference.linear_map,
        modules: Mapping[str, ModuleFunction] | None = None,
        threads: int = 1,
        watch: Callable[[Crossed], None] = lambda _: None,
    ) -> None:
        self.program = program
        self.checks = checks or {}
        self.worker = worker
        self.modules = modules or {}
        self.watch = watch
        self.protections = {
            step.node: step.protection for step in program.steps if isinstance(step, Exchange)
        }
        self.sessions = {
            i: runtime_session(_model(program, step), threads=threads, optimised=True)
            for i, step in enumerate(program.steps)
            if isinstance(step, Local | Segment)
        }

    def run(
        self, feeds: Mapping[str, np.ndarray], *, pad_key: bytes = b"", pad_ids: Sequence[int] = ()
    ) -> Interpretation:
        """Run a batch, whose inputs are blinded by the keystream under this key and these pad ids.

        Raises   RangeError, VerificationError
        """
        batch = _Batch(self, feeds, pad_key, pad_ids)
        with np.errstate(over="ignore", invalid="ignore"):
            for i, step in enumerate(self.program.steps):
                if isinstance(step, Fused):
                    batch.fused(step)
                elif isinstance(step, Exchange):
                    batch.exchange(step)
                elif isinstance(step, Segment):
                    batch.segment(i, step)
                elif isinstance(step, Local):
                    batch.local(i, step)
                elif isinstance(step, Module):
                    batch.module(step)
        batch.made.outputs = {name: batch.value(name) for name in self.program.plan.graph.outputs}
        return batch.made


class _Batch:
    """One batch: its values in ONNX's layout, its messages and answers by linear node."""

    def __init__(
        self,
        interpreter: Interpreter,
        feeds: Mapping[str, np.ndarray],
        pad_key: bytes,
        pad_ids: Sequence[int],
    ) -> None:
        self.made = Interpretation()
        self._of = interpreter
        self._program = interpreter.program
        self._plan = interpreter.program.plan
        self._graph = interpreter.program.plan.graph
        self._pad_key, self._pad_ids = pad_key, pad_ids
        self._values = dict(feeds)
        self._rows = row_count(self._graph, feeds)
        self._stored: set[tuple[str, bool]] = set()
        self._not_finite: set[tuple[str, bool]] = set()
        self._messages: dict[int, np.ndarray] = {}
        self._answers: dict[int, np.ndarray] = {}
        self._request_sums: dict[int, np.ndarray] = {}

    def value(self, name: str) -> np.ndarray:
        """A value in ONNX's layout; a concatenation is made of its slices."""
        if name in self._graph.constants:
            return self._graph.constants[name]
        if name not in self._values:
            parts = [self._values[part] for part in self._program.parts(name)]
            self._values[name] = np.concatenate(parts, axis=1)
        return self._values[name]

    def fused(self, step: Fused) -> None:
        """An answer or a value becomes a value and the messages of its sinks."""
        epilogue, filters = step.epilogue, step.epilogue.depthwise
        read = {name: self._image(name, step) for name in step.inputs}
        missing = None
        if not self._not_finite.isdisjoint((name, step.channels_first) for name in read):
            missing = sum(read.values(), np.zeros(1, np.float32))
            require_messages(step, step.inputs[-1], missing)
            if is_pooled(step):
                self._pooled(step)
                return
        made = self._on_source(step, read)(
            residual=None if epilogue.residual is None else read[epilogue.residual],
            bounds=(epilogue.lo, epilogue.hi),
            window=epilogue.window,
            filters=None
            if filters is None
            else reference.Filters(
                filters.weights, filters.bias, epilogue.after_lo, epilogue.after_hi
            ),
            sinks=[self._sink(index) for index in step.sinks],
        )
        if step.node is not None:
            self._accept(step.node, made.answer_sums)
        for i, index in enumerate(step.sinks):
            self._messages[index] = made.requests[i]
            self._request_sums[index] = made.request_sums[i]
            self.made.clipped[index] = made.clipped[i]
        kept = made.value
        if missing is not None and np.isnan(missing).any():
            kept = np.where(np.isnan(missing), np.float32(np.nan), kept)
        for name in step.outputs:
            self._keep(step, name, kept, finite=missing is None)

    def _pooled(self, step: Fused) -> None:
        """A step that only makes a value of values, as ONNX Runtime computes it."""
        session = runtime_session(runtime_model(self._program, step), optimised=True)
        (found,) = session.run(step.outputs, {name: self.value(name) for name in step.inputs})
        image = to_channels_last(found, channels_first=step.channels_first)
        for name in step.outputs:
            self._keep(step, name, image, finite=False)

    def _on_source(
        self, step: Fused, read: Mapping[str, np.ndarray]
    ) -> Callable[..., reference.FusedResult]:
        """The definition of a fused step on this one's source."""
        if step.node is None:
            return partial(reference.fused_step, multiplied(read[step.source or ""], step.factors))
        numbers, vectors = self._plan.linear_nodes[step.node], self._vectors(step.node)
        unblinding = None
        if self._of.protections[step.node].hidden:
            unblinding = reference.linear_map(numbers.linear, self._pad(step.node))
        return partial(
            reference.fused_step,
            self._answers.pop(step.node),
            affine=reference.Affine(numbers.scale, numbers.bias),
            unblinding=unblinding,
            coefficients=None if vectors is None else (vectors.a, vectors.b),
        )

    def exchange(self, step: Exchange) -> None:
        """A linear node on the worker."""
        message = self._messages.pop(step.node)
        answer = self._of.worker(self._plan.linear_nodes[step.node].linear, message)
        self._answers[step.node] = answer
        self._of.watch(Crossed(step.node, (message,), (answer,)))

    def segment(self, i: int, step: Segment) -> None:
        """Nodes on the worker, in float32 and not checked."""
        sent = tuple(np.asarray(self.value(name), order="C") for name in step.inputs)
        self.local(i, step)
        received = tuple(self._values[name] for name in step.outputs)
        self._of.watch(Crossed(step.target, sent, received))

    def local(self, i: int, step: Local | Segment) -> None:
        """Nodes as ONNX Runtime computes them, all at once: it may fuse some of them."""
        feeds = {name: self.value(name) for name in step.inputs}
        found = self._of.sessions[i].run(step.outputs, feeds)
        self._values.update(zip(step.outputs, found, strict=True))

    def module(self, step: Module) -> None:
        """A hidden part, as its module computes it."""
        found = self._of.modules[step.nodes[0].name]([self.value(name) for name in step.inputs])
        self._values.update(zip(step.outputs, found, strict=True))

    def _image(self, name: str, step: Fused) -> np.ndarray:
        """A value as float32 (n, h, w, c)."""
        value, key = self.value(name), (name, step.channels_first)
        if key not in self._stored and not np.isfinite(value).all():
            self._not_finite.add(key)
        array = to_channels_last(value, channels_first=step.channels_first)
        return np.ascontiguousarray(array, np.float32).reshape(self._rows, *step.size)

    def _keep(self, step: Fused, name: str, image: np.ndarray, *, finite: bool) -> None:
        shape = self._graph.types[name].shape
        self._values[name] = from_channels_last(image, shape, channels_first=step.channels_first)
        part = self._program.slices.get(name)
        key = (part.whole if part else name, step.channels_first)
        self._stored.add(key)
        if not finite:
            self._not_finite.add(key)

    def _sink(self, index: int) -> reference.Sink:
        numbers, vectors = self._plan.linear_nodes[index], self._vectors(index)
        return reference.Sink(
            numbers.inv_x_scale,
            numbers.x_qmax,
            self._pad(index) if self._of.protections[index].hidden else None,
            None if vectors is None else reference.factored(vectors.rows, vectors.columns),
        )

    def _pad(self, index: int) -> np.ndarray:
        """The keystream that blinds a node's message."""
        geometry = self._plan.linear_nodes[index].linear.geometry
        words = [
            keystream(self._pad_key, nonce(pad_id, index), geometry.in_elements)
            for pad_id in self._pad_ids
        ]
        return np.stack(words).reshape(-1, *geometry.in_shape)

    def _vectors(self, index: int) -> CheckVectors | None:
        return self._of.checks.get(index) if self._of.protections[index].checked else None

    def _accept(self, index: int, answer_sums: np.ndarray) -> None:
        if self._vectors(index) is None:
            return
        sums = Sums(self._request_sums.pop(index), answer_sums)
        self.made.sums[index] = sums
        if not np.array_equal(sums.request, sums.answer):
            node = self._plan.linear_nodes[index].node
            raise VerificationError(f"node {node!r}: the worker's answer is wrong")


def _model(program: Program, step: Local | Segment) -> bytes:
    return model_bytes(
        program.plan.graph, nodes=step.nodes, inputs=step.inputs, outputs=step.outputs
    )
