"""`cloister splits`: what every split of a model costs, and what it protects."""

from pathlib import Path
from typing import Annotated

import typer

from cloister.base import files
from cloister.cli import options
from cloister.cli.console import emit_json, err, out, plain_json, stages, table
from cloister.splits.measure_splits import SplitRun, measure_splits
from cloister.splits.presets import NAMES
from cloister.splits.split_cost import COLUMNS, table_rows
from cloister.splits.splits_page import write_page
from cloister.trusted.engines.module_engine import EngineKind

JSON_NAME = "splits.json"

Model = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help="The model, such as model.onnx.")
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="|".join(NAMES),
        help="A network of eNNclave's authors instead; the first three are trained on the data in "
        "the folder CLOISTER_DATA.",
    ),
]
Samples = Annotated[
    list[Path] | None,
    typer.Option("--input", metavar="FILE", help="Inputs of MODEL: pictures or arrays. Repeatable."),
]
Engine = Annotated[
    EngineKind, typer.Option("--engine", help="What runs the hidden layers.")
]
Repeats = Annotated[int, typer.Option("--repeats", min=2, help="Warm inferences of each split.")]
Starts = Annotated[int, typer.Option("--starts", min=1, help="Starts of each split's engine.")]
Theft = Annotated[
    Path | None,
    typer.Option("--theft", metavar="report.json", help="What `cloister audit model` wrote."),
]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Keep the trained presets here, as ONNX models."),
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Write splits.json and a page here.")
]


@options.grouped
def splits(
    given: Pictures,
    model: Model = None,
    preset: Preset = None,
    inputs: Samples = None,
    engine: Engine = "native",
    repeats: Repeats = DEFAULT_REPEATS,
    starts: Starts = DEFAULT_STARTS,
    theft: Theft = None,
    cache: Cache = None,
    json: options.Json = False,
    to: Out = None,
) -> None:
    """Measure every split of a model: what it costs to hide the last layers, and what it protects.

    The part outside runs in ONNX Runtime on the host, the hidden layers in an engine. What SGX
    would add is modelled from published constants.
    """
