"""`cloister export`: a trained model as an ONNX file, in its owner's units and class names."""

from pathlib import Path
from typing import Annotated

import typer

from cloister import training
from cloister.cli import options
from cloister.cli.console import emit_json, out

Folder = Annotated[
    Path, typer.Argument(metavar="MODEL", help="The --out folder of `cloister train`.")
]
Out = Annotated[Path, typer.Option("--out", metavar="FILE.onnx", help="The file to write.")]


@options.grouped
def export(
    folder: Folder, keys: options.AuthorityAccess, out_file: Out, json: options.Json = False
) -> None:
    """Write a trained model as ONNX, in the units and with the class names of its clients.

    Only a client's token tells these names. The file holds all weights, and `cloister run` serves
    it on an untrusted worker.
    """
    with keys.connect() as authority:
        made = training.export(folder, out_file, authority=authority)
    if json:
        emit_json({"out": out_file, "inputs": made.inputs, "outputs": made.outputs})
        return
    out().print(f"{out_file}  {made.model}, trained on {made.dataset}", soft_wrap=True)
    for role, described in (("takes", made.inputs), ("gives", made.outputs)):
        for name, text in described.items():
            out().print(f"{role} {name}: {text}", soft_wrap=True)
