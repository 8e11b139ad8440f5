"""Loops over views: axes are ordered by one view's memory, and merged where all views allow it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cloister.codegen.views import View


@dataclass(frozen=True)
class LoopNest:
    """Nested loops; `steps` are those of each named view on every loop, outermost first."""

    letter: str
    sizes: tuple[int, ...]
    steps: Mapping[str, tuple[int, ...]]

    def index(self, name: str) -> str:
        """The C expression of a view's element in the innermost loop."""
        terms = [
            f"{self.letter}{at}" if step == 1 else f"{self.letter}{at} * {step}"
            for at, step in enumerate(self.steps[name])
            if step
        ]
        return " + ".join(terms) or "0"

    def constants(self) -> dict[str, int]:
        """Names of the sizes, for the function's named constants."""
        return {f"{self.letter.upper()}{at}": size for at, size in enumerate(self.sizes)}

    def wrap(self, body: Sequence[str]) -> list[str]:
        """The loops around some statements."""
        lines, depth = [], 0
        for at in range(len(self.sizes)):
            i = f"{self.letter}{at}"
            opened = "" if at < len(self.sizes) - 1 else " {"
            bound = f"{self.letter.upper()}{at}"
            lines.append("    " * depth + f"for (int {i} = 0; {i} < {bound}; {i}++){opened}")
            depth += 1
        lines += ["    " * depth + line for line in body]
        if self.sizes:
            lines.append("    " * (depth - 1) + "}")
        return lines


def nest(
    views: Mapping[str, View],
    *,
    axes: Sequence[int] | None = None,
    letter: str = "i",
) -> LoopNest:
    """Loops over some axes (default: all) of views of one shape, in the order of the first."""
    leader = next(iter(views.values()))
    chosen = range(len(leader.shape)) if axes is None else axes
    ordered = sorted(
        (axis for axis in chosen if leader.shape[axis] > 1),
        key=lambda axis: -abs(leader.steps[axis]),
    )
    sizes: list[int] = []
    steps: dict[str, list[int]] = {name: [] for name in views}
    for axis in ordered:
        size = leader.shape[axis]
        own = {name: view.steps[axis] for name, view in views.items()}
        if sizes and all(steps[name][-1] == own[name] * size for name in views):
            sizes[-1] *= size
            for name in views:
                steps[name][-1] = own[name]
            continue
        sizes.append(size)
        for name in views:
            steps[name].append(own[name])
    return LoopNest(letter, tuple(sizes), {name: tuple(one) for name, one in steps.items()})
