"""kill -9 at random moments of issuing keys: is anything given away that the ledger forgot?

An authority process serves HTTPS; client threads ask for single random functionals of random
samples and note each answer they hold. The authority is killed after a random time and started
anew on the same folder. In the end every answer held must lie in the span that the ledger has on
record for its sample, and no sample may have given away more than its budget.
"""

import secrets
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.authority_process import AuthorityProcess, create
from cloister.authority.authority import Authority
from cloister.authority.client import AuthorityClient
from cloister.authority.records import Terms
from cloister.authority.requests import Forward
from cloister.base.identity import PUBLIC_FILE
from cloister.cli.console import progress
from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo
from cloister.errors import AuthorityUnavailable, BudgetError
from cloister.ring.linear import Geometry, LinearMap
from cloister.ring.rank import MERSENNE_61, Basis

DIM = 32
BUDGET = 8
BATCH = 16


def functional(seed: int) -> LinearMap:
    weights = np.random.default_rng(seed).integers(-50, 51, (1, 1, 1, DIM)).astype(np.int16)
    return LinearMap(Geometry((1, 1), DIM, (1, 1), 1), weights)


class Load(threading.Thread):
    """Asks without end and notes what it was answered."""

    def __init__(self, number: int, url: str, folder: Path, token: str, samples: int) -> None:
        super().__init__(daemon=True)
        self.number, self.samples = number, samples
        self.client = AuthorityClient(
            url, public=folder / PUBLIC_FILE, token=token, retry_for_s=0.0, timeout_s=10
        )
        self.held: list[tuple[np.ndarray, int]] = []
        self.refused = 0
        self.stop = threading.Event()

    def run(self) -> None:
        generator = np.random.default_rng(self.number)
        while not self.stop.is_set():
            ids = generator.choice(self.samples, BATCH, replace=False).astype(np.int64)
            self.ask(ids, int(generator.integers(0, 64)))

    def ask(self, ids: np.ndarray, seed: int) -> None:
        while not self.stop.is_set():
            try:
                self.client.ask(Forward("set", ids, functional(seed)), receiver="server")
                self.held.append((ids, seed))
            except BudgetError:
                self.refused += 1
            except AuthorityUnavailable:
                time.sleep(0.01)  # it was killed: the same again
                continue
            return


def measure(
    kills: Annotated[int, typer.Option("--kills", min=1)] = 100,
    clients: Annotated[int, typer.Option("--clients", min=1)] = 4,
    samples: Annotated[int, typer.Option("--samples", min=BATCH)] = 20000,
) -> dict[str, object]:
    """Samples of which clients hold more than is on record, or than the budget; all must be 0."""
    with tempfile.TemporaryDirectory() as place:
        return _measure(kills, clients, samples, Path(place))


def _measure(kills: int, clients: int, samples: int, place: Path) -> dict[str, object]:
    folder = place / "authority"
    info = DatasetInfo("set", (1, 1, DIM), 2, Encoding(1.0, 0.0, 8), 0, BUDGET)
    # Many functions and exact values: what has to survive is the accounts of several requests.
    terms = Terms(one_function=False, value_bits=32, max_bits=1 << 40)
    token = create(folder, info, terms, samples=samples)
    process = AuthorityProcess(folder)
    listen = process.url.removeprefix("https://")
    loads = [Load(i, process.url, folder, token, samples) for i in range(clients)]
    for load in loads:
        load.start()
    began = time.monotonic()
    with progress("kills") as update:
        for i in range(kills):
            # Once it answers again, any moment will do.
            before, deadline = answers(loads), time.monotonic() + 30
            while answers(loads) == before and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(secrets.randbelow(400) / 1000)
            process.kill()
            process = AuthorityProcess(folder, listen=listen)
            update(i + 1, kills)
    for load in loads:
        load.stop.set()
    for load in loads:
        load.join(60)
        load.client.close()
    seconds = time.monotonic() - began
    process.kill()
    with Authority(folder) as authority:
        found = compare(authority, loads)
    return {"kills": kills, "seconds": round(seconds), "requests": answers(loads)} | found


def answers(loads: list[Load]) -> int:
    """Requests that came to an end."""
    return sum(len(load.held) + load.refused for load in loads)


def compare(authority: Authority, loads: list[Load]) -> dict[str, int]:
    """What clients hold against what is on record, sample by sample."""
    held = defaultdict(set)
    for load in loads:
        for ids, seed in load.held:
            for sample in ids.tolist():
                held[sample].add(seed)
    recorded = authority.spent("set").rank
    beyond_record = beyond_budget = not_free = 0
    for sample, seeds in held.items():
        rows = np.concatenate([functional(s).weights.reshape(1, -1) for s in seeds])
        basis, _ = Basis.empty(DIM, modulus=MERSENNE_61).extend(rows.astype(np.int64))
        beyond_record += basis.rank > recorded[sample]
        beyond_budget += basis.rank > BUDGET
    # On record means: asking again costs nothing.
    for load in loads:
        for ids, seed in load.held:
            authority.ask(Forward("set", ids, functional(seed)), receiver="server")
    not_free = int((authority.spent("set").rank != recorded).sum())
    return {
        "answers_held": sum(len(load.held) for load in loads),
        "samples_touched": len(held),
        "samples_with_more_held_than_recorded": int(beyond_record),
        "samples_beyond_budget": int(beyond_budget) + int((recorded > BUDGET).sum()),
        "samples_with_answers_not_on_record": not_free,
    }


def faults(found: dict[str, object]) -> int:
    """How many samples contradict the ledger."""
    return sum(
        int(found[name])
        for name in (
            "samples_with_more_held_than_recorded",
            "samples_beyond_budget",
            "samples_with_answers_not_on_record",
        )
    )
