"""The hidden parts of a session's plan: the engines that run their modules, and their queries."""

from collections.abc import Mapping, Sequence

import numpy as np

from cloister.bundle.compiled_module import CompiledModule
from cloister.bundle.manifest import ModuleTensor
from cloister.errors import EngineError, PlanError
from cloister.graph.graph import Graph, Node
from cloister.graph.module_node import sample_type
from cloister.plan.plan import Plan, PlannedModule
from cloister.trusted.engines.module_engine import EngineKind, ModuleEngine, start_engine
from cloister.trusted.engines.padding_profile import PaddingProfile
from cloister.trusted.query_counter import QueryCounter, require

ENGINES: tuple[EngineKind, ...] = ("native", "wasm", "onnxruntime")
"""What runs a module, each in a process of its own; the first is the default."""


class ModuleEngines:
    """The engines of all modules of a plan. Several threads may use them at once.

    modules   by the names of the nodes that they compute
    counter   counts the queries of modules whose number the plan limits
    padding   see `start_engine`

    Raises   PlanError for a module that is not the plan's, InputError for one that cannot be
             loaded, EngineError
    """

    def __init__(
        self,
        plan: Plan,
        modules: Mapping[str, CompiledModule],
        *,
        kind: EngineKind,
        counter: QueryCounter | None,
        threads: int,
        padding: PaddingProfile | None = None,
    ) -> None:
        if kind not in ENGINES:
            raise PlanError(f"engine= takes {', '.join(ENGINES)}, not {kind!r}")
        planned = {one.node: one for one in plan.modules}
        nodes = {node.name: node for node in plan.graph.nodes if node.is_module}
        _check_names(planned, modules)
        limited = [one.node for one in plan.modules if one.queries is not None]
        if limited and counter is None:
            raise PlanError(
                f"node {limited[0]!r}: the plan limits how many queries its module answers; give "
                "counter=, the file that counts them"
            )
        if counter is not None and not limited:
            raise PlanError("the plan limits no module's queries; leave out counter=")
        for name, module in modules.items():
            _check_module(plan.graph, nodes[name], planned[name], module)
        self._planned = planned
        self._limits = {m.digest: m.queries for m in plan.modules if m.queries is not None}
        self._manifests = {name: module.manifest for name, module in modules.items()}
        self._counter = counter
        self._engines: dict[str, ModuleEngine] = {}
        try:
            for name, module in modules.items():
                self._engines[name] = start_engine(module, kind, threads=threads, padding=padding)
        except BaseException:
            self.close()
            raise

    def require(self, samples: int) -> None:
        """Refuse a request that the modules may not answer whole, before anything of it is done.

        Raises   BudgetError
        """
        for digest, limit in self._limits.items():
            require(digest, samples, used=self._counting().used(digest), limit=limit)

    def run(self, node: str, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """A module's outputs for a batch, whose samples are charged before it runs.

        Raises   BudgetError, EngineError
        """
        planned, rows = self._planned[node], len(inputs[0])
        if planned.queries is not None:
            self._counting().charge(planned.digest, rows, limit=planned.queries)
        manifest = self._manifests[node]
        found = tuple(self._engines[node].run(inputs))
        wanted = [((rows, *one.shape), np.dtype(one.dtype)) for one in manifest.outputs]
        if [(array.shape, array.dtype) for array in found] != wanted:
            raise EngineError(f"node {node!r}: its module's answers are not of its manifest's form")
        return found

    def left(self) -> int | None:
        """How many samples the modules may still answer; None: any number."""
        left = [n - self._counting().used(digest) for digest, n in self._limits.items()]
        return min(left, default=None)

    def close(self) -> None:
        """End all engines."""
        engines, self._engines = self._engines, {}
        for engine in engines.values():
            engine.close()

    def _counting(self) -> QueryCounter:
        if self._counter is None:
            raise PlanError("the plan limits queries, and nothing counts them")
        return self._counter


def _check_names(planned: Mapping[str, PlannedModule], modules: Mapping[str, object]) -> None:
    odd = sorted(set(planned) ^ set(modules))
    if odd and odd[0] in planned:
        raise PlanError(
            f"node {odd[0]!r}: a module computes it; give modules=, with the compiled module "
            f"{planned[odd[0]].digest.hex()[:16]} under this name"
        )
    if odd:
        raise PlanError(f"modules=: the plan has no hidden part {odd[0]!r}")


def _check_module(graph: Graph, node: Node, planned: PlannedModule, module: CompiledModule) -> None:
    found = module.manifest.digest
    if found != planned.digest:
        raise PlanError(
            f"node {node.name!r}: the module is {found.hex()[:16]}, and the plan names "
            f"{planned.digest.hex()[:16]}; give the module that the plan was made with"
        )
    for side, values, tensors in (
        ("input", node.inputs, module.manifest.inputs),
        ("output", node.outputs, module.manifest.outputs),
    ):
        wanted = tuple(_tensor(graph, value) for value in values)
        if tensors != wanted:
            raise PlanError(
                f"node {node.name!r}: the {side}s of its module are not those of the plan; compile "
                "the module from the same model and layers"
            )


def _tensor(graph: Graph, value: str) -> ModuleTensor:
    known = sample_type(graph, value)
    shape = tuple(size for size in known.shape if size is not None)
    return ModuleTensor(value, known.dtype.name, shape)
