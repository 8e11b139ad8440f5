"""`cloister demo inference`, from end to end on few digits."""

import json
import re

import pytest

from cloister.audit.input.exposure import stretched
from cloister.errors import InputError
from cloister.examples import digits_demo, digits_page
from cloister.plan.claims import Extent, Role, Verb

INPUTS = 24


@pytest.fixture(scope="module")
def outcome():
    return digits_demo.run(digits_demo.load_digits(INPUTS))


@pytest.fixture(scope="module")
def text(outcome, tmp_path_factory):
    return digits_page.write_page(outcome, tmp_path_factory.mktemp("demo")).read_text()


def test_private_answers_equal_plain_ones(outcome):
    assert outcome.agreement == 1.0
    assert outcome.accuracy(outcome.private) == outcome.accuracy(outcome.plain) >= 0.95
    assert 0 < outcome.largest_difference < 0.1


def test_every_message_was_hidden_and_every_answer_checked(outcome):
    for verb in Verb:
        assert outcome.claims.worst(Role.WORKER, verb) is Extent.BOUNDED
    assert outcome.report.soundness_bits > 50
    assert outcome.report.pads_used == INPUTS
    assert len(outcome.seen) == len(outcome.nodes) == 3
    assert all(seen.uniformity.p > 1e-12 for seen in outcome.seen)


def test_without_pads_the_worker_sees_the_digits(outcome):
    assert not outcome.seen_without_pads.hidden
    own = stretched(outcome.digits.held_out[:, 0])
    seen = outcome.seen_without_pads.pictures
    assert abs(own.astype(int) - seen.astype(int)).max() <= 1


def test_the_lying_worker_is_refused(outcome):
    assert "answer is wrong" in outcome.refusal
    assert any(node in outcome.refusal for node in outcome.nodes)


def test_page_is_self_contained_and_complete(text, outcome):
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) == 3 * digits_page.SHOWN
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in text
    assert len(text) < 200_000
    assert outcome.refusal.replace("'", "&#x27;") in text
    assert all(node in text for node in outcome.nodes)


def test_json(cloister, tmp_path):
    folder = tmp_path / "new" / "folder"
    ran = cloister("demo", "inference", "--json", "--inputs", 12, "--out", folder)
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert found["inputs"] == 12
    assert found["agreement"] == 1.0
    assert found["report"]["hardware_rooted"] is False
    assert len(found["exposure"]) == 3
    assert (tmp_path / "new" / "folder" / "index.html").samefile(found["page"])


def test_transcript_of_the_text(cloister, tmp_path):
    ran = cloister("demo", "inference", "--inputs", 12, "--out", tmp_path)
    assert ran.code == 0, ran
    for line in (
        r"same answer +100\.0%",
        r"soundness +50\.4 bits",
        r"pads used +12, each once",
        r"hardware rooted +no",
        r"policy slalom",
        r"refused: node .* answer is wrong",
        r"page: .*index\.html",
    ):
        assert re.search(line, ran.out), line


def test_the_demo_without_a_name_is_that_of_inference(cloister, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = cloister("demo")
    assert ran.code == 0, ran
    assert "digits" in ran.out and "360 that the model was not trained on" in ran.out
    assert (tmp_path / "demo-output" / "index.html").exists()


def test_a_missing_scikit_learn_names_the_remedy(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(digits_demo.importlib, "import_module", missing)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        digits_demo.load_digits(12)


def test_too_many_inputs_are_refused():
    with pytest.raises(InputError, match="360"):
        digits_demo.load_digits(361)


def test_an_unwritable_folder_is_named(outcome, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(InputError, match="choose another folder"):
        digits_page.write_page(outcome, blocked)


def test_the_page_replaces_a_link_and_does_not_follow_it(outcome, tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "page"
    victim.write_text("precious")
    folder.mkdir()
    (folder / digits_page.PAGE_NAME).symlink_to(victim)
    path = digits_page.write_page(outcome, folder)
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
