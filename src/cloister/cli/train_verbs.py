"""`cloister train`: train a model on an encrypted data set."""

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cloister import training
from cloister.cli import options
from cloister.cli.console import emit_json, err, note, out, stages, table
from cloister.errors import InputError
from cloister.training.ciphertext_service import RemoteCiphertextServer

if TYPE_CHECKING:
    from cloister.training.callbacks import Callback
    from cloister.training.settings import Settings
    from cloister.training.training_run import RunFiles, TrainingOutcome

NOISE = "Noise on gradients"

Dataset = Annotated[Path, typer.Argument(metavar="DATA.cloister", help="Encrypted data set.")]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME|FILE.py",
        help="lenet5, mlp, logistic, lenet5-sigmoid, mlp-sigmoid, or your own.",
    ),
]
Epochs = Annotated[int, typer.Option("--epochs", min=1, help="Passes over the data.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Samples per step.")]
Optimizer = Annotated[
    Literal["adam", "sgd"] | None,
    typer.Option("--optimizer", help="sgd has momentum 0.9. Default: adam."),
]
Loss = Annotated[
    Literal["cross-entropy", "binary-cross-entropy", "mse", "l1"] | None,
    typer.Option(
        "--loss",
        help="Default: cross-entropy, of labels binary-cross-entropy, of numbers mse. mse of "
        "classes and labels: squared errors of sigmoid outputs.",
    ),
]
Weights = Annotated[
    Literal["balanced"] | None,
    typer.Option("--class-weights", help="balanced: rare classes weigh more."),
]
LearningRate = Annotated[
    float | None,
    typer.Option("--learning-rate", min=0, help="Default: 0.001 for adam, 0.05 for sgd."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of weights and order.")]
FirstLayerKind = Annotated[
    Literal["frozen", "trainable"] | None,
    typer.Option(
        "--first-layer",
        help="Default: frozen where the server unblinds, else trainable.",
        rich_help_panel=options.LEARNS,
    ),
]
Rank = Annotated[
    int | None,
    typer.Option(
        "--rank",
        min=1,
        help="Functions of a sample the frozen layer uses. Default: the budget.",
        rich_help_panel=options.LEARNS,
    ),
]
UnblindTo = Annotated[
    Literal["server", "trusted"],
    typer.Option(
        "--unblind-to",
        help="Who receives the unblinding terms: trusted needs such a token.",
        rich_help_panel=options.LEARNS,
    ),
]
OffloadGradients = Annotated[
    bool,
    typer.Option(
        "--offload-gradients",
        help="Let that host see each sample's output gradient as well.",
        rich_help_panel=options.LEARNS,
    ),
]
Consent = Annotated[
    bool,
    typer.Option(
        "--allow-unbounded-leakage",
        help="Train on a data set of --privacy paper: as published, without budget.",
        rich_help_panel=options.LEARNS,
    ),
]
NoiseSigma = Annotated[
    float | None,
    typer.Option(
        "--noise-sigma", help="Deviation, as a multiple of the clip.", rich_help_panel=NOISE
    ),
]
NoiseClip = Annotated[
    float | None,
    typer.Option(
        "--noise-clip",
        help="Largest norm of a sample's gradient. Default: 1.",
        rich_help_panel=NOISE,
    ),
]
ModelFolder = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FOLDER", help="Where to keep the model, to predict with it and export it."
    ),
]
StopEarly = Annotated[
    int | None,
    typer.Option(
        "--early-stopping",
        metavar="EPOCHS",
        min=1,
        help="End when accuracy or R2 on the encrypted test samples has not improved for so many, "
        "with the model of the best epoch.",
    ),
]
CheckpointFolder = Annotated[
    Path | None,
    typer.Option("--checkpoint", metavar="FOLDER", help="Where to keep the run; resumes it."),
]
CheckpointEvery = Annotated[
    int, typer.Option("--checkpoint-every", min=1, help="Steps; also after every epoch.")
]
Curve = Annotated[
    Path | None, typer.Option("--curve", metavar="FILE", help="Learning curve, .svg or .png.")
]
RunPage = Annotated[
    Path | None,
    typer.Option(
        "--page", metavar="FILE.html", help="Curves, budget and what every party could learn."
    ),
]
ServerLog = Annotated[
    Path | None,
    typer.Option(
        "--release-log",
        metavar="FILE",
        help="Keep the values that the server learns, for cloister audit.",
    ),
]
AuthorityLog = Annotated[
    Path | None,
    typer.Option(
        "--request-log",
        metavar="FILE",
        help="Keep the requests to the authority, for cloister audit.",
    ),
]


@dataclass(frozen=True)
class RunOptions:
    """The training, and the files that are kept."""

    batch: Batch = 64
    loss: Loss = None
    class_weights: Weights = None
    optimizer: Optimizer = None
    learning_rate: LearningRate = None
    seed: Seed = 0
    early_stopping: StopEarly = None
    out_folder: ModelFolder = None
    checkpoint: CheckpointFolder = None
    checkpoint_every: CheckpointEvery = 200
    curve: Curve = None
    page: RunPage = None
    release_log: ServerLog = None
    request_log: AuthorityLog = None
    patience: options.ServicePatience = 60.0
    threads: options.ProcessThreads = 1

    def callbacks(self) -> "list[Callback]":
        """What is called after each epoch."""
        wait = self.early_stopping
        return [] if wait is None else [training.EarlyStopping(wait)]

    def kept(self) -> "RunFiles":
        """The files of the run."""
        return training.RunFiles(
            self.out_folder,
            self.checkpoint,
            self.curve,
            self.page,
            self.release_log,
            self.request_log,
        )


@dataclass(frozen=True)
class DisclosureOptions:
    """Who learns what."""

    first_layer: FirstLayerKind = None
    rank: Rank = None
    unblind_to: UnblindTo = "server"
    server: options.CiphertextHost = "local"
    access: options.CiphertextHostAccess = None
    offload_gradients: OffloadGradients = False
    allow_unbounded_leakage: Consent = False
    noise_sigma: NoiseSigma = None
    noise_clip: NoiseClip = None

    def settings(self, run: RunOptions) -> "Settings":
        """These options and those of the run, as values."""
        noise = None
        if self.noise_sigma is not None:
            clip = 1.0 if self.noise_clip is None else self.noise_clip
            noise = training.GaussianNoise(self.noise_sigma, "gradients", clip=clip)
        elif self.noise_clip is not None:
            raise InputError("--noise-clip: adds no noise by itself; give --noise-sigma too")
        return training.Settings(
            self.first_layer, self.unblind_to, self.allow_unbounded_leakage, noise,
            self.offload_gradients, batch=run.batch, loss=run.loss,
            class_weights=run.class_weights, optimizer=run.optimizer,
            learning_rate=run.learning_rate, seed=run.seed, rank=self.rank,
            checkpoint_every=run.checkpoint_every, patience_s=run.patience, threads=run.threads,
        )  # fmt: skip

    def host(self, patience: float, stack: ExitStack) -> RemoteCiphertextServer | None:
        """The host that computes on the ciphertexts; None: this process.

        Raises   InputError
        """
        if self.server != "local" and (self.unblind_to != "trusted" or self.access is None):
            raise InputError("--server URL needs --access FILE and --unblind-to trusted")
        if self.access is None:
            return None
        host = RemoteCiphertextServer(self.server, access=self.access, retry_for_s=patience)
        return stack.enter_context(closing(host))


@options.grouped
def train(
    dataset: Dataset,
    keys: options.AuthorityAccess,
    run: RunOptions,
    disclosure: DisclosureOptions,
    model: Model = "mlp",
    epochs: Epochs = 5,
    json: options.Json = False,
) -> None:
    """Train on samples that stay encrypted, and keep the model for predict and export."""
    settings = disclosure.settings(run)
    with ExitStack() as stack:
        host = disclosure.host(run.patience, stack)
        retry_for_s = min(run.patience, options.RETRY_FOR_S)
        service = stack.enter_context(keys.connect(retry_for_s=retry_for_s))
        outcome = training.train(
            dataset, authority=service, model=model, epochs=epochs, settings=settings, host=host,
            callbacks=run.callbacks(),
            keep=run.kept(), note=note, update=stack.enter_context(stages()),
        )  # fmt: skip
    if json:
        emit_json(_document(outcome) | {"curve": run.curve, "out": run.out_folder})
        return
    _show(outcome)
    if run.out_folder is None:
        note(_unkept(run.checkpoint))
    else:
        out().print(f"model kept in {run.out_folder}", soft_wrap=True)


def _unkept(checkpoint: Path | None) -> str:
    if checkpoint is None:
        return "the model was not kept: the same command with --out FOLDER trains and keeps it"
    return (
        f"{checkpoint} keeps the run, and no model for use: the same command with --out FOLDER "
        "makes that from it"
    )


def _document(outcome: "TrainingOutcome") -> dict[str, Any]:
    found = {k: v for k, v in vars(outcome).items() if k not in ("trained", "kept", "settings")}
    settings = outcome.settings
    return found | {
        "first_layer": settings.first_layer,
        "unblind_to": settings.unblind_to,
        "mode": settings.mode,
        "claims": outcome.claims.to_dict(),
        "test_accuracy": outcome.test_accuracy,
        "test_fit": outcome.test_fit,
    }


def _show(outcome: "TrainingOutcome") -> None:
    console = out()
    figure = "R2" if outcome.has_numbers else "accuracy"
    columns = ("epoch", "loss", f"training {figure}", f"encrypted test {figure}", "seconds")
    rows = [(o.epoch, o.loss, o.train_quality, o.test_quality, o.seconds) for o in outcome.epochs]
    console.print(table(columns, rows))
    if outcome.model_epoch < len(outcome.epochs):
        console.print(f"the model is that of epoch {outcome.model_epoch}, the best")
    if outcome.test_fit is not None:
        errors = ", ".join(f"{error:.4g}" for error in outcome.test_fit.rmse)
        console.print(
            f"encrypted test: root of the mean squared error, in halves of the ranges: {errors}",
            soft_wrap=True,
        )
    console.print()
    console.print(f"{outcome.claims}\n", soft_wrap=True)
    console.print(
        f"authority: {outcome.authority_requests:,} requests in {outcome.authority_s:.2f} s; "
        f"products on ciphertexts: {outcome.server_s:.2f} s"
    )
    spent = outcome.spent
    if spent is not None:
        console.print(
            f"spent per sample: rank {spent.rank_max} at most, of {spent.rank_allowed} "
            f"allowed and {spent.dim} in all; at most {spent.bits_max:,} bits"
        )
    if outcome.settings.mode == "paper":
        err().print("mode paper: no bound on the values that the server learns", soft_wrap=True)
