"""`cloister predict` and `cloister answers`: predictions for samples that stay encrypted."""

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cloister import training
from cloister.cli import options
from cloister.cli.console import emit_json, out, stages
from cloister.errors import InputError
from cloister.training.ciphertext_service import RemoteCiphertextServer

if TYPE_CHECKING:
    from cloister.training.predictions import PredictionOptions, Predictions


ModelFolder = Annotated[
    Path, typer.Argument(metavar="MODEL", help="The --out of `cloister train`.")
]
Dataset = Annotated[Path, typer.Argument(metavar="DATA.cloister", help="Encrypted data set.")]
AnswersOut = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Where the answers are written.")
]
Split = Annotated[
    Literal["unlabelled", "test", "train", "all"] | None,
    typer.Option(
        "--split", help="Which samples. Default: unlabelled; with --evaluate the test split."
    ),
]
Evaluate = Annotated[
    bool,
    typer.Option("--evaluate", help="Tell accuracy and loss, by sums over the encrypted labels."),
]
AnswersTo = Annotated[
    Literal["server", "client"],
    typer.Option(
        "--answers-to",
        help="client: seal the file to the data set's clients.",
        rich_help_panel=options.LEARNS,
    ),
]
UnblindTo = Annotated[
    Literal["server", "trusted"] | None,
    typer.Option(
        "--unblind-to",
        help="Who receives the unblinding terms. Default: as the model was trained.",
        rich_help_panel=options.LEARNS,
    ),
]
Consent = Annotated[
    bool,
    typer.Option(
        "--allow-unbounded-leakage",
        help="Predict on a data set of --privacy paper: as published, without budget.",
        rich_help_panel=options.LEARNS,
    ),
]
AnswersFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="The --out of `cloister predict`.")
]
Order = Annotated[
    Path | None,
    typer.Option(
        "--order",
        metavar="FILE.npz",
        help="The --order of `cloister data encrypt`: only its samples, in their own order.",
    ),
]
Table = Annotated[
    Path, typer.Option("--out", metavar="FILE.csv", help="Where the table is written.")
]


@dataclass(frozen=True)
class AnswerOptions:
    """Which samples, who learns what, and how long to wait."""

    split: Split = None
    evaluate: Evaluate = False
    answers_to: AnswersTo = "server"
    unblind_to: UnblindTo = None
    server: options.CiphertextHost = "local"
    access: options.CiphertextHostAccess = None
    allow_unbounded_leakage: Consent = False
    patience: options.ServicePatience = 60.0
    threads: options.ProcessThreads = 1

    def chosen(self) -> "PredictionOptions":
        """These options as a value."""
        return training.PredictionOptions(
            self.unblind_to, self.answers_to, self.evaluate, self.split,
            self.allow_unbounded_leakage, self.patience, self.threads,
        )  # fmt: skip

    def host(self, stack: ExitStack) -> RemoteCiphertextServer | None:
        """The host that computes on the ciphertexts; None: this process.

        Raises   InputError
        """
        if (self.server != "local") != (self.access is not None):
            raise InputError("--server URL and --access FILE go together")
        if self.access is None:
            return None
        host = RemoteCiphertextServer(self.server, access=self.access, retry_for_s=self.patience)
        return stack.enter_context(closing(host))


@options.grouped
def predict(
    model: ModelFolder,
    dataset: Dataset,
    keys: options.AuthorityAccess,
    choices: AnswerOptions,
    out_file: AnswersOut = None,
    json: options.Json = False,
) -> None:
    """Predict for samples that stay encrypted, or evaluate with labels that do."""
    if out_file is None and not choices.evaluate:
        raise InputError("give --out FILE for the answers, or --evaluate, or both")
    with ExitStack() as stack:
        host = choices.host(stack)
        retry_for_s = min(choices.patience, options.RETRY_FOR_S)
        service = stack.enter_context(keys.connect(retry_for_s=retry_for_s))
        update = stack.enter_context(stages())
        made = training.EncryptedModel.open(model).predict(
            dataset, authority=service, options=choices.chosen(), host=host,
            update=lambda done, total: update("samples", done, total),
        )  # fmt: skip
        if out_file is not None:
            sealed = choices.answers_to == "client"
            key = service.answer_key(made.info.name) if sealed else None
            training.write_answers(made, out_file, key=key)
    if json:
        emit_json(_document(made) | {"out": out_file})
    else:
        _show(made, out_file, choices)


@options.grouped
def answers(
    file: AnswersFile,
    table: Table,
    keys: options.OptionalAuthority,
    order: Order = None,
    json: options.Json = False,
) -> None:
    """Write answers as a table, in the names and units of the data set's clients.

    A client's token opens and translates them. Without one, a file that is not sealed is written
    under the secret numbers that the server sees.
    """
    with ExitStack() as stack:
        service = keys.connect()
        if service is not None:
            stack.enter_context(service)
        found = training.open_answers(file, authority=service)
    if order is not None:
        found = found.of_owner(order)
    found.write_csv(table)
    if json:
        described = {"dataset": found.info.name, "samples": len(found.ids), "names": found.names}
        emit_json(described | {"absent": found.absent, "out": table})
        return
    named = "in your own names" if service is not None else "under the secret numbers of the file"
    out().print(f"{len(found.ids):,} answers of data set {found.info.name} in {table}, {named}")
    if found.absent:
        out().print(f"{found.absent:,} samples of {order} have no answer", soft_wrap=True)


def _document(made: "Predictions") -> dict[str, Any]:
    left_out = ("info", "ids", "answers", "claims")
    found = {name: value for name, value in vars(made).items() if name not in left_out}
    return found | {
        "dataset": made.info.name, "samples": len(made.ids), "claims": made.claims.to_dict(),
    }  # fmt: skip


def _show(made: "Predictions", path: Path | None, choices: AnswerOptions) -> None:
    console, tested = out(), made.evaluated
    if path is not None:
        to = "sealed to its clients" if choices.answers_to == "client" else "readable"
        console.print(
            f"{len(made.ids):,} answers for data set {made.info.name} in {path}, {to}; "
            f"next: cloister answers {path} --out predictions.csv",
            soft_wrap=True,
        )
    if tested is not None:
        console.print(
            f"{tested.samples:,} samples: accuracy {100 * tested.accuracy:.2f} % "
            f"(within {100 * tested.accuracy_error:.2f}), loss {tested.loss:.4f} (within "
            f"{tested.loss_error:.4f})"
        )
    console.print(f"\n{made.claims}\n", soft_wrap=True)
    spent = made.spent
    console.print(
        f"authority: {made.requests:,} requests in {made.authority_s:.2f} s; spent per sample: "
        f"rank {spent.rank_max} at most, of {spent.rank_allowed} allowed and {spent.dim} in all",
        soft_wrap=True,
    )
