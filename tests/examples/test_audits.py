"""The audits that are kept: each page says what its report says, and the report holds together."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("scipy")

from benchmarks import audits
from cloister.errors import InputError
from cloister.graph.onnx.load import load
from cloister.plan import policies, split_report

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "audits"
AUDITS = sorted(path.parent for path in FOLDER.glob("*/README.md"))
LARGEST_BYTES = 3_000_000


def test_there_are_audits():
    assert AUDITS
    assert {path.parent for path in FOLDER.glob(f"*/{split_report.NAME}")} == set(AUDITS)


@pytest.fixture(params=AUDITS, ids=lambda path: path.name)
def audit(request):
    return request.param


def test_the_page_says_what_the_report_says(audit):
    report = split_report.load(audit)
    page = (audit / audits.PAGE).read_text()
    assert page == audits.filled(page, audits.figures(report))
    assert f"SHA-256 `{report.digest.hex()}`" in page
    for split in report.splits:
        assert f"`{split.name}`" in page


def test_the_page_of_all_has_every_report():
    page = (FOLDER / audits.PAGE).read_text()
    reports = {path.name: split_report.load(path) for path in AUDITS}
    assert page == audits.filled(page, audits.summary(reports))


def test_every_split_was_attacked_by_everything_and_no_attack_is_broken(audit):
    report = split_report.load(audit)
    assert tuple(split.until for split in report.splits) == report.points
    for place in (report.input_control, *report.splits, report.blinded_control):
        assert tuple(one.attack for one in place.attacks) == split_report.ATTACKS
        assert {one.seeds for one in place.attacks} == {split_report.LEAST_SEEDS}
    assert report.broken == {}
    assert report.images >= 192


def test_the_pictures_are_those_of_the_page(audit):
    page = audit / audits.REPORT
    assert len(page.read_bytes()) < LARGEST_BYTES
    text = page.read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    made, kept = audits.pictures(page), (audit / audits.PICTURES).read_bytes()
    np.testing.assert_array_equal(
        *(np.asarray(Image.open(io.BytesIO(one))) for one in (made, kept))
    )


@pytest.mark.data
def test_resnet_is_the_model_of_its_report(data):
    report = split_report.load(FOLDER / "resnet20-cifar10")
    model = load(data / "models" / "resnet20_cifar10.onnx")
    plan = policies.origami(model, audit=report)
    assert (plan.split is None) == (report.accepted_split() is None)


def test_a_page_without_marks_is_refused():
    with pytest.raises(InputError, match="needs the lines"):
        audits.filled("# A page\n", "text")


def test_a_report_without_pictures_is_refused(tmp_path):
    page = tmp_path / "report.html"
    page.write_text("<h3>Split 1: after x</h3>")
    with pytest.raises(InputError, match="shows no reconstructions"):
        audits.pictures(page)
