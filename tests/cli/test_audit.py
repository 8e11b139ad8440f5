"""`cloister audit training` as people use it."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from audit import leaks
from cloister.authority.request_log import ReleaseLog
from cloister.ring.linear import Geometry

SHAPE = (8, 8, 1)


@pytest.fixture
def digits():
    found = load_digits()
    return found.images.astype(np.int64)[..., None], found.target


@pytest.fixture
def paper(tmp_path, digits):
    """A log of the paper's mode, and the truth."""
    images, labels = digits
    rng = np.random.default_rng(3)
    conv = Geometry((8, 8), 1, (8, 8), 6, (5, 5), pad=(2, 2))
    ids = np.arange(20)
    with ReleaseLog(tmp_path / "log") as log:
        log.append(leaks.forward(images, ids, conv, rng.integers(-99, 99, conv.weight_shape)))
        dense = leaks.dense(SHAPE, 24)
        log.append(leaks.gradient(images, ids, dense, rng.integers(-99, 99, (20, 24))))
        log.append(leaks.labels(labels, ids, 10, shape=SHAPE))
    np.savez(tmp_path / "truth.npz", x=images[:20], y=labels[:20])
    np.savez(tmp_path / "public.npz", x=images[500:])
    return tmp_path / "log"


@pytest.fixture
def budgeted(tmp_path, digits):
    """A log of the budgeted mode whose answers went to the trusted runtime: it is empty."""
    with ReleaseLog(tmp_path / "empty"):
        return tmp_path / "empty"


def test_paper_mode_is_broken(cloister, paper, tmp_path):
    ran = cloister("audit", "training", paper, "--truth", tmp_path / "truth.npz",
                   "--public", tmp_path / "public.npz", "--range", "0,16",
                   "--out", tmp_path / "page.html")  # fmt: skip
    assert ran.code == 0
    for line in (
        r"linear solve +recovered +16 of 16 +99\.0 dB +\d+\.\d dB +100\.0% +rank 64 of 64",
        r"gradient batches +recovered +20 of 20 +99\.0 dB .*rank 20 of 20 samples",
        r"labels +recovered +20 of 20 +100\.0%",
        r"verdict: recovered",
        r"Samples whose values are recovered: \d+ of \d+ tried .*; the log concerns 20 samples",
    ):
        assert re.search(line, ran.out), line
    assert "page written" in ran.err
    page = (tmp_path / "page.html").read_text()
    assert "Verdict: recovered" in page
    assert page.count("data:image/png;base64,") >= 8 * 3
    assert "http" not in page
    assert "<script" not in page


def test_without_truth_the_determined_is_recovered(cloister, paper):
    found = json.loads(cloister("audit", "training", paper, "--json").out)
    assert found["verdict"] == "recovered"
    assert found["releases"] == {"forward": 1, "gradient": 1, "labels": 1}
    assert found["samples"] == 20
    by_name = {one["attack"]: one for one in found["attacks"]}
    assert by_name["linear solve"]["determined"]
    assert by_name["linear solve"]["score"] is None
    assert by_name["linear solve"]["verdict"] == "recovered"
    assert by_name["joint solve"]["verdict"] == "not scored"
    assert by_name["packed keys"]["verdict"] == "not recovered"
    assert by_name["box program"]["verdict"] == "not attempted"
    assert by_name["weight differences"]["verdict"] == "nothing to attack"


def test_guarded_mode_gives_nothing(cloister, budgeted, tmp_path, paper):
    ran = cloister("audit", "training", budgeted, "--out", tmp_path / "page.html")
    assert ran.code == 0
    assert "verdict: nothing to attack" in ran.out
    assert "recovered " not in ran.out.split("verdict:")[0]
    assert "data:image" not in (tmp_path / "page.html").read_text()
    found = json.loads(
        cloister("audit", "training", budgeted, "--truth", tmp_path / "truth.npz", "--json").out
    )
    assert found["verdict"] == "nothing to attack"
    assert found["samples"] == 0
    assert cloister("audit", "training", budgeted, "--public", tmp_path / "public.npz").code == 0


def test_truth_in_its_own_units(cloister, paper, digits, tmp_path):
    images = digits[0][:20]
    np.savez(tmp_path / "units.npz", x=images / 16.0 + 3.0, scale=1 / 16, offset=3.0)
    found = json.loads(
        cloister("audit", "training", paper, "--truth", tmp_path / "units.npz", "--json").out
    )
    score = next(one["score"] for one in found["attacks"] if one["attack"] == "linear solve")
    assert score["exact"] == 1.0


def test_a_truth_in_another_order_is_refused(cloister, refused, paper, digits, tmp_path):
    """Plain data is in the owner's order, samples in the file are shuffled: what gives all away
    would be called not recovered."""
    images, labels = digits
    order = np.random.default_rng(1).permutation(20)
    plain, note = tmp_path / "plain.npz", tmp_path / "order.npz"
    # Row i of the plain data is sample order[i] of the log.
    np.savez(plain, x=images[:20][order] / 16 + 3, y=labels[:20][order], scale=1 / 16, offset=3)
    np.savez(note, ids=order, rows=np.arange(20), x=images[:20][order], y=labels[:20][order])
    log = ("audit", "training", paper, "--range", "0,16")
    message = refused(*log, "--truth", plain)
    assert "not those of its truth" in message
    assert "cloister data encrypt --order" in message
    for given in (("--truth", note), ("--truth", plain, "--order", note)):
        found = json.loads(cloister(*log, *given, "--json").out)
        scores = {one["attack"]: one["score"] for one in found["attacks"]}
        assert found["verdict"] == "recovered"
        assert scores["linear solve"]["exact"] == scores["labels"]["value"] == 1.0


def test_a_truth_that_cannot_be_the_logs_is_refused(refused, paper, digits, tmp_path):
    images, labels = digits
    log, bad = ("audit", "training", paper, "--truth"), tmp_path / "bad.npz"
    for content, message in (
        ({"x": images[:20] / 16}, "holds fractions"),
        ({"x": images[:20] * 16}, "--range is -127 to 127"),
        ({"x": images[:20], "ids": np.arange(900, 920)}, "none of the 16 samples"),
        ({"x": images[20:40]}, "not those of its truth"),
        ({"x": images[:20], "y": labels[20:40]}, "classes are not those of y"),
    ):
        np.savez(bad, **content)
        refusal = refused(*log, bad)
        assert message in refusal
        assert "--order" in refusal
    np.savez(bad, x=images[:20])
    order = tmp_path / "order.npz"
    for content, message in (
        ({"ids": np.arange(30), "rows": np.arange(30)}, "names row 29"),
        ({"ids": np.arange(20)}, "not a file of `cloister data encrypt --order`"),
        ({"ids": np.arange(3), "rows": np.arange(3) / 2}, "not a file of"),
    ):
        np.savez(order, **content)
        assert message in refused(*log, bad, "--order", order)
    assert "one for each part" in refused(*log, bad, "--truth", bad, "--order", order)
    assert "occurs twice" in refused(*log, bad, "--truth", bad)


def test_the_truth_of_several_parts(cloister, paper, digits, tmp_path):
    for part, ids in enumerate((np.arange(10), np.arange(10, 20))):
        np.savez(tmp_path / f"{part}.npz", x=digits[0][ids], y=digits[1][ids], ids=ids)
    parts = ("--truth", tmp_path / "0.npz", "--truth", tmp_path / "1.npz")
    found = json.loads(cloister("audit", "training", paper, *parts, "--json").out)
    scores = {one["attack"]: one["score"] for one in found["attacks"]}
    assert scores["labels"]["samples"] == 20
    np.savez(tmp_path / "1.npz", x=digits[0][10:20, :4], ids=np.arange(10, 20))
    assert "another size" in cloister("audit", "training", paper, *parts).err


def test_a_gradient_that_is_not_of_the_truth(refused, digits, tmp_path):
    images, _ = digits
    dense = leaks.dense(SHAPE, 4)
    with ReleaseLog(tmp_path / "log") as log:
        log.append(leaks.gradient(images, np.arange(3), dense, np.arange(12).reshape(3, 4)))
    np.savez(tmp_path / "truth.npz", x=images[1:4])
    message = refused("audit", "training", tmp_path / "log", "--truth", tmp_path / "truth.npz")
    assert "a gradient of samples such as 0" in message


def test_noise_that_was_not_told_is_named(cloister, refused, digits, tmp_path):
    """Attacks that take noisy values for exact ones fail for that alone."""
    images, _ = digits
    rng = np.random.default_rng(4)
    release = leaks.forward(
        images, np.arange(6), leaks.dense(SHAPE, 9), rng.choice([-1, 1], (9, 64))
    )
    noise = rng.integers(-4, 4, release.values.shape)
    with ReleaseLog(tmp_path / "log") as log:
        log.append(replace(release, values=release.values + noise))
    np.savez(tmp_path / "truth.npz", x=images[:6])
    command = ("audit", "training", tmp_path / "log", "--truth", tmp_path / "truth.npz",
               "--range", "0,16", "--lattice", 0)  # fmt: skip
    assert "--value-bits 9, if the authority added noise" in refused(*command)
    ran = cloister(*command, "--value-bits", 9)
    assert "verdict: " in ran.out
    assert "Not attempted: public prior, learned prior, integer decoding." in ran.out


def test_bad_input(refused, paper, digits, tmp_path):
    images, labels = digits
    log = ("audit", "training", paper)
    assert "not a release log" in refused("audit", "training", tmp_path / "truth.npz")
    assert "no such file" in refused("audit", "training", tmp_path / "none")
    for content, message in (
        ({"y": labels}, "needs an array x"),
        ({"x": images[:20], "y": labels[:3]}, "y has 3 entries for 20 samples"),
        ({"x": images[:20], "ids": np.zeros(20, np.int64)}, "occurs twice"),
        ({"x": images[:20], "y": labels[:20] / 2}, "row of integers"),
        ({"x": images[:20], "scale": 0}, "scale not zero"),
        ({"x": images[:20, :4]}, "32 elements"),
    ):
        np.savez(tmp_path / "bad.npz", **content)
        assert message in refused(*log, "--truth", tmp_path / "bad.npz")
    assert "32 elements" in refused(*log, "--public", tmp_path / "bad.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK broken")
    assert "not a readable" in refused(*log, "--truth", tmp_path / "bad.npz")
    assert "empty" in refused(*log, "--range", "5,5")
    data = paper.read_bytes()
    paper.write_bytes(data[:-1])
    assert "cut off" in refused(*log)
    assert "--tail-ok" in refused(*log)


def test_a_torn_tail_on_request(cloister, paper):
    data = paper.read_bytes()
    paper.write_bytes(data[:-1])
    found = json.loads(cloister("audit", "training", paper, "--tail-ok", "--json").out)
    assert found["releases"] == {"forward": 1, "gradient": 1}


def test_without_scipy_the_other_verbs_work_and_this_one_says_what_to_install(paper):
    code = (
        "import sys; sys.modules['scipy'] = None; "
        "from cloister.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-P", "-c", code]
    ran = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert ran.returncode == 0
    ran = subprocess.run([*command, "audit", "training", paper], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "cloister[audit]" in ran.stderr


@pytest.mark.parametrize("absent", ["scipy", "torch"])
def test_the_audit_of_a_model_says_what_to_install(absent, model_file, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 8, 6, 3), np.uint8), y=np.arange(4))
    code = (
        f"import sys; sys.modules['{absent}'] = None; "
        "from cloister.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-P", "-c", code, "audit", "model", model_file]
    command += ["--data", tmp_path / "x.npz", "--out", tmp_path / "out"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.strip().endswith("pip install 'cloister[audit]'")
    assert not (tmp_path / "out").exists()
