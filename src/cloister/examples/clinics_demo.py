"""Two clinics train one model, and neither sees the other's patients.

Every role is a process of its own: the authority, each clinic's `cloister data encrypt`, the
training server. The data are scikit-learn's breast cancer records (569 patients, 30 measurements).
"""

import csv
import importlib
import io
import json as jsons
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from cloister.base import files
from cloister.errors import InputError
from cloister.examples.commands import cloister, refused, serving

NAME = "biopsies"
CLINICS = ("north", "south")
BUDGET = 10
EPOCHS, BATCH, SEED = 40, 32, 1
BITS = 12
HELD_OUT_EVERY = 4


@dataclass(frozen=True, eq=False)
class Records:
    """Measurements by column, and the diagnosis (0 malignant, 1 benign)."""

    columns: list[str]
    x: Float64[np.ndarray, "n d"]
    y: Int64[np.ndarray, " n"]


def load_records() -> Records:
    """The records in an order that gives both clinics both diagnoses.

    Raises   InputError without scikit-learn
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise InputError(
            "the demo's records come with scikit-learn: pip install scikit-learn"
        ) from error
    loaded = datasets.load_breast_cancer()
    columns = [str(name).replace(" ", "_") for name in loaded.feature_names]
    return Records(columns, loaded.data.astype(np.float64), loaded.target.astype(np.int64))


def run(records: Records, folder: Path, *, say: Callable[[str], None]) -> dict[str, Any]:
    """The whole story; every process works in `folder`.

    say   called with every step as it begins
    """
    authority = folder / "authority"
    cloister("authority", "init", authority)
    tokens = {role: f"@{folder / role}.token" for role in ("client", "server", "trusted")}
    for role, token in tokens.items():
        cloister("authority", "token", authority, "--role", role, "--out", token[1:])
    say("1  the authority serves keys")
    serve = ("authority", "serve", authority, "--listen", "127.0.0.1:0")
    with serving(*serve) as url:
        reach = ("--authority", url, "--pin", authority / "authority.pub")
        ranges = _write_ranges(records, folder / "ranges.json")
        data = folder / f"{NAME}.cloister"
        for number, clinic in enumerate(CLINICS):
            for split, rows in _rows(records, number).items():
                table_file = _write_table(records, rows, folder / f"{clinic}-{split}.csv")
                cloister(
                    "data", "encrypt", table_file, *reach, "--token", tokens["client"],
                    "--out", data, "--name", NAME, "--label", "diagnosis",
                    "--classes", "malignant,benign", "--ranges", ranges, "--bits", BITS,
                    "--privacy", f"budget={BUDGET}", "--split", split,
                    "--digests", folder / f"{clinic}-digests",
                )  # fmt: skip
                say(f"2  clinic {clinic}: {len(rows)} patients encrypted ({split})")
        train = (
            "train", data, *reach, "--epochs", EPOCHS, "--batch", BATCH, "--seed", SEED, "--json",
        )  # fmt: skip
        as_server = ("--token", tokens["server"])
        say("3  the server trains on ciphertexts")
        trained = jsons.loads(cloister(*train, *as_server, "--curve", folder / "curve.svg"))
        say("4  the server asks for more than the budget allows")
        refusal = refused(*train, *as_server, "--first-layer", "trainable")
        say("5  a trusted runtime gets the unblinding terms instead")
        trusted = jsons.loads(
            cloister(*train, "--token", tokens["trusted"], "--unblind-to", "trusted")
        )
        budget = jsons.loads(cloister("authority", "budget", authority, "--json"))[0]
    say("6  the same model in the clear, for comparison")
    plain = plain_accuracy(records)
    return {
        "patients": len(records.y),
        "accuracy_plain": plain,
        "accuracy_encrypted": trained["test_accuracy"],
        "accuracy_trusted": trusted["test_accuracy"],
        "rank": trained["rank"],
        "dim": trained["dim"],
        "claims": trained["claims"],
        "refusal": refusal,
        "budget": budget,
    }


def plain_accuracy(records: Records) -> float:
    """The same model, settings and patients; their order is another, as clinics shuffle theirs."""
    torch = importlib.import_module("torch")
    models, trainer = (
        importlib.import_module(f"cloister.training.{n}") for n in ("models", "trainer")
    )
    parts = [_rows(records, number) for number in range(len(CLINICS))]
    train, test = (np.concatenate([part[split] for part in parts]) for split in ("train", "test"))
    low, high = records.x.min(axis=0), records.x.max(axis=0)
    values = 2 * (records.x - low) / (high - low) - 1
    x = torch.from_numpy(values.astype(np.float32).reshape(len(values), 1, 1, -1))
    y = torch.from_numpy(records.y)
    torch.manual_seed(SEED)
    model = models.mlp((1, 1, len(records.columns)), 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(EPOCHS):
        order = trainer.epoch_order(len(train), seed=SEED, epoch=epoch)
        for start in range(0, len(order), BATCH):
            ids = train[order[start : start + BATCH]]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[ids]), y[ids]).backward()
            optimizer.step()
    with torch.no_grad():
        return float((model(x[test]).argmax(1) == y[test]).float().mean())


def _rows(records: Records, clinic: int) -> dict[str, Int64[np.ndarray, " n"]]:
    """A clinic's patients by split: it holds back every fourth."""
    rows = np.arange(clinic, len(records.y), len(CLINICS))
    held_out = np.arange(len(rows)) % HELD_OUT_EVERY == 0
    return {"train": rows[~held_out], "test": rows[held_out]}


def _write_table(records: Records, rows: np.ndarray, path: Path) -> Path:
    names = ("malignant", "benign")
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*records.columns, "diagnosis"])
    for row in rows:
        writer.writerow([*records.x[row].tolist(), names[records.y[row]]])
    files.replace(path, text.getvalue().encode(), private=True)
    return path


def _write_ranges(records: Records, path: Path) -> Path:
    """The range of every measurement, which the clinics agreed on beforehand."""
    low, high = records.x.min(axis=0).tolist(), records.x.max(axis=0).tolist()
    ranges = {name: [low[i], high[i]] for i, name in enumerate(records.columns)}
    files.replace(path, jsons.dumps(ranges).encode(), private=True)
    return path
