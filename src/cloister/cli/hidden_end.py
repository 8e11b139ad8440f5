"""The hidden end of a model on the command line: its options, its module, and what counts it."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cloister.bundle.bundle_keys import BundleKey, load_content_key, load_vendor
from cloister.bundle.compiled_module import CompiledModule
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.cli import options
from cloister.cli.console import note
from cloister.codegen.compile_module import compile_module
from cloister.errors import InputError
from cloister.graph.answers import AnswerKind, with_answers
from cloister.graph.graph import Graph
from cloister.graph.graph_file import to_bytes
from cloister.graph.hidden import HiddenSplit, hide
from cloister.plan.cost import estimate
from cloister.plan.plan import Plan, PlannedModule
from cloister.plan.protection import ENCLAVE, outer_policy
from cloister.trusted.compare import HiddenReference
from cloister.trusted.module_engines import ModuleEngines
from cloister.trusted.query_counter import QueryCounter

HIDING = "Hidden last layers"


class EngineName(StrEnum):
    """What runs a compiled module, and the build that it needs."""

    NATIVE = "native"
    WASM = "wasm"
    ONNXRUNTIME = "onnxruntime"

    @property
    def build(self) -> str:
        """The compiler's name for the build."""
        return "onnx" if self is EngineName.ONNXRUNTIME else self.value


Last = Annotated[
    int | None,
    typer.Option(
        "--last", min=1, help="Hide this many layers in a compiled module.", rich_help_panel=HIDING
    ),
]
First = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="NODE", help="Hide every node from this one on.", rich_help_panel=HIDING
    ),
]
Answers = Annotated[
    AnswerKind | None,
    typer.Option("--answers", help="What a module returns. Default: all.", rich_help_panel=HIDING),
]
Queries = Annotated[
    int | None,
    typer.Option(
        "--queries",
        min=1,
        help="How many inputs the module answers in all. Default: any number.",
        rich_help_panel=HIDING,
    ),
]
Engine = Annotated[
    EngineName | None,
    typer.Option("--engine", help="What runs the module. Default: native.", rich_help_panel=HIDING),
]
ModuleFolder = Annotated[
    Path | None,
    typer.Option(
        "--module",
        metavar="DIR",
        help="The compiled module of a plan that hides its end.",
        rich_help_panel=HIDING,
    ),
]
CounterFile = Annotated[
    Path | None,
    typer.Option(
        "--counter",
        metavar="FILE",
        help="Counts the queries; made if it is not there.",
        rich_help_panel=HIDING,
    ),
]
PinnedVendor = Annotated[
    Path | None,
    typer.Option(
        "--vendor",
        metavar="FILE",
        help="Of a bundle: the vendor's public key, vendor.pub.",
        rich_help_panel=HIDING,
    ),
]
OldestVersion = Annotated[
    int | None,
    typer.Option(
        "--at-least",
        min=1,
        help="Refuse bundles of older versions than this.",
        rich_help_panel=HIDING,
    ),
]


@dataclass(frozen=True)
class BundleTrust:
    """Which bundles a run accepts."""

    vendor: PinnedVendor = None
    at_least: OldestVersion = None

    def open(self, path: str, key: Path | BundleKey | None) -> tuple[SealedBundle, CompiledModule]:
        """A bundle and its module.

        key   the file of the content key, or the key that a broker has released

        Raises   InputError for keys that are missing, BundleError
        """
        if self.vendor is None or key is None:
            raise InputError(
                f"{path}: is a bundle; give --vendor FILE, whose key signed it, and --key FILE, "
                "which opens it"
            )
        return SealedBundle.verify_and_open(
            Path(path),
            key if isinstance(key, BundleKey) else load_content_key(key),
            vendor=load_vendor(self.vendor),
            at_least=self.at_least or 1,
        )

    def plan(self, path: str) -> Plan:
        """The plan of a bundle, whose hidden end stays sealed.

        Raises   InputError for a missing --vendor, BundleError
        """
        if self.vendor is None:
            raise InputError(f"{path}: is a bundle; give --vendor FILE, whose key signed it")
        vendor = load_vendor(self.vendor)
        return SealedBundle.verify(Path(path), vendor=vendor, at_least=self.at_least or 1).plan

    def refuse_any(self) -> None:
        """Refuse both options.

        Raises   InputError
        """
        given = {"--vendor": self.vendor, "--at-least": self.at_least}
        options.refuse_given("goes with a bundle; leave it out", given)


@dataclass(frozen=True)
class HiddenEnd:
    """Which layers of a model are hidden, and what they answer."""

    last: Last = None
    first: First = None
    answers: Answers = None
    queries: Queries = None

    def split(self, graph: Graph, policy: str | None) -> HiddenSplit | None:
        """The model in two parts; None where nothing is to be hidden.

        Raises   InputError
        """
        if self.last is None and self.first is None:
            if policy is not None and outer_policy(policy) is not None:
                raise InputError(
                    f"--policy {policy}: hides the end of a model; give --last N or --from NODE"
                )
            options.refuse_given(
                "is about a hidden end; give --last N or --from NODE",
                {"--answers": self.answers, "--queries": self.queries},
            )
            return None
        answering = with_answers(graph, self.answers or AnswerKind.ALL)
        return hide(answering, last=self.last, first=self.first)

    def refuse_any(self, why: str) -> None:
        """Refuse all of these options.

        Raises   InputError naming the first
        """
        names = {"first": "from"}
        given = {f"--{names.get(f.name, f.name)}": getattr(self, f.name) for f in fields(self)}
        options.refuse_given(why, given)


def compile_end(
    split: HiddenSplit, engine: EngineName | None, *, salt: bytes | None = None
) -> CompiledModule:
    """The module of a hidden part, with the build that an engine needs.

    salt   None: it follows from the hidden part, so that one model has one plan. Then the digest
           confirms a guess at the weights; such a plan stays on this machine
    """
    if salt is None:
        salt = hashlib.sha256(b"cloister module in memory v1" + to_bytes(split.hidden)).digest()
    build = (engine or EngineName.NATIVE).build
    return compile_module(split.hidden, salt=salt, builds=(build,))


def load_module(plan: Plan, folder: Path | None, *, path: str) -> Mapping[str, CompiledModule]:
    """The module of a plan that a file holds, by the name of its node.

    Raises   InputError
    """
    if not plan.modules:
        options.refuse_given(f"{path} hides no layers; leave it out", {"--module": folder})
        return {}
    first, *others = plan.modules
    if others:
        raise InputError(f"{path}: has several hidden parts; run it from Python")
    if folder is None:
        raise InputError(
            f"{path}: its end is hidden in module {first.digest.hex()[:16]}; give --module DIR, "
            "the folder of that module"
        )
    return {first.node: CompiledModule.load(folder)}


def open_counter(plan: Plan, path: Path | None) -> QueryCounter | None:
    """What counts the queries of a plan's modules; a new file where there is none.

    Raises   InputError
    """
    limited = [module for module in plan.modules if module.queries is not None]
    if not limited:
        options.refuse_given("the plan limits no queries; leave it out", {"--counter": path})
        return None
    if path is None:
        raise InputError(
            f"the plan's module answers at most {limited[0].queries} queries: give --counter FILE, "
            "which counts them"
        )
    if os.path.lexists(path):
        return QueryCounter.open(path)
    note(f"query counter {path}: is new, so no query was counted before")
    return QueryCounter.create(path)


@contextmanager
def running(
    plan: Plan,
    split: HiddenSplit,
    module: CompiledModule,
    engine: EngineName | None,
    threads: int,
) -> Iterator[HiddenReference]:
    """The hidden part of a plan, computed by an engine and as it was."""
    engines = ModuleEngines(
        plan,
        {split.node: module},
        kind=(engine or EngineName.NATIVE).value,
        counter=None,
        threads=threads,
    )
    try:
        yield HiddenReference(split.whole, partial(engines.run, split.node))
    finally:
        engines.close()


@dataclass(frozen=True)
class HiddenCost:
    """A hidden part in one line, for one input; None: its file does not tell.

    module    its digest, in hexadecimal digits; empty while it is not compiled
    queries   how many samples it may answer; None: any number
    """

    node: str
    nodes: int | None
    parameters: int | None
    flops: int | None
    module: str
    queries: int | None

    @staticmethod
    def planned(module: PlannedModule) -> "HiddenCost":
        """What a plan tells of it."""
        return HiddenCost(module.node, None, None, None, module.digest.hex(), module.queries)

    @staticmethod
    def of_split(split: HiddenSplit, queries: int | None) -> "HiddenCost":
        """What the model tells of it."""
        nodes = split.hidden.nodes
        cost = estimate(split.hidden, {node.name: ENCLAVE for node in nodes})
        return HiddenCost(
            split.node, len(nodes), cost.total("parameters"), cost.total("flops"), "", queries
        )

    def __str__(self) -> str:
        limit = "any number of queries" if self.queries is None else f"{self.queries:,} queries"
        if self.nodes is None:
            return f"hidden part {self.node}: module {self.module}, {limit}"
        return (
            f"hidden part {self.node}: {self.nodes} nodes, {self.parameters:,} parameters, "
            f"{self.flops:,} flops, {limit}"
        )
