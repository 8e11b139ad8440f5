"""The output of the verbs: results on standard output, everything else on standard error."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from cloister.errors import printable

FILE_WIDTH = 200
"""Columns when the output is a file or a pipe, where nothing must be cut off."""
LINE_EVERY_S = 10.0
"""Between lines of progress where there is no terminal for a bar."""


def out() -> Console:
    """Standard output, for results."""
    return _console(stderr=False)


def err() -> Console:
    """Standard error, for progress and remarks."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else FILE_WIDTH
    # File and node names are data: brackets in them are not markup.
    return _PlainConsole(stderr=stderr, width=width, markup=False, highlight=False, emoji=False)


class _PlainConsole(Console):
    """Prints text of which nothing reaches the terminal as a command."""

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401  (as Rich has it)
        """See `rich.console.Console.print`; lines are the caller's, all else is made printable."""
        super().print(*(_lines(o) if isinstance(o, str) else o for o in objects), **options)


def _lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))


def note(text: str) -> None:
    """A remark on standard error, on one line whatever it quotes."""
    err().print(f"note: {printable(text)}", style="yellow", soft_wrap=True)


def emit_json(value: object) -> None:
    """Write one JSON document to standard output."""
    sys.stdout.write(json_text(value))


def json_text(value: object) -> str:
    """One JSON document."""
    return json.dumps(plain(value), indent=2, allow_nan=False) + "\n"


def plain(value: object) -> object:
    """A value as JSON can hold it: arrays become lists, NaN and infinity become null."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if is_dataclass(value):
        return plain(vars(value))
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value) if isinstance(value, Path) else repr(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> Table:
    """A plain table; columns that hold numbers are set to the right."""
    grid = Table(title=printable(title) or None, title_justify="left", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = all(isinstance(row[i], int | float | type(None)) for row in rows)
        grid.add_column(printable(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(_cell(value) for value in row))
    return grid


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error while it is a terminal; gives `update(done, total)`."""
    with stages() as update:
        yield lambda done, total: update(label, done, total)


@contextmanager
def steps(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """As `progress`, for work of which each step has a result; a line for each without a terminal.

    Gives `update(done, total, text)`.
    """
    if not err().is_terminal:
        yield _say_step
        return
    with progress(label) as bar:
        yield lambda done, total, text: bar(done, total)


def _say_step(done: int, total: int, text: str) -> None:
    if text:
        err().print(f"{done} of {total}: {text}", soft_wrap=True)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each stage of some work; gives `update(stage, done, total)`.

    Without a terminal, a line now and then: none for work that is done in less time.
    """
    console = err()
    if not console.is_terminal:
        yield _lines_of_stages()
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=None)
            bar.update(tasks[stage], completed=done, total=total)

        yield update


def _lines_of_stages() -> Callable[[str, int, int], None]:
    said = time.monotonic()

    def update(stage: str, done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= LINE_EVERY_S:
            said = now
            err().print(f"{stage}: {done:,} of {total:,}", soft_wrap=True)

    return update
