"""The jobs of an audit: their results are kept in a file, so that a killed audit goes on."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cloister.base import files
from cloister.base.reading import parsing
from cloister.errors import InputError

PROGRESS = "progress.json"
SECONDS = 60.0
Job = TypeVar("Job")
Update = Callable[[int, int], None]


class JobResults:
    """The results that are there, as JSON values by their jobs' names.

    identity   digest of everything that one result depends on

    Raises   InputError when the folder's file is another audit's, or damaged
    """

    def __init__(self, folder: Path, identity: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(folder, name=PROGRESS)
        self.path, self._identity = folder / PROGRESS, identity
        self.done: dict[str, Any] = {}
        if not self.path.exists():
            return
        with parsing(f"{self.path}: damaged; remove it to start anew"):
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found["audit"] != identity:
                raise InputError(
                    f"{self.path}: of another audit (model, data, settings or versions differ); "
                    "choose another --out"
                )
            self.done = dict(found["done"])

    def add(self, name: str, result: object) -> None:
        """Keep one more result."""
        self.done[name] = result
        text = json.dumps({"audit": self._identity, "done": self.done}, allow_nan=False)
        files.replace(self.path, text.encode(), private=True)


def begin_in_time(jobs: Sequence[Job], *, minutes: float | None, update: Update) -> Iterator[Job]:
    """Jobs in their order, none of them begun after so many minutes.

    update   is called with how many jobs of how many are done
    """
    end = None if minutes is None else time.monotonic() + SECONDS * minutes
    for count, job in enumerate(jobs):
        update(count, len(jobs))
        if end is not None and time.monotonic() > end:
            return
        yield job
    update(len(jobs), len(jobs))
