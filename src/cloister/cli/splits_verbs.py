"""`cloister splits`: what every split of a model costs, and what it protects."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cloister.base import files
from cloister.cli import options
from cloister.cli.console import emit_json, err, json_text, note, out, stages, table
from cloister.errors import InputError
from cloister.graph.input_files import read_inputs
from cloister.splits.measure_splits import DEFAULT_REPEATS, DEFAULT_STARTS, measure_splits
from cloister.splits.preset_model import SweptModel, preset_model
from cloister.splits.presets import NAMES
from cloister.splits.split_cost import HIDDEN_COLUMNS, TIME_COLUMNS, hidden_rows, time_rows
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
    typer.Option(
        "--input", metavar="FILE", help="Inputs of MODEL: pictures or arrays. Repeatable."
    ),
]
Engine = Annotated[EngineKind, typer.Option("--engine", help="What runs the hidden layers.")]
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


def splits(
    model: Model = None,
    preset: Preset = None,
    inputs: Samples = None,
    engine: Engine = "native",
    repeats: Repeats = DEFAULT_REPEATS,
    starts: Starts = DEFAULT_STARTS,
    theft: Theft = None,
    cache: Cache = None,
    dim: options.Dims = None,
    json: options.Json = False,
    to: Out = None,
) -> None:
    """Measure every split of a model: what it costs to hide the last layers, and what it protects.

    The part outside runs in ONNX Runtime on the host, the hidden layers in an engine. What SGX
    would add is modelled from published constants.
    """
    with stages() as update:
        swept = _subject(model, preset, inputs, cache, dim, update)
        found = measure_splits(
            swept, engine=engine, repeats=repeats, starts=starts, theft=theft,
            progress=partial(update, "splits"),
        )  # fmt: skip
    if to is not None:
        page = write_page(found, to)
        text = json_text(found.to_dict())
        files.replace(to / JSON_NAME, text.encode(), private=False)
        err().print(f"written to {page} and {to / JSON_NAME}", soft_wrap=True)
    if json:
        emit_json(found.to_dict())
        return
    console = out()
    console.print(table(HIDDEN_COLUMNS, hidden_rows(found), title=found.model))
    console.print()
    console.print(table(TIME_COLUMNS, time_rows(found), title="milliseconds of one inference"))
    console.print()
    for line in found.notes():
        console.print(line, soft_wrap=True)


def _subject(
    model: str | None,
    preset: str | None,
    inputs: list[Path] | None,
    cache: Path | None,
    dim: list[str] | None,
    update: Callable[[str, int, int], None],
) -> SweptModel:
    if (model is None) == (preset is None):
        raise InputError("give a model, or the name of a network as --preset")
    if preset is not None:
        if inputs:
            raise InputError("--input: a preset has samples of its own; leave it out")
        options.refuse_given("is for a model; leave it out", {"--dim": dim})
        return preset_model(preset, cache=cache, progress=update)
    if cache is not None:
        raise InputError("--cache: is for presets; leave it out")
    if not inputs:
        raise InputError("--input: name pictures or arrays that the model takes")
    graph = options.load_model(str(model), dim)
    read = read_inputs(graph, inputs, note=note)
    return SweptModel(graph, read.arrays, ", ".join(map(str, inputs)), str(model))
