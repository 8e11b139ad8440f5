"""`cloister bench`: ratios measured side by side, in one run, on one machine."""

from typing import Annotated

import typer

from cloister.cli import options
from cloister.cli.bench.fe import fe
from cloister.cli.bench.figure import figure
from cloister.cli.bench.inference import inference
from cloister.cli.bench.layers import bench_layers
from cloister.cli.bench.pads import pads
from cloister.cli.bench.roundtrip import roundtrip
from cloister.cli.bench.training import training
from cloister.cli.bench.transport import transport
from cloister.cli.console import emit_json, out, table

app = typer.Typer(help="Measure Cloister against plain engines.")
app.command()(inference)
app.command()(pads)
app.command()(transport)
app.command()(roundtrip)
app.command()(figure)
app.command()(fe)
app.command()(training)


@app.command()
def layers(
    threads: options.Threads = 1,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed runs of each.")] = 5,
    json: options.Json = False,
) -> None:
    """Compare the exact integer layers of VGG16 with ONNX Runtime's float32 ones."""
    found = bench_layers(threads=threads, repeats=repeats)
    if json:
        emit_json(found)
        return
    rows = found["layers"]
    columns = list(rows[0])
    console = out()
    console.print(table(columns, [[row[column] for column in columns] for row in rows]))
    for key, value in found.items():
        if key != "layers":
            console.print(f"{key}: {value}")
