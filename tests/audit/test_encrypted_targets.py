"""An audit of a run on labels or numbers: what was released is recovered, and scored as that."""

import numpy as np
import pytest

from cloister.audit.training.attacks import run_attacks
from cloister.audit.training.evidence import collect
from cloister.audit.training.judge import judge
from cloister.audit.training.prior import uninformed
from cloister.audit.training.training_page import conclusion
from cloister.audit.training.truth import Truth, check_truth
from cloister.audit.training.truth_files import read_truths
from cloister.authority.request_log import Release
from cloister.authority.requests import Labels
from cloister.errors import InputError

SHAPE = (1, 1, 2)
PRIOR = uninformed(SHAPE, low=-127, high=127)
IDS = np.arange(30)
X = np.zeros((30, 2))


def release(values):
    return Release(Labels("set", IDS), 0, values, SHAPE)


def targets(kind):
    rng = np.random.default_rng(3)
    if kind == "labels":
        return rng.integers(0, 2, (30, 4))
    return rng.integers(-32767, 32768, (30, 4))


@pytest.mark.parametrize("kind", ["labels", "numbers"])
def test_released_targets_are_recovered(kind):
    real, order = targets(kind), [2, 0, 3, 1]
    _, findings = run_attacks([release(real[:, order])], PRIOR)
    found = next(one for one in findings if one.attack == "labels")
    judged = judge(found, Truth(IDS, X, real), PRIOR)
    assert judged.verdict == "recovered"
    assert (judged.score.value, judged.score.recovered) == (1.0, 120)
    assert judged.score.guess < 0.8


@pytest.mark.parametrize(("kind", "said"), [
    ("classes", "give the labels away, up to the names of the classes"),
    ("labels", "give the labels away, up to their order"),
    ("numbers", "give the numbers to learn away, as parts of their public ranges"),
])  # fmt: skip
def test_the_verdict_names_the_kind_of_targets(kind, said):
    real = np.eye(4, dtype=np.int64)[IDS % 4] if kind == "classes" else targets(kind)
    truth = Truth(IDS, X, IDS % 4 if kind == "classes" else real)
    evidence, findings = run_attacks([release(real)], PRIOR)
    assert evidence.targets == kind
    found = conclusion([judge(one, truth, PRIOR) for one in findings], evidence)
    assert said in found
    assert "No attack here recovered a sample's values" in found


def test_a_truth_of_other_targets_is_refused():
    real = targets("labels")
    evidence = collect([release(real)])
    check_truth(evidence, Truth(IDS, X, real[:, ::-1].copy()), PRIOR, value_bits=8)
    other = real.copy()
    other[3, 1] ^= 1
    for wrong in (other, real[:, :3].copy()):
        with pytest.raises(InputError, match="the log's labels are not those of y, in any order"):
            check_truth(evidence, Truth(IDS, X, wrong), PRIOR, value_bits=8)


def test_files_of_order_hold_rows_of_targets(tmp_path):
    real = targets("numbers")
    np.savez(tmp_path / "a.npz", x=X.astype(int), y=real, ids=IDS)
    np.savez(tmp_path / "b.npz", x=X.astype(int), y=real[:, 0], ids=IDS + 30)
    np.testing.assert_array_equal(read_truths([tmp_path / "a.npz"], []).labels, real)
    with pytest.raises(InputError, match=r"b\.npz: its y has another shape"):
        read_truths([tmp_path / "a.npz", tmp_path / "b.npz"], [])
