"""A plan compiled to a program of steps (steps.py).

A `Fused` step follows each `Exchange`. Other fused steps write the requests of linear nodes from
values that ONNX Runtime or the caller produced. Values that more than one step needs are kept
("stored").
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from cloister.errors import PlanError
from cloister.graph.graph import Graph, Node
from cloister.graph.layout import channels_last_shape
from cloister.graph.ops.linear_nodes import LAST_AXIS_OPS
from cloister.graph.part import made_by, reads
from cloister.plan.plan import Plan
from cloister.plan.protection import OPEN
from cloister.trusted.program.epilogue import Epilogue, Matcher
from cloister.trusted.program.spec import check_program
from cloister.trusted.program.steps import (
    ChannelSlice,
    Exchange,
    Fused,
    Local,
    Module,
    Program,
    Segment,
    Step,
)


def compile_plan(plan: Plan) -> Program:
    """Compile a plan to a program that `spec` holds for legal."""
    compiler = _Compiler(plan)
    program = Program(plan, tuple(compiler.compile()), compiler.slices)
    check_program(program)
    return program


@dataclass
class _Compiler:
    plan: Plan
    available: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    written: set[int] = field(default_factory=set)
    images: set[str] = field(default_factory=set)
    slices: dict[str, ChannelSlice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph = self.plan.graph
        self.index = {node.node: i for i, node in enumerate(self.plan.linear_nodes)}
        self.available = {*self.graph.inputs, *self.graph.constants, ""}
        self.matcher = Matcher(
            self.graph, absorbable=self._is_inside, available=self.available.__contains__
        )

    def compile(self) -> list[Step]:
        steps: list[Step] = []
        for node in self._schedule():
            if node.name in self.index:
                steps += self._exchange(node)
            elif self.plan.protections[node.name] == OPEN:
                steps.append(Segment(0, (node,), (), ()))
                self._finish(node)
            elif node.is_module:
                steps.append(Module((node,), node.inputs, node.outputs))
                self._finish(node)
            elif not self._concatenate(node):
                steps.append(self._local(node))
        return list(self._with_edges(_merged(steps)))

    def _is_inside(self, node: Node) -> bool:
        # A plan that sends nothing out leaves its convolutions to ONNX Runtime.
        return not self.plan.protections[node.name].on_worker and (
            node.op != "Conv" or bool(self.plan.linear_nodes)
        )

    def _schedule(self) -> Iterator[Node]:
        """A topological order: local values as early, modules as late as possible.

        Open nodes wait until no other node is ready, and then all of them follow that can: what a
        worker runs whole is one message, wherever the model's order has its nodes.
        """
        waiting, in_segment = list(self.graph.nodes), False

        def rank(node: Node) -> tuple[bool, bool, bool]:
            is_open = self.plan.protections[node.name] == OPEN
            return node.is_module, is_open != in_segment, node.name in self.index

        while waiting:
            ready = [n for n in waiting if self.available.issuperset(reads(n))]
            if not ready:
                raise PlanError(f"node {waiting[0].name!r} waits for a value that no node computes")
            node = min(ready, key=rank)
            in_segment = self.plan.protections[node.name] == OPEN
            yield node
            waiting = [n for n in waiting if n.name not in self.done]

    def _finish(self, node: Node) -> None:
        self.done.add(node.name)
        self.available.update(value for value in node.outputs if value)

    def _exchange(self, node: Node) -> Iterator[Step]:
        index = self.index[node.name]
        geometry = self.plan.linear_nodes[index].linear.geometry
        channels_first = node.op not in LAST_AXIS_OPS
        if index not in self.written:
            self.written.add(index)
            yield Fused(
                name=f"{node.name} (input)",
                node=None,
                source=node.inputs[0],
                epilogue=Epilogue(node.inputs[0]),
                size=geometry.in_shape,
                out_size=geometry.in_shape,
                channels_first=channels_first,
                stored=False,
                sinks=(index,),
                factors=self.plan.linear_nodes[index].x_factors,
            )
        yield Exchange(index, self.plan.protections[node.name])
        self._finish(node)
        self.available.discard(node.outputs[0])
        epilogue = self.matcher.after(node.outputs[0], channels_first=channels_first)
        yield self._fused(node, index, None, epilogue, geometry.out_shape, channels_first)

    def _concatenate(self, node: Node) -> bool:
        """Turn a concatenation of channels into slices, where fused steps store all its inputs."""
        if node.op != "Concat" or node.attributes.get("axis") != 1:
            return False
        ours = all(
            value in self.images and self.matcher.consumers.only(value) is node
            for value in node.inputs
        )
        if not ours or len(set(node.inputs)) != len(node.inputs):
            return False
        (whole,) = node.outputs
        sizes = [self.graph.types[value].shape[1] or 0 for value in node.inputs]
        for i, value in enumerate(node.inputs):
            self.slices[value] = ChannelSlice(whole, sum(sizes[:i]), sum(sizes))
        self._finish(node)
        return True

    def _local(self, node: Node) -> Step:
        epilogue = None
        first = self.graph.types.get(node.inputs[0]) if node.inputs else None
        if first is not None and first.dtype == "float32" and self._is_image(first.shape):
            epilogue = self.matcher.starting_at(node, channels_first=True)
        # A fused step pays off where it pools or writes a message; ONNX Runtime does the rest.
        if epilogue is not None and (epilogue.window or self._sinks(epilogue, True)):
            size = channels_last_shape(first.shape, channels_first=True)  # type: ignore[union-attr]
            return self._fused(node, None, node.inputs[0], epilogue, size, True)
        self._finish(node)
        return Local((node,), (), ())

    def _fused(
        self,
        node: Node,
        index: int | None,
        source: str | None,
        epilogue: Epilogue,
        size: tuple[int, int, int],
        channels_first: bool,
    ) -> Fused:
        self.done.update(epilogue.covered)
        self.available.add(epilogue.value)
        sinks = self._sinks(epilogue, channels_first)
        self.written.update(sinks)
        readers = self.matcher.consumers.of(epilogue.value)
        all_written = all(self.index.get(reader.name) in sinks for reader in readers)
        stored = not all_written or epilogue.value in self.graph.outputs
        if stored and channels_first and self._is_image(self.graph.types[epilogue.value].shape):
            self.images.add(epilogue.value)
        return Fused(
            name=node.name,
            node=index,
            source=source,
            epilogue=epilogue,
            size=size,
            out_size=(*epilogue.window.out_size, size[2]) if epilogue.window else size,
            channels_first=channels_first,
            stored=stored,
            sinks=sinks,
        )

    def _sinks(self, epilogue: Epilogue, channels_first: bool) -> tuple[int, ...]:
        """Linear nodes that read the result in the layout the fused step writes, as it is."""
        known = self.graph.types[epilogue.value].shape
        vector = len(known) == 2
        numbers = self.plan.linear_nodes
        return tuple(
            self.index[reader.name]
            for reader in self.matcher.consumers.of(epilogue.value)
            if reader.name in self.index
            and numbers[self.index[reader.name]].x_factors is None
            and reader.inputs[0] == epilogue.value
            and (vector or (reader.op not in LAST_AXIS_OPS) == channels_first)
        )

    def _is_image(self, shape: tuple[int | None, ...]) -> bool:
        """Whether fused steps can take a value: one image for every row that linear nodes take."""
        return len(shape) in (3, 4) and shape[0] == self.graph.batch and None not in shape[1:]

    def _with_edges(self, steps: list[Step]) -> Iterator[Step]:
        """Give local steps and segments the values that cross their borders."""
        targets = len(self.plan.linear_nodes)
        for step in steps:
            if isinstance(step, Local | Segment):
                inputs, outputs = _edges(self.graph, step.nodes)
                if isinstance(step, Local):
                    yield Local(step.nodes, inputs, outputs)
                else:
                    yield Segment(targets, step.nodes, inputs, outputs)
                    targets += 1
            else:
                yield step


def _merged(steps: list[Step]) -> list[Step]:
    """Neighbouring local steps become one, neighbouring segments become one."""
    merged: list[Step] = []
    for step in steps:
        last = merged[-1] if merged else None
        if isinstance(step, Local) and isinstance(last, Local):
            merged[-1] = Local((*last.nodes, *step.nodes), (), ())
        elif isinstance(step, Segment) and isinstance(last, Segment):
            merged[-1] = Segment(0, (*last.nodes, *step.nodes), (), ())
        else:
            merged.append(step)
    return merged


def _edges(graph: Graph, nodes: tuple[Node, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    made = made_by(nodes)
    names = {node.name for node in nodes}
    read = dict.fromkeys(value for node in nodes for value in reads(node))
    inputs = tuple(v for v in read if v not in made and v not in graph.constants)
    outside = {v for node in graph.nodes if node.name not in names for v in reads(node)}
    needed = outside | set(graph.outputs)
    return inputs, tuple(sorted(made & needed))
