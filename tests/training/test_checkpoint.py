"""What a run keeps on disk: for its owner alone, and for no other data."""

import os
import stat
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import StepLR

from cloister.base.rng import InsecureSeededRandom
from cloister.errors import EncryptionError, InputError
from cloister.training import checkpoint, frozen
from cloister.training.trainer import Trainer
from training.doubles import KEY, MemoryAuthority, MemoryDataset, blobs
from training.test_trainer import FROZEN, PAPER, SHAPE, TRUSTED, sgd, small

CLEAN = replace(TRUSTED, first_layer="frozen")


def made_with(settings, folder, *, key=KEY, replaced=False):
    """A trainer on a data set, which may be another's, or have one person's sample replaced."""
    x, y, encoding = blobs(200, SHAPE)
    if replaced:
        x[7] = x[8]
    dataset = MemoryDataset(x, y, encoding=encoding, key=key)
    keys = MemoryAuthority(dataset, mode=settings.mode, key=key)
    return Trainer(
        small(), dataset, keys=keys, rng=InsecureSeededRandom(0), optimizer=sgd,
        checkpoint_dir=folder, settings=settings,
    )  # fmt: skip


OTHERS = pytest.mark.parametrize("other", [{"key": bytes(range(1, 33))}, {"replaced": True}])


@OTHERS
def test_a_checkpoint_of_other_samples_is_refused(other, tmp_path):
    made_with(PAPER, tmp_path).fit(1)
    with pytest.raises(EncryptionError, match="another run, with another data set; use another --"):
        made_with(PAPER, tmp_path, **other).fit(2)
    assert len(made_with(PAPER, tmp_path).fit(2)) == 2


@pytest.mark.parametrize(("given", "named"), [
    ({"settings": replace(PAPER, batch=8)}, "settings"),
    ({"model": nn.Sequential(nn.Flatten(), nn.Linear(30, 3))}, "model"),
    ({"source": "a file that was edited"}, "model"),
    ({"loss": "mse"}, "loss"),
    ({"scheduler": lambda made: StepLR(made, 1)}, "scheduler"),
    ({"optimizer": Adam, "loss": "mse"}, "optimizer and another loss"),
])  # fmt: skip
def test_a_checkpoint_of_another_run_says_what_differs(given, named, tmp_path):
    x, y, encoding = blobs(60, SHAPE)
    dataset = MemoryDataset(x, y, encoding=encoding)

    def made(**more):
        options = {"settings": PAPER, "model": small(), "optimizer": sgd} | more
        return Trainer(
            options.pop("model"), dataset, keys=MemoryAuthority(dataset), checkpoint_dir=tmp_path,
            rng=InsecureSeededRandom(0), **options,
        )  # fmt: skip

    made().fit(1)
    with pytest.raises(EncryptionError, match=f"of another run, with another {named}; use another"):
        made(**given).fit(2)


@OTHERS
@pytest.mark.parametrize("settings", [FROZEN, CLEAN])
def test_features_of_other_samples_are_refused(settings, other, tmp_path):
    made = made_with(settings, tmp_path)
    made.prepare()
    with pytest.raises(EncryptionError, match="features of another data set"):
        made_with(settings, tmp_path, **other).prepare()
    again = made_with(settings, tmp_path)
    again.prepare()
    np.testing.assert_array_equal(again._features[1], made._features[1])


def mode(path):
    assert not path.is_symlink()
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_kept_is_its_owners_alone(tmp_path):
    umask = os.umask(0)
    try:
        made_with(CLEAN, tmp_path).fit(1)
    finally:
        os.umask(umask)
    kept = {path.name: mode(path) for path in tmp_path.iterdir()}
    assert kept == dict.fromkeys((checkpoint.NAME, frozen.FEATURES, frozen.STATE), 0o600)


def test_features_that_others_could_read_are_closed_to_them(tmp_path):
    made_with(CLEAN, tmp_path).prepare()
    (tmp_path / frozen.FEATURES).chmod(0o644)
    made_with(CLEAN, tmp_path).prepare()
    assert mode(tmp_path / frozen.FEATURES) == 0o600


@pytest.mark.parametrize("name", [f"{checkpoint.NAME}.new", f"{frozen.STATE}.new", frozen.FEATURES])
@pytest.mark.parametrize("trap", ["file", "link", "dangling link"])
def test_files_laid_out_beforehand_are_neither_followed_nor_kept(name, trap, tmp_path):
    """Somebody who may write to the folder opens the file first, or has its name point away."""
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    folder.mkdir()
    if trap != "dangling link":
        elsewhere.write_bytes(b"kept")
        elsewhere.chmod(0o666)
    if trap == "file":
        elsewhere.rename(folder / name)
    else:
        (folder / name).symlink_to(elsewhere)
    spying = (folder / name).open("rb") if trap == "file" else None
    made_with(CLEAN, folder).fit(1)
    if spying:
        with spying:
            assert spying.read() == b"kept"
    else:
        assert elsewhere.exists() == (trap == "link")
        assert trap == "dangling link" or elsewhere.read_bytes() == b"kept"
    kept = (checkpoint.NAME, frozen.FEATURES, frozen.STATE)
    assert {mode(folder / name) for name in kept} == {0o600}


def test_features_behind_a_link_are_not_opened(tmp_path):
    made_with(CLEAN, tmp_path / "run").prepare()
    features = tmp_path / "run" / frozen.FEATURES
    features.rename(tmp_path / "moved")
    features.symlink_to(tmp_path / "moved")
    with pytest.raises(InputError, match="cannot be written"):
        made_with(CLEAN, tmp_path / "run").prepare()
