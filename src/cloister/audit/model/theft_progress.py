"""The thefts of an audit that are done, kept in a file: an audit that was killed goes on."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cloister.audit.job_results import JobResults
from cloister.base.reading import parsing


@dataclass(frozen=True)
class TheftJob:
    """One theft: a split (0: the small architecture, without any layer), a budget and a seed."""

    hidden_layers: int
    queries: int
    seed: int

    @property
    def key(self) -> str:
        """Its name in the file of what is done."""
        return f"{self.hidden_layers}/{self.queries}/{self.seed}"

    def generator(self) -> torch.Generator:
        """The randomness of its weights and order."""
        return seeded(f"theft {self.key}")


@dataclass(frozen=True)
class Stolen:
    """The surrogate of one attack; `membership` is the AUC of its confidence."""

    attack: str
    accuracy: float
    fidelity: float
    membership: float | None


class TheftProgress:
    """The thefts that are done.

    Raises   InputError when the folder's file is another audit's
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._results = JobResults(folder, identity)
        self.path = self._results.path
        self.done: dict[TheftJob, tuple[Stolen, ...]] = {}
        with parsing(f"{self.path}: damaged; remove it to start anew"):
            for key, surrogates in self._results.done.items():
                hidden, queries, seed = map(int, key.split("/"))
                made = tuple(Stolen(**one) for one in surrogates)
                self.done[TheftJob(hidden, queries, seed)] = made

    def add(self, job: TheftJob, stolen: tuple[Stolen, ...]) -> None:
        """Keep one more theft."""
        self.done[job] = stolen
        self._results.add(job.key, [asdict(one) for one in stolen])


def seeded(purpose: str) -> torch.Generator:
    """The same random numbers for a purpose in every audit."""
    digest = hashlib.sha256(f"cloister model audit {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
