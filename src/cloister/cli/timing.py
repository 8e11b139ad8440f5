"""Callables timed by turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

K = TypeVar("K")


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs: on the clock, and of this process on all cores."""

    walls_s: tuple[float, ...]
    cpus_s: tuple[float, ...]

    @property
    def wall_s(self) -> float:
        """Median time on the clock."""
        return statistics.median(self.walls_s)

    @property
    def cpu_s(self) -> float:
        """Median time of the process."""
        return statistics.median(self.cpus_s)

    @property
    def wall_spread(self) -> float:
        """Slowest less fastest run on the clock, relative to the median."""
        return (max(self.walls_s) - min(self.walls_s)) / self.wall_s


def interleaved(
    callables: Mapping[K, Callable[[], object]],
    *,
    repeats: int,
    before: Mapping[K, Callable[[], object]] | None = None,
) -> dict[K, Timing]:
    """Time every callable `repeats` times, by turns, so that all meet the same conditions.

    A first turn of each warms up and is not timed. `before` has functions that are called, untimed,
    before every run of a callable.
    """
    walls: dict[K, list[float]] = {name: [] for name in callables}
    cpus: dict[K, list[float]] = {name: [] for name in callables}
    for _ in range(1 + repeats):
        for name, run in callables.items():
            if before is not None and name in before:
                before[name]()
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            walls[name].append(time.perf_counter() - wall)
            cpus[name].append(time.process_time() - cpu)
    return {name: Timing(tuple(walls[name][1:]), tuple(cpus[name][1:])) for name in callables}
