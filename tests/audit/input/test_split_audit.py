"""The jobs, kept results and files of an audit of splits."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

import nets
from audit.input import small_audits
from audit.input.small_audits import (
    FIRST,
    HARMLESS,
    IMAGES,
    KnownAttack,
    audit,
    graph,
    write_images,
)
from cloister.audit import job_results
from cloister.audit.input import SplitSettings, audit_splits, read_split_images
from cloister.audit.input.split_views import split_view
from cloister.audit.job_results import PROGRESS
from cloister.base.rng import InsecureSeededRandom
from cloister.data.preprocessing import Preprocessing
from cloister.errors import InputError, PlanError
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.graph.split import split_points
from cloister.plan import policies
from cloister.plan.protection import BLINDED_VERIFIED, VERIFIED
from cloister.plan.split_report import NAME, load
from cloister.plan.split_scores import ATTACKS

POINTS = [split.name for split in split_points(graph())]
JOBS = 3 * 4 * (len(POINTS) + 2)
LEAKING = {**HARMLESS, "gan": KnownAttack("gan", leaks=FIRST)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An audit of harmless splits, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return audit(folder), folder


def timeless(report):
    """A report without processor times, in which no two runs agree."""

    def split(scores):
        return replace(scores, attacks=tuple(replace(one, cpu_s=0.0) for one in scores.attacks))

    return replace(
        report, splits=tuple(map(split, report.splits)),
        input_control=split(report.input_control), blinded_control=split(report.blinded_control),
    )  # fmt: skip


# ---- what is measured


def test_controls_and_splits_come_out_as_the_attacks_are(whole):
    report, folder = whole
    assert load(folder) == report
    assert [split.name for split in report.splits] == POINTS
    assert [split.depth for split in report.splits] == [1, 2, 3]
    assert [split.elements for split in report.splits] == [256, 64, 12]
    assert (report.input_control.depth, report.input_control.elements) == (0, 64)
    assert (report.images, report.public, report.candidates) == (IMAGES, 500, 50)
    for name in ATTACKS:
        assert report.input_control.attack(name).identification.mean == 1.0
        # Bytes under one-time pads are no image, although this attack takes them for one.
        assert report.blinded_control.attack(name).identification.mean < 0.06
        assert all(split.attack(name).seeds == 3 for split in report.splits)
    assert report.flaws == ()
    assert report.accepted_split() == report.splits[0]


def test_what_shows_images_is_its_owners_alone(whole):
    _, folder = whole
    for name in ("report.html", PROGRESS):
        assert (folder / name).stat().st_mode & 0o777 == 0o600


def test_a_leaking_split_is_refused_and_a_plan_follows_the_report(tmp_path):
    report = audit(tmp_path, attacks=LEAKING)
    assert report.flaws == ()
    assert [one.accepted for one in report.verdicts] == [False, True, True]
    assert {one.attack for one in report.verdicts[0].exceedances} == {"gan"}
    plan = policies.origami(graph(), audit=tmp_path)
    assert plan.split.until == (POINTS[1],)
    assert plan.split.evidence.report == report.digest
    used = list(plan.protections.values())
    assert used.count(BLINDED_VERIFIED) == 2
    assert used.count(VERIFIED) == 2
    with pytest.raises(PlanError, match=f"{POINTS[0]}': the audit does not accept it: gan"):
        policies.origami(graph(), until=POINTS[0], audit=tmp_path)


def test_named_splits_are_attacked_from_the_shallowest_on(tmp_path):
    named = SplitSettings(splits=((POINTS[2],), (POINTS[0],)), attacks=("ridge",), seeds=1)
    report = audit(tmp_path, settings=named)
    assert [split.name for split in report.splits] == [POINTS[0], POINTS[2]]
    assert report.accepted_split() is None
    assert f"no attack was run at split '{POINTS[1]}'" in report.flaws


def test_public_images_are_seen_with_the_rounding_errors_of_attacked_ones(tmp_path):
    """A worker knows the plan. Attacks that learn from exact values fail where they could win."""
    model, seen = graph(), small_audits.images(tmp_path)
    both = replace(seen, public=seen.attacked)
    ranges = policies.measure_ranges("slalom", model, calibration=seen.inputs(seen.public))
    split, rng = split_points(model)[0], InsecureSeededRandom(1)
    viewed = split_view(model, both, split=split, ranges=ranges, rng=rng)
    (attacked,), (public,) = viewed.attacked.values, viewed.knowledge.view.values
    assert np.array_equal(attacked, public)
    (exact,) = viewed.knowledge.before.view(both.public).values
    assert not np.array_equal(exact, public)
    np.testing.assert_allclose(exact, public, atol=1e-2)


def test_splits_beside_each_other_are_in_order_of_their_linear_nodes(tmp_path):
    """The one with more nodes before it has fewer linear ones."""
    net = nets.Net(3)
    stem = net.op("Relu", net.conv(net.input("image", 1, 8, 8), 1, 4))
    left, right = net.op("Sigmoid", stem), net.op("Tanh", stem)
    deep = net.conv(left, 4, 4)
    wide = right
    for _ in range(4):
        wide = net.op("Sigmoid", wide)
    join = net.op("Flatten", net.op("Add", net.op("Relu", deep), net.conv(wide, 4, 4)))
    model = prepare(from_model(net.model(net.gemm(join, 64, 5)), name="wide"))
    names = {v: node.name for node in model.nodes for v in node.outputs}
    splits = tuple((names[a], names[b]) for a, b in ((deep, right), (left, wide)))
    images = read_split_images(model, write_images(tmp_path / "images.npz"), attacked=IMAGES)
    settings = SplitSettings(splits=splits, attacks=("ridge",), seeds=1)
    with small_audits.battery(HARMLESS):
        report = audit_splits(model, images, folder=tmp_path, settings=settings)
    assert [split.depth for split in report.splits] == [1, 2]


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ((("Conv_99",),), "Conv_99"),
        (((POINTS[0],), (POINTS[0],)), "twice"),
        ((("Gemm_8",),), "no linear node is after it"),
    ],
)
def test_a_split_that_is_none_is_refused_before_anything_is_done(tmp_path, splits, said):
    with pytest.raises(InputError, match=said):
        audit(tmp_path, settings=SplitSettings(splits=splits))
    assert not (tmp_path / PROGRESS).exists()


# ---- interruption


def test_an_audit_killed_at_any_time_goes_on_and_comes_to_the_same(whole, tmp_path):
    tests = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-P", small_audits.__file__, str(tmp_path)],
        stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{tests}"},
    )  # fmt: skip
    for line in child.stdout:
        if line.startswith("7 "):
            break
    child.send_signal(signal.SIGKILL)
    assert child.wait(60) == -signal.SIGKILL
    child.stdout.close()
    assert not (tmp_path / NAME).exists()
    kept = json.loads((tmp_path / PROGRESS).read_text())["done"]
    assert 7 <= len(kept) < JOBS
    said = []
    report = audit(tmp_path, said=lambda done, total, text: said.append((done, total)))
    assert timeless(report) == timeless(whole[0])
    assert said[0] == (len(kept), JOBS)
    assert said[-1] == (JOBS, JOBS)
    for name, result in kept.items():
        assert json.loads((tmp_path / PROGRESS).read_text())["done"][name] == result


def test_more_seeds_and_attacks_are_added_to_those_that_are_done(whole, tmp_path):
    audit(tmp_path, settings=SplitSettings(attacks=("ridge",), seeds=1))
    calls = []
    report = audit(tmp_path, said=lambda done, total, text: calls.append(done))
    assert calls[0] == len(POINTS) + 2
    assert timeless(report) == timeless(whole[0])


def test_when_the_time_is_used_up_the_report_says_what_is_missing(tmp_path, monkeypatch):
    clock = iter(range(1000))
    watch = SimpleNamespace(monotonic=lambda: 60.0 * next(clock))
    monkeypatch.setattr(job_results, "time", watch)
    with pytest.raises(InputError, match="run the same command again"):
        audit(tmp_path, minutes=3.5)
    report = audit(tmp_path, minutes=8.5)
    assert [split.name for split in report.splits] == [POINTS[0]]
    assert report.accepted_split() is None
    assert "as the audit allows no verdict" in (tmp_path / "report.html").read_text()
    assert audit(tmp_path).accepted_split() is not None


def test_a_folder_of_another_audit_is_refused_and_nothing_of_it_is_lost(whole, tmp_path):
    shutil.copy(whole[1] / PROGRESS, tmp_path)
    with pytest.raises(InputError, match="of another audit"):
        audit(tmp_path, settings=SplitSettings(effort=2.0))
    assert (tmp_path / PROGRESS).read_bytes() == (whole[1] / PROGRESS).read_bytes()


def test_results_of_another_preprocessing_are_no_part_of_an_audit(whole, tmp_path):
    """Inputs that are scaled to nothing tell nothing, whatever the report says of its own."""
    shutil.copy(whole[1] / PROGRESS, tmp_path)
    path = write_images(tmp_path / "images.npz")
    for changed in (Preprocessing(std=(1e9,)), Preprocessing(mean=(0.5,)), Preprocessing(scale=1)):
        images = read_split_images(graph(), path, changed, attacked=IMAGES)
        with small_audits.battery(HARMLESS), pytest.raises(InputError, match="of another audit"):
            audit_splits(graph(), images, folder=tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d["done"][next(iter(d["done"]))]["ssim"].pop(),
        lambda d: d["done"][next(iter(d["done"]))].pop("mse"),
        lambda d: d["done"][next(iter(d["done"]))].update(pictures=["*"]),
        lambda d: d.pop("done"),
    ],
)
def test_damaged_results_are_refused(whole, tmp_path, damage):
    document = json.loads((whole[1] / PROGRESS).read_text())
    damage(document)
    (tmp_path / PROGRESS).write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"remove it to start anew|results of|no picture|not one"):
        audit(tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"attacks": ("magic",)}, "magic"),
        ({"attacks": ()}, "different ones"),
        ({"attacks": ("gan", "gan")}, "different ones"),
        ({"splits": ()}, "splits"),
        ({"seeds": 0}, "seeds"),
        ({"effort": 0.0}, "effort"),
        ({"effort": float("nan")}, "effort"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changed, said):
    with pytest.raises(InputError, match=said):
        SplitSettings(**changed)


# ---- the page


def test_the_page_is_self_contained_and_says_what_it_holds_for(whole):
    report, folder = whole
    page = (folder / "report.html").read_text()
    for absent in ("http", "<script", "url(", "@import"):
        assert absent not in page
    for text in (
        report.model_sha256, report.data_sha256, report.digest.hex(),
        report.conclusion.split(":")[0],
        "These figures are empirical", "other attacks may find more", "conditional GAN",
        "One GAN, judged by SSIM alone", "No attack is broken.", "200 attacked, 500 public",
        *POINTS,
    ):  # fmt: skip
        assert text in page or text.replace("'", "&#x27;") in page, text
    places = len(POINTS) + 2
    assert page.count("<img ") == 8 * (1 + len(ATTACKS)) * places + 1
    assert page.count("<svg") == 4
    assert page.count("<circle") == 4 * len(ATTACKS) * (len(POINTS) + 1)


def test_gallery_shows_the_originals_as_they_are(whole, tmp_path):
    import base64
    import io
    import re

    from PIL import Image

    page = (whole[1] / "report.html").read_text()
    first = re.search(r'src="data:image/png;base64,([^"]+)"', page)[1]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(first))))
    original = small_audits.images(tmp_path).attacked[0, 0]
    np.testing.assert_array_equal(shown, np.rint(255 * original))
