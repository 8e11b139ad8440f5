"""What a sweep needs of an engine: hidden parts compiled, started, and run without an engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from cloister.bundle.compiled_module import CompiledModule
from cloister.graph.graph import Graph
from cloister.trusted.engines.module_engine import EngineTimes


class StartedEngine(Protocol):
    """A module in an engine; see `ModuleEngine`."""

    measured: EngineTimes

    @property
    def pid(self) -> int:
        """Process id."""

    def run(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The module's outputs."""

    def close(self) -> None:
        """End it."""


PlainRun = Callable[[Sequence[np.ndarray]], float]
"""Runs a hidden part in this process; the milliseconds that it computed."""


@dataclass(frozen=True)
class EngineBench:
    """How hidden parts become modules, and where these run.

    plain   the same part in this process, without process, sandbox or copies of a batch
    """

    kind: str
    compile: Callable[[Graph], CompiledModule]
    start: Callable[[CompiledModule], StartedEngine]
    plain: Callable[[Graph, CompiledModule], PlainRun]


def resident_bytes(pid: int) -> int | None:
    """Largest resident size of a process so far; None where the system does not say."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in text.splitlines())
    return 1024 * int(fields["VmHWM"].split()[0]) if "VmHWM" in fields else None
