"""`python -m benchmarks NAME [options]`; without a name, the names.

A benchmark is a module with a function `measure`, whose parameters are its options and whose
answer is JSON. A module's `faults` counts what an answer says against Cloister: the exit code.
"""

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence

import typer

from benchmarks import ROOT
from cloister.cli.console import emit_json, out, table
from cloister.cli.options import Json
from cloister.errors import CloisterError

NAMES = (
    "accuracy", "attest", "attested_session", "audit_models", "audits", "authority_kills",
    "authority_rate", "broker_kills", "compiled", "encrypted_prediction", "fe", "figure",
    "first_request", "floor", "fuzz_attested", "fuzz_loaders", "inference", "layers", "lies",
    "memory", "meter_kills", "pad_kills", "pads", "passes", "planner", "random_graphs",
    "roundtrip", "split", "training", "transport",
)  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """List the benchmarks, or run one."""
    if not arguments or arguments[0] not in NAMES:
        for name in NAMES:
            print(f"{name:16} {_title(name)}")
        return 2 if arguments and arguments[0] not in ("-h", "--help") else 0
    name, *given = arguments
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    try:
        app.command(help=_title(name))(_command(importlib.import_module(f"benchmarks.{name}")))
        return app(given, prog_name=f"python -m benchmarks {name}", standalone_mode=False)
    except (CloisterError, ImportError) as error:
        sys.exit(f"error: {error}")
    except typer.TyperException as error:
        sys.exit(f"error: {error.format_message()}")


def _title(name: str) -> str:
    """The first line of a module, which is not imported."""
    tree = ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").splitlines()[0]


def _command(module: object) -> Callable[..., int]:
    """The function `measure` with an option --json, whose answer is printed."""

    def run(json: Json = False, **given: object) -> int:
        found = module.measure(**given)
        emit_json(found) if json else show(found)
        return int(bool(getattr(module, "faults", lambda _: 0)(found)))

    signature = inspect.signature(module.measure)
    last = inspect.signature(run).parameters["json"]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), last])
    return run


def show(found: object, label: str = "") -> None:
    """A result for people: named values, and a table for equal rows."""
    if isinstance(found, Mapping):
        for key, value in found.items():
            show(value, f"{label}.{key}" if label else str(key))
    elif isinstance(found, list) and found and isinstance(found[0], Mapping):
        if any(isinstance(value, Mapping | list) for row in found for value in row.values()):
            for i, row in enumerate(found):
                show(row, f"{label}[{i}]")
        else:
            columns = list(found[0])
            rows = [[row.get(column) for column in columns] for row in found]
            out().print(table(columns, rows, title=label))
    else:
        value = f"{found:.4g}" if isinstance(found, float) else found
        out().print(f"{label}: {value}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
