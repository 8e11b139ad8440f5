"""`cloister train`: train a model on an encrypted data set."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import typer

from cloister.authority.client import AuthorityClient
from cloister.base.rng import SystemRandom
from cloister.cli import options
from cloister.cli.console import emit_json, err, out, progress, table
from cloister.cli.encrypt import (
    AuthorityKey,
    AuthorityUrl,
    Token,
    absence,
    read_token,
    registered,
)
from cloister.data.dataset import EncryptedDataset
from cloister.data.writer import check_registered
from cloister.errors import AuthorityUnavailable, EncryptionError, InputError
from cloister.wire.request_log import ReleaseLog

WHO_LEARNS_WHAT = "Who learns what"
NOISE = "Noise on gradients"
RETRY_FOR_S = 5.0
"""On one connection; beyond, the trainer waits, and keeps a checkpoint when it gives up."""
MODULES = ("trainer", "models", "claims", "curve", "noise", "remote")


def library() -> SimpleNamespace:
    """The modules of cloister.training that need PyTorch.

    Raises   InputError without it
    """
    try:
        importlib.import_module("torch")
    except ImportError as error:
        raise InputError("training needs PyTorch: pip install 'cloister[train]'") from error
    return SimpleNamespace(
        torch=importlib.import_module("torch"),
        **{name: importlib.import_module(f"cloister.training.{name}") for name in MODULES},
    )


def train(
    dataset: Annotated[Path, typer.Argument(metavar="DATA.cloister", help="Encrypted data set.")],
    authority: AuthorityUrl,
    authority_key: AuthorityKey,
    token: Token,
    model: Annotated[
        str, typer.Option("--model", metavar="lenet5|mlp|FILE.py", help="What to train.")
    ] = "mlp",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the data.")] = 5,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples per step.")] = 64,
    optimizer: Annotated[
        Literal["adam", "sgd"], typer.Option("--optimizer", help="sgd has momentum 0.9.")
    ] = "adam",
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", min=0, help="Default: 0.001 for adam, 0.05 for sgd."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of weights and order.")] = 0,
    first_layer: Annotated[
        Literal["frozen", "trainable"] | None,
        typer.Option(
            "--first-layer",
            help="Default: frozen where the server unmasks, else trainable.",
            rich_help_panel=WHO_LEARNS_WHAT,
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            min=1,
            help="Functions of a sample the frozen layer uses. Default: the budget.",
            rich_help_panel=WHO_LEARNS_WHAT,
        ),
    ] = None,
    unmask_to: Annotated[
        Literal["server", "trusted"],
        typer.Option(
            "--unmask-to",
            help="Who receives the unmasking terms: trusted needs such a token.",
            rich_help_panel=WHO_LEARNS_WHAT,
        ),
    ] = "server",
    server: Annotated[
        str,
        typer.Option(
            "--server",
            metavar="local|URL",
            help="With --unmask-to trusted: who computes on the ciphertexts.",
            rich_help_panel=WHO_LEARNS_WHAT,
        ),
    ] = "local",
    server_key: Annotated[
        Path | None,
        typer.Option(
            "--server-key",
            metavar="FILE",
            help="The ciphertext server's public file.",
            rich_help_panel=WHO_LEARNS_WHAT,
        ),
    ] = None,
    offload_gradients: Annotated[
        bool,
        typer.Option(
            "--offload-gradients",
            help="Let that server see each sample's output gradient as well.",
            rich_help_panel=WHO_LEARNS_WHAT,
        ),
    ] = False,
    mode: Annotated[
        Literal["guarded", "paper"],
        typer.Option(
            "--mode", help="paper: as published, without budget.", rich_help_panel=WHO_LEARNS_WHAT
        ),
    ] = "guarded",
    allow_unbounded_leakage: Annotated[
        bool,
        typer.Option(
            "--allow-unbounded-leakage",
            help="Required by --mode paper.",
            rich_help_panel=WHO_LEARNS_WHAT,
        ),
    ] = False,
    noise_sigma: Annotated[
        float | None,
        typer.Option(
            "--noise-sigma", help="Deviation, as a multiple of the clip.", rich_help_panel=NOISE
        ),
    ] = None,
    noise_clip: Annotated[
        float,
        typer.Option(
            "--noise-clip", help="Largest norm of a sample's gradient.", rich_help_panel=NOISE
        ),
    ] = 1.0,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", metavar="FOLDER", help="Where to keep the run; resumes it."),
    ] = None,
    checkpoint_every: Annotated[
        int,
        typer.Option("--checkpoint-every", min=1, help="Steps; also after every epoch."),
    ] = 200,
    curve: Annotated[
        Path | None,
        typer.Option("--curve", metavar="FILE", help="Learning curve, .svg or .png."),
    ] = None,
    release_log: Annotated[
        Path | None,
        typer.Option(
            "--release-log", metavar="FILE", help="Keep what the server learns, for cloister audit."
        ),
    ] = None,
    request_log: Annotated[
        Path | None,
        typer.Option(
            "--request-log",
            metavar="FILE",
            help="Keep what the authority is asked, for cloister audit.",
        ),
    ] = None,
    patience: Annotated[
        float,
        typer.Option(
            "--patience", min=0, help="Seconds to wait for an authority or server that is away."
        ),
    ] = 60.0,
    threads: options.Threads = 1,
    as_json: options.Json = False,
) -> None:
    """Train on samples that stay encrypted."""
    modules = library()
    if first_layer is None:
        first_layer = "frozen" if unmask_to == "server" and mode == "guarded" else "trainable"
    noise = None
    if noise_sigma is not None:
        noise = modules.noise.GaussianNoise(noise_sigma, "gradients", clip=noise_clip)
    if curve is not None and curve.suffix.lower() not in (".svg", ".png"):
        raise InputError(f"{curve}: the curve is written as .svg or .png")
    if server != "local" and (unmask_to != "trusted" or server_key is None):
        raise InputError("--server URL needs --server-key FILE and --unmask-to trusted")
    with ExitStack() as stack:
        opened = EncryptedDataset.open(dataset)
        keys: AuthorityClient = stack.enter_context(
            closing(
                AuthorityClient(
                    authority,
                    public=authority_key,
                    token=read_token(token),
                    retry_for_s=min(patience, RETRY_FOR_S),
                )
            )
        )
        check_origin(opened, keys)
        remote = None
        if server_key is not None:
            remote = stack.enter_context(
                closing(
                    modules.remote.RemoteCiphertextServer(
                        server, public=server_key, retry_for_s=patience
                    )
                )
            )
        log, requests = (
            None if path is None else stack.enter_context(closing(ReleaseLog(path)))
            for path in (release_log, request_log)
        )
        modules.torch.manual_seed(seed)
        trainer = modules.trainer.Trainer(
            modules.models.build(model, opened.shape, classes=opened.classes),
            opened,
            keys=keys,
            rng=SystemRandom(),
            first_layer=first_layer,
            unmask_to=unmask_to,
            mode=mode,
            allow_unbounded_leakage=allow_unbounded_leakage,
            noise=noise,
            server=remote,
            optimizer=_optimizer(modules.torch, optimizer, learning_rate),
            checkpoint_dir=checkpoint,
            release_log=log,
            request_log=requests,
            offload_gradients=offload_gradients,
            batch=batch,
            seed=seed,
            rank=rank,
            checkpoint_every=checkpoint_every,
            patience_s=patience,
            threads=threads,
        )
        with _kept(checkpoint):
            with progress("samples") as update:
                trainer.prepare(update)
            with progress("steps") as update:
                history = trainer.fit(epochs, update=update)
        found = outcome(modules, trainer, history, model=model)
        found["spent"] = spent(keys, opened.name)
    if curve is not None:
        modules.curve.write_curve(history, curve, title=f"{model} on {opened.name}, encrypted")
    if as_json:
        emit_json({**found, "curve": curve})
    else:
        show(found)


def check_origin(dataset: EncryptedDataset, keys: AuthorityClient) -> None:
    """Refuse a file of another authority, or with parts that this one has not registered so.

    Raises   EncryptionError naming file and part, before any key is asked for
    """
    if dataset.authority_fingerprint != keys.fingerprint:
        raise EncryptionError(
            f"{dataset.path}: belongs to authority {dataset.authority_fingerprint[:16]}, not "
            f"{keys.fingerprint[:16]}; give that one's --authority and --authority-key"
        )
    absent = check_registered(dataset, registered(keys, dataset.name))
    if absent:
        err().print(absence(dataset.path, absent), soft_wrap=True)


@contextmanager
def _kept(checkpoint: Path | None) -> Iterator[None]:
    """Say what is left of a run whose authority stays away."""
    try:
        yield
    except AuthorityUnavailable as error:
        left = "nothing of the run is kept: name a --checkpoint FOLDER"
        if checkpoint is not None:
            left = f"the run is kept in {checkpoint}: the same command goes on with it"
        raise AuthorityUnavailable(f"{error}; {left}") from None


def _optimizer(torch: Any, name: str, rate: float | None) -> Callable[[Any], Any]:  # noqa: ANN401
    if name == "sgd":
        return lambda parameters: torch.optim.SGD(parameters, lr=rate or 0.05, momentum=0.9)
    return lambda parameters: torch.optim.Adam(parameters, lr=rate or 1e-3)


def outcome(
    modules: SimpleNamespace,
    trainer: Any,  # noqa: ANN401  (its module may be absent)
    history: Sequence[Any],
    *,
    model: str,
) -> dict[str, Any]:
    """Everything a run found out, as plain values."""
    settings, counters = trainer.settings, trainer.products.counters
    return {
        "dataset": trainer.info.name,
        "model": model,
        "first_layer": settings.first_layer,
        "unmask_to": settings.unmask_to,
        "mode": settings.mode,
        "rank": trainer.projection.rank if trainer.projection else None,
        "dim": trainer.info.dim,
        "epochs": [asdict(result) for result in history],
        "test_accuracy": history[-1].test_accuracy if history else None,
        "authority_requests": counters.requests,
        "authority_s": counters.authority_s,
        "server_s": counters.server_s,
        "claims": [asdict(c) for c in modules.claims.claims(trainer, epochs=len(history))],
    }


def spent(keys: Any, dataset: str) -> dict[str, Any] | None:  # noqa: ANN401
    """The data set's budget, where the authority tells this caller.

    A frozen run needs no authority any more at its end, and must not be lost for want of one.
    """
    summary = getattr(keys, "summary", None)
    try:
        return None if summary is None else asdict(summary(dataset))
    except AuthorityUnavailable as error:
        err().print(f"note: what is spent is not shown: {error}", soft_wrap=True)
        return None


def show_claims(claims: Sequence[dict[str, Any]]) -> None:
    """Print who could learn what, party by party."""
    console = out()
    console.print("what each party could learn")
    for party, told in groupby(claims, key=itemgetter("party")):
        console.print(f"  {party}", soft_wrap=True)
        for claim in told:
            line = f"    {claim['about']:<22}{claim['severity']:<12}{claim['learns']}"
            assumes = f" (assuming: {claim['assumes']})" if claim["assumes"] else ""
            console.print(line + assumes, soft_wrap=True)
    console.print()


def show(found: dict[str, Any]) -> None:
    """Print a run for people."""
    console = out()
    columns = ("epoch", "loss", "training", "encrypted test", "seconds")
    rows = [tuple(result.values()) for result in found["epochs"]]
    console.print(table(columns, rows))
    console.print()
    show_claims(found["claims"])
    console.print(
        f"authority: {found['authority_requests']:,} requests in {found['authority_s']:.2f} s; "
        f"products on ciphertexts: {found['server_s']:.2f} s"
    )
    budget = found["spent"]
    if budget is not None:
        console.print(
            f"spent per sample: rank {budget['rank_max']} at most, of {budget['rank_allowed']} "
            f"allowed and {budget['dim']} in all; at most {budget['bits_max']:,} bits"
        )
    if found["mode"] == "paper":
        err().print("mode paper: nothing bounds what the server learns", soft_wrap=True)
