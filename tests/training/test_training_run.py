"""`cloister.training.train`: a run from Python, with an authority that is served."""

import contextlib
import html
import re
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import cloister
from cloister.authority import service, tokens
from cloister.authority.authority import Authority
from cloister.authority.database import FILE
from cloister.authority.local import LocalClient
from cloister.base.identity import PUBLIC_FILE
from cloister.base.rng import SystemRandom
from cloister.data.dataset import EncryptedDataset
from cloister.data.id_spans import IdSpans
from cloister.errors import BudgetError, EncryptionError, InputError
from cloister.plan.claims import Extent, Role
from cloister.training import (
    ArraySource,
    EncryptedModel,
    NewDataset,
    Privacy,
    RunFiles,
    Settings,
    encrypt,
    train,
)
from cloister.training.models import mlp
from cloister.training.trainer import Trainer
from training.doubles import blobs

RUN = Settings(batch=16, seed=3)


class Served:
    """An authority at a URL, with a data set."""

    def __init__(self, folder, **options):
        self.folder, self.path = folder, folder / "set.cloister"
        self.authority = Authority.create(folder / "authority", rng=SystemRandom())
        self.server = service.serve(folder / "authority", self.authority, listen="127.0.0.1:0")
        self.x, self.y, _ = blobs(120)
        self.encrypt(**options)

    def encrypt(self, path=None, **options):
        return encrypt(
            ArraySource(self.x, self.y), path or self.path, authority=LocalClient(self.authority),
            new=NewDataset(value_range=(-1.0, 1.0)), test_fraction=0.25, **options,
        )  # fmt: skip

    def connect(self, role="server"):
        token = tokens.issue(self.folder / "authority" / FILE, role, name="", rng=SystemRandom())
        pin = self.folder / "authority" / PUBLIC_FILE
        return cloister.authority.connect(self.server.url, pin=pin, token=token)

    def close(self):
        self.server.close()
        self.authority.close()


@pytest.fixture
def served(tmp_path):
    with contextlib.closing(Served(tmp_path)) as made:
        yield made


def losses(outcome):
    return [result.loss for result in outcome.epochs]


def test_a_run_says_what_it_found_out(served, tmp_path):
    seen, curve = [], tmp_path / "curve.svg"
    with served.connect() as keys:
        found = train(
            served.path, authority=keys, epochs=2, settings=RUN, keep=RunFiles(curve=curve),
            update=lambda what, done, total: seen.append((what, done == total)),
        )  # fmt: skip
    assert (found.dataset, found.model, found.settings.first_layer) == ("set", "mlp", "frozen")
    assert (found.rank, found.dim, found.spent.rank_max) == (7, 30, 7)
    assert found.test_accuracy == found.epochs[-1].test_accuracy
    assert len(found.epochs) == 2
    assert found.remarks == ()
    assert {stage for stage, _ in seen} == {"samples", "steps"}
    assert seen[-1] == ("steps", True)
    assert "mlp on set, encrypted" in curve.read_text()
    assert found.claims.worst(Role.SERVER) == Extent.EVERYTHING  # its labels
    assert found.claims.worst(Role.AUTHORITY) != Extent.EVERYTHING
    assert not any(p.isnan().any() for p in found.trained.parameters())


def test_the_same_seed_gives_the_bits_of_the_trainer(served):
    """The model by its name, the model itself, and a `Trainer` without the run around it."""
    opened = EncryptedDataset.open(served.path)
    with served.connect() as keys:
        named = train(served.path, authority=keys, epochs=2, settings=RUN)
        torch.manual_seed(RUN.seed)
        model = mlp(opened.shape, opened.classes)
        given = train(opened, authority=keys, model=model, epochs=2, settings=RUN)
    local = train(served.path, authority=LocalClient(served.authority), epochs=2, settings=RUN)
    torch.manual_seed(RUN.seed)
    trainer = Trainer(
        mlp(opened.shape, opened.classes), opened, keys=served.authority, rng=SystemRandom(),
        settings=RUN,
    )  # fmt: skip
    assert losses(named) == losses(given) == losses(local) == [one.loss for one in trainer.fit(2)]
    assert given.model == "Sequential"
    for one, other in zip(named.trained.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_who_learns_what_is_asked_for(served):
    trusted = replace(RUN, first_layer=None, unblind_to="trusted")
    with served.connect("trusted") as keys:
        found = train(served.path, authority=keys, epochs=2, settings=trusted)
        assert (found.settings.first_layer, found.rank, found.spent.rank_max) == (
            "trainable",
            None,
            0,
        )
        with pytest.raises(InputError, match="registered in mode 'budgeted'"):
            train(served.path, authority=keys, settings=Settings(allow_unbounded_leakage=True))
    with served.connect() as keys, pytest.raises(BudgetError, match="allowed are 7"):
        train(served.path, authority=keys, settings=Settings(first_layer="trainable"))


def test_paper_trains_where_both_have_agreed(tmp_path):
    consent = Privacy("paper", allow_unbounded_leakage=True)
    with contextlib.closing(Served(tmp_path, privacy=consent)) as served, served.connect() as keys:
        with pytest.raises(InputError, match="registered in mode 'paper'"):
            train(served.path, authority=keys, epochs=2, settings=RUN)
        agreed = Settings(allow_unbounded_leakage=True, batch=16)
        found = train(served.path, authority=keys, epochs=1, settings=agreed).settings
        assert (found.mode, found.first_layer) == ("paper", "trainable")


def test_a_file_is_compared_with_the_authority_before_any_key(served, tmp_path):
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    with (
        contextlib.closing(Served(stranger)) as other,
        other.connect() as keys,
        pytest.raises(EncryptionError, match="give that one's --authority and --pin"),
    ):
        train(served.path, authority=keys, epochs=2, settings=RUN)
    before = tmp_path / "before.cloister"
    shutil.copy(served.path, before)
    served.encrypt(again=True)
    noted = []
    with served.connect() as keys:
        found = train(before, authority=keys, epochs=2, settings=RUN, note=noted.append)
    assert "120 registered samples are not in" in noted[0]
    assert found.remarks == tuple(noted)


def test_a_curve_of_another_kind_is_refused_before_the_run(served):
    with served.connect() as keys, pytest.raises(InputError, match=r"\.svg or \.png"):
        train(
            served.path, authority=keys, epochs=2, settings=RUN,
            keep=RunFiles(curve=served.folder / "curve.gif"),
        )  # fmt: skip
    assert served.authority.summary("set").counts["requests"] == 0


def cells(page):
    return [html.unescape(cell) for cell in re.findall(r"<td[^>]*>([^<]*)</td>", page)]


def test_a_page_shows_curves_budget_and_what_the_server_could_learn(served, tmp_path):
    path = tmp_path / "run.html"
    with served.connect() as keys:
        found = train(served.path, authority=keys, epochs=3, settings=RUN, keep=RunFiles(page=path))
    page = path.read_text()
    assert page.count("<circle") == 3 * 3  # losses, and two lines of accuracies
    for axis in ("epoch", "loss", "accuracy"):
        assert f">{axis}</text>" in page
    shown = cells(page)
    spent = shown.index("independent functions")
    assert shown[spent : spent + 4] == ["independent functions", "7", "7", "30"]
    for one in found.claims.statements:
        assert one.text in shown
        if one.role is Role.SERVER:
            assert f"of {html.escape(one.about)}: {one.extent}" in page
    assert '<p class="bad">It learns, of labels: everything' in page
    assert found.spent.labels_released == found.spent.samples
    count = f"{found.spent.samples:,}"
    assert f"all runs so far: of {count} of {count} samples the labels, under secret" in page
    assert "http" not in page
    assert "<script" not in page


def test_a_page_says_where_there_is_no_server_and_where_there_is_no_bound(served, tmp_path):
    trusted = replace(RUN, first_layer=None, unblind_to="trusted")
    path = tmp_path / "run.html"
    with served.connect("trusted") as keys:
        train(served.path, authority=keys, epochs=1, settings=trusted, keep=RunFiles(page=path))
    page = path.read_text()
    assert "There is none: this process was a trusted runtime" in page
    assert "what servers were given by all runs so far: of 0 of" in page


def test_a_page_that_cannot_be_written_is_refused_before_the_run(served):
    path = served.folder / "absent" / "run.html"
    with served.connect() as keys, pytest.raises(InputError, match="there is no folder"):
        train(served.path, authority=keys, epochs=2, settings=RUN, keep=RunFiles(page=path))
    assert served.authority.summary("set").counts["requests"] == 0


def test_a_run_goes_on_from_its_checkpoint(served, tmp_path):
    kept = RunFiles(checkpoint=tmp_path / "run")
    with served.connect() as keys:
        whole = train(served.path, authority=keys, epochs=2, settings=RUN)
        train(served.path, authority=keys, epochs=1, settings=RUN, keep=kept)
        resumed = train(served.path, authority=keys, epochs=2, settings=RUN, keep=kept)
    assert losses(resumed) == losses(whole)


def test_the_model_of_a_run_is_kept(served, tmp_path):
    folder = tmp_path / "model"
    with served.connect() as keys:
        found = train(
            served.path, authority=keys, epochs=2, settings=RUN, keep=RunFiles(model=folder)
        )
        # The same run again has its place; only another one is refused.
        train(served.path, authority=keys, epochs=3, settings=RUN, keep=RunFiles(model=folder))
    opened = EncryptedModel.open(folder)
    assert len(found.kept.history) == 2
    assert [epoch["epoch"] for epoch in opened.history] == [1, 2, 3]
    assert opened.claims == found.claims
    assert (opened.name, opened.identity) == ("mlp", EncryptedDataset.open(served.path).identity)
    assert opened.authority == found.kept.authority == keys.fingerprint


def requests(served):
    return served.authority.summary("set").counts["requests"]


def test_what_cannot_be_kept_is_refused_before_the_first_key(served, tmp_path):
    (tmp_path / "file").touch()
    with served.connect() as keys:
        run = partial(train, served.path, authority=keys, epochs=1)
        run(settings=RUN, keep=RunFiles(model=tmp_path / "model"))
        asked = requests(served)
        other = replace(RUN, seed=4)
        for model, settings, folder, told in (
            ("mlp", other, "model", "holds the model of another run, mlp on set"),
            ("mlp", other, "file", "the model cannot be kept there"),
            (nn.Sequential(nn.Flatten(), nn.Linear(30, 3), Unwritable()), other, "new", "export"),
        ):
            with pytest.raises(InputError, match=told):
                run(model=model, settings=settings, keep=RunFiles(model=tmp_path / folder))
    assert requests(served) == asked


class Unwritable(nn.Module):
    """ONNX has no operator for it."""

    def forward(self, x):
        return torch.linalg.eigvalsh(x.unsqueeze(2) @ x.unsqueeze(1))


class Stops:
    """An authority that refuses after some requests."""

    def __init__(self, of, *, after):
        self._of, self._left = of, after

    def __getattr__(self, name):
        return getattr(self._of, name)

    def ask(self, request, receiver):
        self._left -= 1
        if self._left < 0:
            raise BudgetError("sample 0: its budget is spent")
        return self._of.ask(request, receiver)


@pytest.mark.parametrize(("after", "kept"), [(9, True), (1, False)])
def test_the_model_of_a_run_that_stops_is_kept_once_it_has_begun(served, tmp_path, after, kept):
    path, folder = served.folder / "open.cloister", tmp_path / "model"
    consent = {"allow_unbounded_leakage": True}
    served.encrypt(path, privacy=Privacy("paper", **consent))
    keys = Stops(LocalClient(served.authority), after=after)
    settings = replace(RUN, first_layer="trainable", **consent)
    with pytest.raises(BudgetError, match="its budget is spent") as told:
        train(path, authority=keys, settings=settings, keep=RunFiles(model=folder))
    assert ("the model as it is by now is kept in" in str(told.value)) is kept
    assert (folder / "model.json").exists() is kept
    if kept:
        assert EncryptedModel.open(folder).history == ()


def ids_of(dataset):
    return set(EncryptedDataset.open(dataset).train_ids.tolist())


def test_a_run_leaves_withdrawn_samples_out_and_asks_for_none_of_them(served):
    kept = EncryptedDataset.open(served.path)
    lost = IdSpans.of([(int(i), int(i) + 1) for i in (*kept.train_ids[:5], *kept.test_ids[:2])])
    served.authority.withdraw("set", lost)
    with served.connect() as keys:
        found = train(served.path, authority=keys, epochs=1, settings=RUN)
    assert len(found.remarks) == 1
    assert "7 samples of data set set were withdrawn and are left out" in found.remarks[0]
    spent = served.authority.spent("set")
    gone = lost.holds(kept.ids)
    assert (spent.rank[gone] == 0).all()
    assert (spent.labels[gone] == 0).all()
    assert (spent.rank[~gone] == 7).all()
    assert found.spent.withdrawn == 7
    left = kept.without(lost)
    assert (len(left.train_ids), len(left.test_ids)) == (85, 28)
    assert len(left.split["test"]) == 28
    assert len(left.without(IdSpans.of([(0, 120)])).ids) == 0


@pytest.mark.parametrize("first_layer", ["frozen", "trainable"])
def test_a_run_that_began_with_a_withdrawn_sample_says_what_to_do(served, tmp_path, first_layer):
    settings = replace(RUN, first_layer=first_layer, unblind_to="trusted")
    keep = RunFiles(checkpoint=tmp_path / "run")
    with served.connect("trusted") as keys:
        train(served.path, authority=keys, epochs=1, settings=settings, keep=keep)
        served.authority.withdraw("set", IdSpans.of([(0, 3)]))
        noted = []
        with pytest.raises(EncryptionError, match="use another --checkpoint"):
            train(
                served.path, authority=keys, epochs=2, settings=settings, keep=keep,
                note=noted.append,
            )  # fmt: skip
        assert "3 samples of data set set were withdrawn and are left out; a run that" in noted[0]
        again = replace(keep, checkpoint=tmp_path / "other")
        assert train(served.path, authority=keys, epochs=1, settings=settings, keep=again).spent


def test_a_withdrawal_during_a_run_is_said_at_its_end(served):
    def update(what, done, total):
        if (what, done) == ("steps", 2):
            served.authority.withdraw("set", IdSpans.of([(4, 6)]))

    with served.connect() as keys:
        found = train(served.path, authority=keys, epochs=1, settings=RUN, update=update)
        assert "2 samples were withdrawn during this run" in found.remarks[0]
    asking = replace(RUN, unblind_to="trusted", first_layer="trainable")
    wanted = pytest.raises(EncryptionError, match=r"was withdrawn.*a new run .* leaves it out")
    with served.connect("trusted") as keys, wanted:
        train(
                served.path, authority=keys, epochs=1, settings=asking,
                update=lambda *_: served.authority.withdraw("set", IdSpans.of([(6, 40)])),
            )  # fmt: skip


def test_parts_and_epochs_are_logged(served, caplog):
    caplog.set_level("INFO", logger="cloister")
    served.encrypt(name="other", path=served.folder / "other.cloister", again=True)
    with served.connect() as keys:
        found = train(served.path, authority=keys, epochs=2, settings=RUN)
    told = [record.getMessage() for record in caplog.records if record.name == "cloister.training"]
    assert re.fullmatch(r"data set other: part [0-9a-f]{32} with 120 samples is in .*", told[0])
    assert told[1:] == [
        f"data set set: epoch {one.epoch}, loss {one.loss:.4g}" for one in found.epochs
    ]
