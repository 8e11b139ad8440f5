"""`cloister authority`: the key authority's process, its tokens and its data sets."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
import typer

from cloister.authority import database, deletion, records, service, tokens
from cloister.authority.account import Spent
from cloister.authority.authority import Authority
from cloister.authority.stored import Stored, read_stored
from cloister.base import files
from cloister.base.identity import PUBLIC_FILE
from cloister.base.rng import SystemRandom
from cloister.base.sealing import SUITE
from cloister.cli import options
from cloister.cli.clinic_verbs import ChosenSamples, show_withdrawn
from cloister.cli.console import emit_json, err, out, table
from cloister.cli.serving import serve_until_interrupted
from cloister.errors import EncryptionError, InputError

app = typer.Typer(
    help="Hold the keys of encrypted data sets and issue keys within their budgets.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The authority's folder.")]
LISTED_SAMPLES = 20


@app.command(epilog="Example: cloister authority init authority")
def init(folder: Folder) -> None:
    """Make an authority: its keys, its certificate, an empty ledger.

    DIR/authority.pub is public: clients encrypt to it, and every connection pins it.
    """
    identity = records.init(folder, rng=SystemRandom())
    console = out()
    console.print(f"{folder / PUBLIC_FILE}  give this file to clients and servers")
    console.print(f"fingerprint {identity.public.fingerprint}  compare it by another channel")
    console.print(f"key encapsulation {SUITE}")
    console.print(
        f"next: cloister authority token {folder} --role client|server|trusted --out FILE.token"
    )
    err().print(
        "note: keep the folder to yourself and never put back an old copy of it: its ledger would "
        "forget releases",
        style="yellow",
    )


@app.command(epilog="Example: cloister authority token authority --role client --out client.token")
def token(
    folder: Folder,
    role: Annotated[
        str | None,
        typer.Option(
            "--role",
            metavar="|".join(tokens.ROLES),
            help="client encrypts, server trains, trusted gets terms the server must not see.",
        ),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", help="Who it is for; needed to revoke it later.")
    ] = "",
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", metavar="NAME", help="The only data set it is for. Default: all."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Write it to a new file that only you can read, for --token @FILE.",
        ),
    ] = None,
    revoke: Annotated[
        str | None,
        typer.Option("--revoke", metavar="NAME", help="Forget all tokens of this name instead."),
    ] = None,
) -> None:
    """Make a bearer token, or revoke some. It is shown or written once; only its hash is kept."""
    path = folder / database.FILE
    if revoke is not None:
        if role is not None or name or dataset is not None or output is not None:
            raise InputError("--revoke NAME stands alone")
        out().print(f"{tokens.revoke(path, revoke)} revoked, at once")
        return
    if role is None:
        raise InputError(f"give --role {'|'.join(tokens.ROLES)}, or --revoke NAME")
    # The file first: a token that cannot be written should not be issued.
    with contextlib.ExitStack() as stack:
        file = None if output is None else stack.enter_context(_token_file(output))
        made = tokens.issue(path, role, name=name, dataset=dataset, rng=SystemRandom())
        if file is None:
            out().print(made, soft_wrap=True)
        else:
            file.write(f"{made}\n".encode())


@contextlib.contextmanager
def _token_file(path: Path) -> Iterator[BinaryIO]:
    try:
        with files.creating(path, private=True) as file:
            yield file
    except FileExistsError:
        raise InputError(f"--out {path}: exists already; choose another file") from None


@app.command(epilog="Example: cloister authority serve authority --listen 0.0.0.0:8443")
def serve(folder: Folder, listen: options.Listen, threads: options.ProcessThreads = 1) -> None:
    """Answer clients, servers and trusted runtimes over HTTPS until interrupted."""
    with Authority(folder, threads=threads) as authority:
        fingerprint = f"fingerprint {authority.identity.public.fingerprint}"
        start = partial(service.serve, folder, authority, listen=listen)
        serve_until_interrupted(start, "authority", fingerprint)


@app.command("list", epilog="Example: cloister authority list authority")
def list_(folder: Folder, json: options.Json = False) -> None:
    """List the data sets: samples, terms and releases; also while the authority serves."""
    found, failed = read_stored(folder)
    listed = [_listed(stored) for stored in found]
    if json:
        emit_json(listed)
    else:
        titles = (
            "data set", "mode", "samples", "withdrawn", "parts", "rank spent", "of",
            "bits spent", "of", "bits a value", "functions", "labels to", "sums", "of",
        )  # fmt: skip
        rows = [tuple("-" if cell is None else cell for cell in row.values()) for row in listed]
        out().print(table(titles, rows) if rows else "no data sets")
    _refuse_failed(failed)


@app.command(epilog="Example: cloister authority delete authority biopsies")
def delete(
    folder: Folder,
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The data set to delete.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it: there is no way back.")] = False,
) -> None:
    """Delete a data set: its keys, its ledger and its tokens. The authority must not be serving.

    Files of the data set cannot be unblinded any more. What servers were given stays with them.
    """
    if not yes:
        found, _ = read_stored(folder, dataset)
        samples = f"{found[0].held.info.samples:,} samples" if found else "samples"
        raise InputError(
            f"data set {dataset}: its {samples} could never be used again; confirm with --yes"
        )
    gone = deletion.delete(folder, dataset)
    out().print(
        f"data set {dataset} deleted: {gone.samples:,} samples in {gone.parts} parts, "
        f"{gone.tokens} tokens"
    )
    err().print(
        "note: backups of the folder still hold the keys, and put back they forget the deletion",
        style="yellow",
    )


@app.command(epilog="Example: cloister authority withdraw authority biopsies --part 3f9a02c1")
@options.grouped
def withdraw(
    folder: Folder,
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The data set's name.")],
    chosen: ChosenSamples,
) -> None:
    """Withdraw samples of any client. The authority must not be serving.

    No key is issued for them any more; the ledger keeps what was given away.
    """
    with Authority(folder) as authority:
        ids = chosen.spans(authority.parts(dataset))
        fresh = authority.withdraw(dataset, ids, token_id=None)
        summary = authority.summary(dataset)
    show_withdrawn(dataset, fresh, summary.samples - summary.withdrawn)


@app.command(epilog="Example: cloister authority budget authority biopsies --samples")
def budget(
    folder: Folder,
    dataset: Annotated[
        str | None, typer.Argument(metavar="[DATASET]", help="One data set. Default: all.")
    ] = None,
    samples: Annotated[
        bool, typer.Option("--samples", help="List single samples, the most exposed first.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Show the releases to servers, as committed; also while the authority serves."""
    found, failed = read_stored(folder, dataset)
    if json:
        emit_json(
            [
                asdict(stored.summary) | ({"by_sample": asdict(stored.spent)} if samples else {})
                for stored in found
            ]
        )
    else:
        _show([stored.summary for stored in found])
        for stored in found if samples else ():
            _show_samples(stored.summary, stored.spent)
    _refuse_failed(failed)


def _listed(stored: Stored) -> dict[str, object]:
    summary, terms, limits = stored.summary, stored.held.terms, stored.account.limits
    return {
        "name": summary.name,
        "mode": summary.mode,
        "samples": summary.samples,
        "withdrawn": summary.withdrawn,
        "parts": len(stored.held.parts),
        "rank_max": summary.rank_max,
        "rank_allowed": summary.rank_allowed,
        "bits_max": summary.bits_max,
        "bits_allowed": summary.bits_allowed,
        "value_bits": limits.value_bits,
        "functions": "one" if limits.one_function else "many",
        "labels_to": "server" if terms.labels_to_server else "trusted",
        "evaluations": summary.evaluations,
        "evaluations_allowed": summary.evaluations_allowed,
    }


def _refuse_failed(failed: dict[str, str]) -> None:
    """End with an error after the other data sets are shown.

    Raises   EncryptionError
    """
    if failed:
        each = (f"data set {name}: cannot be read ({why})" for name, why in failed.items())
        raise EncryptionError("; ".join(each))


def _show(summaries: list[records.Summary]) -> None:
    columns = (
        "data set", "mode", "samples", "withdrawn", "dim", "rank allowed", "spent min", "median",
        "max", "bits", "labels", "sums", "requests", "refused", "trusted",
    )  # fmt: skip
    rows = [
        (
            s.name, s.mode, s.samples, s.withdrawn, s.dim, s.rank_allowed, s.rank_min,
            s.rank_median, s.rank_max, s.bits_max, s.labels_released, s.evaluations,
            s.counts["requests"],
            s.counts["refusals"], s.counts["trusted"],
        )
        for s in summaries
    ]  # fmt: skip
    console = out()
    console.print(table(columns, rows) if rows else "no data sets")
    console.print(
        "rank: independent functions of one sample given to the server, at most (rank = dim: the "
        "sample itself); bits: largest total size of their values; sums: over the labels of many "
        "samples",
        style="dim",
    )


def _show_samples(summary: records.Summary, spent: Spent) -> None:
    order = np.argsort(-spent.rank, kind="stable")[:LISTED_SAMPLES].tolist()
    rows = [
        (
            i, int(spent.rank[i]), int(spent.bits[i]), int(spent.operand[i]),
            bool(spent.labels[i]),
        )
        for i in order
    ]  # fmt: skip
    title = f"{summary.name}: {len(rows)} of {summary.samples} samples"
    columns = ("sample", "rank spent", "bits", "largest weight", "label given")
    out().print(table(columns, rows, title=title))
