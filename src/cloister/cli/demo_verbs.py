"""`cloister demo`: the parts of Cloister on data that come with scikit-learn."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.table import Table

from cloister import training
from cloister.base.rng import SystemRandom
from cloister.cli import options
from cloister.cli.console import emit_json, err, out, progress, steps, table
from cloister.errors import InputError
from cloister.examples import (
    attested_demo,
    attested_page,
    clinics_demo,
    cryptonn_demo,
    digits_demo,
    digits_page,
    hidden_demo,
    hidden_page,
    split_demo,
    split_demo_page,
)
from cloister.plan.claims import Claims

HELP = "See inference, hidden layers, attestation, a split model, or training, from end to end."

app = typer.Typer(help=HELP)

PageFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write the page.")]
Inputs = Annotated[
    int,
    typer.Option("--inputs", min=digits_demo.FEWEST, help="How many held-out digits to recognise."),
]
WorkFolder = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Keep all files here, for inspection."),
]


Scheme = Annotated[
    cryptonn_demo.SchemeName,
    typer.Option("--scheme", help="The back end: ddh is the paper's, mask is Cloister's own."),
]


@app.callback(invoke_without_command=True)
def _default(context: typer.Context) -> None:
    """See inference, hidden layers, a split model, or training. Default: inference."""
    if context.invoked_subcommand is None:
        inference()


@app.command(epilog="Example: cloister demo inference --inputs 100 --out page")
def inference(
    folder: PageFolder = Path("demo-output"), inputs: Inputs = 360, json: options.Json = False
) -> None:
    """Recognise digits on a worker that sees only noise, then catch one that lies."""
    digits = digits_demo.load_digits(inputs)
    with progress("private + verified") as update:
        outcome = digits_demo.run(digits, progress=update)
    path = digits_page.write_page(outcome, folder)
    if json:
        emit_json({**outcome.to_dict(), "page": path})
    else:
        _show_inference(outcome, path)


def _show_inference(outcome: digits_demo.Outcome, path: Path) -> None:
    grid = Table.grid(padding=(0, 2))
    for name, value in digits_demo.facts(outcome):
        grid.add_row(name, value)
    for stage, each_ms, what in digits_demo.stages(outcome.report):
        grid.add_row(f"{stage} time", f"{each_ms} ms per input ({what})")
    for node, shown in zip(outcome.nodes, outcome.seen, strict=True):
        grid.add_row(f"bytes sent for {node}", f"uniform? chi-square p {shown.uniformity.p_text}")
    without = outcome.seen_without_pads.uniformity.p_text
    grid.add_row(f"{outcome.nodes[0]} without pads", f"uniform? chi-square p {without}")
    console = out()
    console.print(grid)
    console.print(f"\n{outcome.claims}\n", soft_wrap=True)
    console.print("A worker that changes one number of one answer:")
    console.print(f"  refused: {outcome.refusal}\n", soft_wrap=True)
    console.print(f"page: {path}", soft_wrap=True)


@app.command(epilog="Example: cloister demo hidden --out page")
def hidden(folder: PageFolder = Path("demo-hidden-output"), json: options.Json = False) -> None:
    """Sell a classifier with hidden layers, run it, search for its weights, and try to steal it."""
    digits = digits_demo.all_digits()
    with TemporaryDirectory() as temporary:
        outcome = hidden_demo.run(digits, Path(temporary), say=err().print)
    path = hidden_page.write_hidden_page(outcome, folder)
    if json:
        emit_json({**outcome.to_dict(), "page": path})
    else:
        _show_hidden(outcome, path)


def _show_hidden(outcome: hidden_demo.HiddenOutcome, path: Path) -> None:
    console = out()
    grid = Table.grid(padding=(0, 2))
    for name, value in hidden_page.facts(outcome):
        grid.add_row(name, value)
    console.print(grid)
    console.print()
    searched = ("searched", "bytes", "hidden words found")
    console.print(table(searched, hidden_page.search_rows(outcome)))
    for refusal in outcome.refusals:
        console.print(f"{refusal.attempt}: {refusal.error}", soft_wrap=True)
    console.print()
    stolen = ("answers", "accuracy of a surrogate", "same answer as the vendor", "the thief")
    console.print(table(stolen, hidden_page.theft_rows(outcome)))
    console.print(f"the next question: {outcome.stopped}\n", soft_wrap=True)
    for sentence in hidden_page.HONEST:
        console.print(sentence, soft_wrap=True)
    console.print(f"\n{outcome.claims}\n", soft_wrap=True)
    console.print(f"page: {path}", soft_wrap=True)


@app.command(epilog="Example: cloister demo attested --out page")
def attested(folder: PageFolder = Path("demo-attested-output"), json: options.Json = False) -> None:
    """Rent out a classifier to a machine that proves itself, and see four attempts refused."""
    if folder.is_file():
        raise InputError(f"--out {folder}: is a file; name a folder")
    digits = digits_demo.all_digits()
    with TemporaryDirectory() as temporary:
        outcome = attested_demo.run(digits, Path(temporary), say=err().print)
    path = attested_page.write_attested_page(outcome, folder)
    if json:
        emit_json({**outcome.to_dict(), "page": path})
    else:
        _show_attested(outcome, path)


def _show_attested(outcome: attested_demo.AttestedOutcome, path: Path) -> None:
    console = out()
    grid = Table.grid(padding=(0, 2))
    for name, value in attested_page.facts(outcome):
        grid.add_row(name, value)
    console.print(grid)
    console.print()
    console.print(table(attested_page.looked_columns(outcome), attested_page.looked_rows(outcome)))
    for attempt, by, reason in attested_page.refusal_rows(outcome):
        console.print(f"{attempt}; refused by the {by}: {reason}", soft_wrap=True)
    console.print()
    for sentence in attested_page.HONEST:
        console.print(sentence, soft_wrap=True)
    console.print(f"\n{outcome.claims}\n", soft_wrap=True)
    console.print(f"page: {path}", soft_wrap=True)


@app.command(epilog="Example: cloister demo split --out page")
def split(folder: PageFolder = Path("demo-origami-output"), json: options.Json = False) -> None:
    """Attack every split of a small network, then run it at each of them."""
    if folder.is_file():
        raise InputError(f"--out {folder}: is a file; name a folder")
    digits = digits_demo.all_digits()
    with TemporaryDirectory() as temporary, steps("attacks") as said:
        outcome = split_demo.run(digits, Path(temporary), said=said)
    path = split_demo_page.write_split_page(outcome, folder)
    if json:
        emit_json({**outcome.to_dict(), "page": path})
    else:
        _show_split(outcome, path)


def _show_split(outcome: split_demo.SplitOutcome, path: Path) -> None:
    console = out()
    console.print(table(*outcome.audit.report.table()))
    console.print()
    for name, value in split_demo_page.facts(outcome):
        console.print(f"{name}: {value}", soft_wrap=True)
    console.print()
    console.print(table(split_demo_page.COLUMNS, split_demo_page.run_rows(outcome)))
    console.print(f"\n{outcome.claims}\n", soft_wrap=True)
    console.print(f"page: {path}", soft_wrap=True)


@app.command("training", epilog="Example: cloister demo training --out clinics")
def clinics(folder: WorkFolder = None, json: options.Json = False) -> None:
    """Train on two clinics' encrypted records, then show the server's view."""
    _ = training.train  # raises where PyTorch is missing, before anything begins
    records = clinics_demo.load_records()
    with TemporaryDirectory() as temporary:
        place = Path(temporary) if folder is None else folder.resolve()
        if place.exists() and any(place.iterdir()):
            raise InputError(f"--out {place}: is not empty; choose another folder")
        place.mkdir(parents=True, exist_ok=True)
        found = clinics_demo.run(records, place, say=err().print)
    if json:
        emit_json(found)
    else:
        _show_training(found)


def _show_training(found: dict[str, Any]) -> None:
    """Print the story's end for people."""
    console = out()
    console.print(
        f"accuracy on held-out patients: {found['accuracy_encrypted']:.1%} encrypted, "
        f"{found['accuracy_trusted']:.1%} with a trusted runtime, "
        f"{found['accuracy_plain']:.1%} in the clear ({found['patients']} patients)"
    )
    console.print()
    console.print(f"{Claims.from_dict(found['claims'])}\n", soft_wrap=True)
    budget = found["budget"]
    columns = ("data set", "samples", "dim", "rank allowed", "spent", "bits", "refused")
    row = (
        budget["name"], budget["samples"], budget["dim"], budget["rank_allowed"],
        budget["rank_max"], budget["bits_max"], budget["counts"]["refusals"],
    )  # fmt: skip
    console.print(table(columns, [row], title="the authority's ledger"))
    console.print()
    console.print(f"asking for more was refused: {found['refusal']}")


@app.command(epilog="Example: cloister demo cryptonn --scheme lwe")
def cryptonn(scheme: Scheme = "ddh", json: options.Json = False) -> None:
    """Train as CryptoNN was published: each step, who does it, and by which function."""
    with progress("training") as update:
        outcome = cryptonn_demo.run(scheme, rng=SystemRandom(), update=update)
    if json:
        emit_json(outcome.to_dict())
    else:
        _show_cryptonn(outcome)


def _show_cryptonn(outcome: cryptonn_demo.CryptonnOutcome) -> None:
    console = out()
    columns = ("step", "who", "function", "gives", "checked", "with bounds, in")
    rows: list[tuple[object, ...]] = []
    for one in outcome.steps:
        bounded = cryptonn_demo.BOUNDED[one.step] if one.step not in {r[0] for r in rows} else ""
        names = (text.removeprefix("cloister.") for text in (one.function, bounded))
        rows.append((one.step, one.who, next(names), one.result, one.checked or "", next(names)))
    console.print(table(columns, rows, title="the first step of training, and what follows it"))
    console.print(
        f"\n{outcome.checked:,} values from ciphertexts are those of plain integers; loss "
        f"{outcome.losses[0]:.3f} after the first epoch, {outcome.losses[-1]:.3f} after the last\n"
        f"accuracy on flowers that were held out: {outcome.accuracy:.1%} encrypted, "
        f"{outcome.accuracy_plain:.1%} in the clear ({outcome.seconds:.1f} s)\n"
        "The server learned every sample and every label: keys for 8 units on 4 values determine "
        "a sample, and P - Y with a known P is Y. cloister train bounds what a sample gives away; "
        "with --unblind-to trusted no server learns labels.",
        soft_wrap=True,
    )
