"""`cloister compile`: the hidden end of a model as a module, and the plan that names it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cloister.base.rng import SystemRandom
from cloister.bundle.compiled_module import CompiledModule
from cloister.cli import hidden_end, options
from cloister.cli.bundle_verbs import PUBLIC_PLAN
from cloister.cli.console import emit_json, out, table
from cloister.codegen.compile_module import compile_module
from cloister.codegen.gramine import write_gramine
from cloister.codegen.measured_module import ModuleMeasure, measure_module
from cloister.errors import InputError
from cloister.graph.graph import Graph
from cloister.plan.plan import Plan
from cloister.plan.protection import HIDDEN_END
from cloister.trusted.module_engines import ENGINES

SALT_BYTES = 32
GRAMINE = "gramine"
"""Its files' folder, in that of the module."""


class CompileTarget(StrEnum):
    """What a module is compiled for.

    C         the C file and the weights alone
    GRAMINE   native builds, and files for an enclave
    """

    NATIVE = "native"
    WASM = "wasm"
    ONNXRUNTIME = "onnxruntime"
    GRAMINE = "gramine"
    C = "c"


class Contraction(StrEnum):
    """Whether native builds round a product and its sum once (fma) or twice (off)."""

    FMA = "fma"
    OFF = "off"


class CompilerName(StrEnum):
    """Zig's C compiler, from the package index, or the system's GCC."""

    ZIG = "zig"
    GCC = "gcc"


BUILDS: dict[CompileTarget, tuple[str, ...]] = {
    CompileTarget.NATIVE: ("native",),
    CompileTarget.WASM: ("wasm",),
    CompileTarget.ONNXRUNTIME: ("onnx",),
    CompileTarget.GRAMINE: ("native",),
    CompileTarget.C: (),
}

ModuleFolder = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder for the module and its plan.")
]
Targets = Annotated[
    list[CompileTarget] | None,
    typer.Option("--target", help="What it is compiled for. Repeatable. Default: native."),
]
ContractionChoice = Annotated[
    Contraction | None,
    typer.Option(
        "--contraction",
        help="off: native builds give the bits of WebAssembly; fma: they are faster. Default: fma.",
    ),
]
CompilerChoice = Annotated[
    CompilerName | None,
    typer.Option("--compiler", help="gcc makes native builds alone. Default: zig."),
]


@options.grouped
def compile(
    model: options.ModelFile,
    to: ModuleFolder,
    given: options.ModelInputs,
    end: hidden_end.HiddenEnd,
    target: Targets = None,
    contraction: ContractionChoice = None,
    compiler: CompilerChoice = None,
    json: options.Json = False,
) -> None:
    """Compile the last layers of a model to a module that hides them, and make the plan around it.

    The folder has the C file, the packed weights, a binary for each kind of machine, and the plan
    of the other layers, which are open without --policy. Nothing in it is encrypted: seal it with
    `cloister bundle seal`. The module is compared with float64 on random inputs.
    """
    policy = given.policy or HIDDEN_END
    given.check_samples(policy)
    whole = given.load(model)
    split = end.split(whole, policy)
    if split is None:
        raise InputError("say which layers are hidden: --last N or --from NODE")
    targets = tuple(dict.fromkeys(target or [CompileTarget.NATIVE]))
    builds = tuple(dict.fromkeys(build for one in targets for build in BUILDS[one]))
    _refuse_unused(builds, contraction, compiler)
    rng = SystemRandom()
    module = compile_module(
        split.hidden,
        salt=rng.random_bytes(SALT_BYTES),
        builds=builds,
        contraction=(contraction or Contraction.FMA).value,
        compiler=(compiler or CompilerName.ZIG).value,
    )
    # The module is tried in the first engine that it has a build for.
    kind = next((one for one in ENGINES if hidden_end.EngineName(one).build in builds), None)
    measured = None if kind is None else measure_module(module, split.hidden, kind=kind, rng=rng)
    named = split.named(module.manifest.digest, queries=end.queries)
    plan, origin = replace(given, policy=policy).plan(named, whole=whole)
    module.save(to)
    plan.save(to / PUBLIC_PLAN)
    if CompileTarget.GRAMINE in targets:
        write_gramine(module, to / GRAMINE)
    made = Compilation(to, split.hidden, module, plan, origin, targets, measured)
    if json:
        emit_json(made.to_dict())
    else:
        made.show()


def _refuse_unused(
    builds: Sequence[str], contraction: Contraction | None, compiler: CompilerName | None
) -> None:
    """Refuse options about builds that are not made.

    Raises   InputError naming the option
    """
    if "native" not in builds:
        options.refuse_given(
            "is about native builds; give --target native too", {"--contraction": contraction}
        )
    if not {"native", "wasm"} & set(builds):
        options.refuse_given(
            "nothing is compiled for --target c and onnxruntime; leave it out",
            {"--compiler": compiler},
        )


@dataclass(frozen=True)
class Compilation:
    """What was written, for a reader."""

    folder: Path
    hidden: Graph
    module: CompiledModule
    plan: Plan
    origin: str
    targets: Sequence[CompileTarget]
    measured: ModuleMeasure | None

    def to_dict(self) -> dict[str, object]:
        """For --json."""
        manifest, measured = self.module.manifest, self.measured
        return {
            "folder": self.folder,
            "module_digest": manifest.digest,
            "plan_digest": self.plan.digest,
            "policy": self.plan.policy,
            "calibration": self.origin,
            "targets": [one.value for one in self.targets],
            "nodes": [node.name for node in self.hidden.nodes],
            "operators": manifest.operators,
            "source_bytes": len(self.module.source),
            "weights_bytes": manifest.weights_bytes,
            "arena_bytes": manifest.arena_bytes,
            "input_bytes": manifest.input_bytes,
            "output_bytes": manifest.output_bytes,
            "contraction": manifest.contraction,
            "builds": dict(manifest.builds),
            "engine": None if measured is None else measured.engine,
            "difference": None if measured is None else measured.check.difference,
            "bound": None if measured is None else measured.check.bound,
            "call_ms": None if measured is None else measured.call_ms,
        }

    def show(self) -> None:
        """For a person."""
        console, manifest = out(), self.module.manifest
        console.print(f"{self.folder}: module {manifest.digest.hex()}", soft_wrap=True)
        console.print(f"hidden: {', '.join(node.name for node in self.hidden.nodes)}")
        sizes = (
            ("C text", len(self.module.source)),
            ("packed weights", manifest.weights_bytes),
            ("arena", manifest.arena_bytes),
            *((f"build {name}", build.nbytes) for name, build in manifest.builds.items()),
        )
        console.print(table(("part", "bytes"), sizes))
        if self.measured is None:
            console.print("not compiled for a machine, so it was not compared with float64")
        else:
            check = self.measured.check
            console.print(
                f"largest difference from float64: {check.difference:.3g}, at most "
                f"{check.bound:.3g} explained by rounding"
            )
            console.print(f"a call takes {self.measured.call_ms:.4g} ms ({self.measured.engine})")
        if CompileTarget.GRAMINE in self.targets:
            console.print(f"{self.folder / GRAMINE}: files for Gramine-SGX, which were not run")
        console.print(f"{self.folder / PUBLIC_PLAN}: plan {self.plan.digest.hex()}; {self.origin}")
