"""What the trusted side and the authority load: modules, lines, packages, and a budget of lines.

Each is measured in a process of its own, which says at its end what it has loaded: a session runs
one input through a saved plan on a local worker, with pads made inline or from a store, or with a
hidden end in an engine, and an authority's service answers one client. So the figures hold what is
really used, late imports too.

    python tools/tcb.py
"""

import ast
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).parents[1] / "src" / "cloister" / "examples" / "digits.onnx"

PLAN = """
import sys
from pathlib import Path
import numpy as np
import cloister
from cloister.base.rng import SystemRandom
from cloister.codegen.compile_module import compile_module
from cloister.graph.hidden import hide
from cloister.trusted.pads.factory import fill
from cloister.trusted.pads.maker import PadMaker
from cloister.trusted.pads.stored_plan import open_or_create
from cloister.trusted.query_counter import QueryCounter
model = cloister.load(sys.argv[1])
samples = np.random.default_rng(1).random((4, 1, 8, 8), np.float32)
plan = cloister.policies.slalom(model, calibration=samples)
folder = Path(sys.argv[2])
plan.save(folder / "digits.plan")
rng, key_file = SystemRandom(), folder / "pads.key"
split = hide(model, last=1)
module = compile_module(split.hidden, salt=bytes(32), builds=("onnx",))
module.save(folder / "module")
outer = split.named(module.manifest.digest, queries=9)
cloister.policies.make("slalom+ennclave", outer, calibration=samples).save(folder / "hidden.plan")
QueryCounter.create(folder / "counter")
store = open_or_create(plan, folder / "pads", key_file=key_file, rng=rng)
fill(store, PadMaker(plan), count=1)
"""
INLINE = """
import sys
import numpy as np
import cloister
plan = cloister.Plan.load(sys.argv[1] + "/digits.plan")
with cloister.Session(plan, on_clip="ignore") as session:
    session.run(np.zeros((1, 1, 8, 8), np.float32))
"""
STORE = """
import sys
from pathlib import Path
import numpy as np
import cloister
from cloister.trusted.pads.store import PadStore
folder = Path(sys.argv[1])
plan = cloister.Plan.load(folder / "digits.plan")
store = PadStore.open(folder / "pads", plan_digest=plan.digest, key_file=folder / "pads.key")
with cloister.Session(plan, pads=store, on_clip="ignore") as session:
    session.run(np.zeros((1, 1, 8, 8), np.float32))
"""
HIDDEN = """
import sys
from pathlib import Path
import numpy as np
import cloister
from cloister.bundle.compiled_module import CompiledModule
from cloister.trusted.query_counter import QueryCounter
folder = Path(sys.argv[1])
plan = cloister.Plan.load(folder / "hidden.plan")
modules = {plan.modules[0].node: CompiledModule.load(folder / "module")}
counter = QueryCounter.open(folder / "counter")
with cloister.Session(
    plan, modules=modules, engine="onnxruntime", counter=counter, on_clip="ignore"
) as session:
    session.run(np.zeros((1, 1, 8, 8), np.float32))
"""
AUTHORITY = """
import subprocess, sys
from pathlib import Path
from cloister.authority import records, service, tokens
from cloister.authority.authority import Authority
from cloister.authority.database import FILE
from cloister.base.rng import SystemRandom
folder, rng = Path(sys.argv[1]), SystemRandom()
records.init(folder, rng=rng)
made = [tokens.issue(folder / FILE, role, name="", rng=rng) for role in ("client", "server")]
with Authority(folder) as authority:
    served = service.serve(folder, authority, listen="127.0.0.1:0")
    client = [sys.executable, "-P", "-c", sys.argv[2], folder, served.url, *made]
    subprocess.run(client, check=True)
    served.close()
"""
CLIENT = """
import sys
from pathlib import Path
import numpy as np
import cloister
from cloister.authority.agreement import Agreement
from cloister.authority.enrolment import enrol
from cloister.authority.records import Terms
from cloister.authority.requests import Forward, Labels
from cloister.base.identity import PUBLIC_FILE
from cloister.base.rng import SystemRandom
from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo
from cloister.ring.linear import Geometry, LinearMap
folder, url, owner, server = sys.argv[1:]
rng, ids, pin = SystemRandom(), np.arange(2, dtype=np.int64), Path(folder) / PUBLIC_FILE
weights = np.random.default_rng(1).integers(-99, 100, (4, 1, 1, 64)).astype(np.int16)
linear = LinearMap(Geometry((1, 1), 64, (1, 1), 4), weights)
with cloister.authority.connect(url, pin=pin, token=owner) as authority:
    info = DatasetInfo("set", (8, 8, 1), 3, Encoding(1.0, 0.0, 8), 0, 16)
    place = enrol(authority, Agreement(info, Terms()), rng=rng)
    place.register("a" * 32, len(ids), "b" * 64, rng.random_bytes(32))
with cloister.authority.connect(url, pin=pin, token=server) as authority:
    authority.ask(Labels("set", ids), "server")
    authority.ask(Forward("set", ids, linear), "server")
"""
REPORT = """
import json, sys
print(json.dumps({name: getattr(m, "__file__", None) for name, m in sys.modules.items()}))
"""


@dataclass(frozen=True)
class Budget:
    """What a process may load: lines of Cloister's Python, and no package of `forbidden`."""

    lines: int
    forbidden: tuple[str, ...]


FRAMEWORKS = (
    "cloister.published", "cloister.cli", "cloister.codegen", "grpc", "keras", "onnx", "sklearn",
    "torch",
)  # fmt: skip
MAKING = (
    "cloister.plan.policies", "cloister.plan.split_choice", "cloister.plan.split_report",
    "cloister.planner",
)  # fmt: skip
"""What makes plans and chooses their split; a saved plan needs none of it."""
BUDGETS = {
    # Of these, 430 lines hold every plan and program to the order of checks and clear messages, 110
    # exchange open segments without Python, 150 keep plans for inputs of other sizes, and about
    # 1,000 take inputs and return outputs of every kind that ONNX Runtime has.
    "trusted side, pads made inline": Budget(12_680, (*FRAMEWORKS, *MAKING)),
    "trusted side, pads from a store": Budget(14_070, (*FRAMEWORKS, *MAKING)),
    "trusted side with a module": Budget(14_270, (*FRAMEWORKS, *MAKING)),
    "authority": Budget(7_040, (*FRAMEWORKS, "onnxruntime")),
}
"""Set just above what is reached: a process may grow only if this table says so."""

Modules = dict[str, str | None]
"""What a process has loaded: names, and the file of each that has one."""


def measure() -> dict[str, Modules]:
    """What each process of BUDGETS loads."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(PLAN, MODEL, folder)
        reports = (
            run(INLINE + REPORT, folder),
            run(STORE + REPORT, folder),
            run(HIDDEN + REPORT, folder),
            run(AUTHORITY + REPORT, folder / "authority", CLIENT),
        )
        return dict(zip(BUDGETS, map(json.loads, reports), strict=True))


def run(code: str, *arguments: Path | str) -> str:
    """What a new process prints."""
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def own(modules: Modules) -> dict[str, str]:
    """Cloister's own Python modules: names, and their text."""
    return {
        name: Path(file).read_text()
        for name, file in sorted(modules.items())
        if name.partition(".")[0] == "cloister" and file and file.endswith(".py")
    }


def packages(modules: Modules) -> list[str]:
    """The packages of other makers; names with an underscore are parts of others."""
    installed = {name for name, file in modules.items() if file and "site-packages" in file}
    names = {name.partition(".")[0] for name in installed} - {"cloister"}
    return sorted(name for name in names if not name.startswith("_"))


def code_lines(text: str) -> int:
    """Lines of a module without blank ones, comments and docstrings."""
    prose: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            prose.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return sum(
        bool(line.strip()) and not line.lstrip().startswith("#") and number not in prose
        for number, line in enumerate(text.splitlines(), 1)
    )


def excesses(modules: Modules, budget: Budget) -> list[str]:
    """How a process breaks its budget; none: it keeps to it."""
    lines = sum(len(text.splitlines()) for text in own(modules).values())
    found = [f"loads {name}" for name in budget.forbidden if name in modules]
    if lines > budget.lines:
        found.append(f"{lines:,} lines are over its budget of {budget.lines:,}")
    return found


def show(process: str, modules: Modules, budget: Budget) -> None:
    """Print a process's modules, by name, then its sums."""
    texts = own(modules)
    for name, text in texts.items():
        print(f"  {len(text.splitlines()):5,}  {name}")
    lines = sum(len(text.splitlines()) for text in texts.values())
    code = sum(map(code_lines, texts.values()))
    print(f"{process}: {lines:,} lines of {budget.lines:,}, {code:,} of code, {len(texts)} files")
    print(f"{process}: packages {', '.join(packages(modules))}\n")


def main() -> int:
    """Print all closures; fail when one breaks its budget."""
    measured = measure()
    for process, modules in measured.items():
        show(process, modules, BUDGETS[process])
    broken = [
        f"{process}: {excess}"
        for process, modules in measured.items()
        for excess in excesses(modules, BUDGETS[process])
    ]
    print(*broken, sep="\n", end="\n" if broken else "", file=sys.stderr)
    return len(broken) > 0


if __name__ == "__main__":
    sys.exit(main())
