"""`cloister demo`, from end to end on few digits."""

import json
import re

import pytest
import typer
from typer.testing import CliRunner

from cloister.cli import demo as module
from cloister.errors import InputError
from cloister.plan.claims import Extent, Role, Verb

INPUTS = 24


@pytest.fixture(scope="module")
def outcome():
    return module.run(module.load_digits(INPUTS))


@pytest.fixture(scope="module")
def text(outcome, tmp_path_factory):
    return module.write_page(outcome, tmp_path_factory.mktemp("demo")).read_text()


def app():
    application = typer.Typer()
    application.command()(module.demo)
    return application


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
    assert all(seen.uniformity.p > 1e-7 for seen in outcome.seen)


def test_without_pads_the_worker_sees_the_digits(outcome):
    assert not outcome.seen_without_pads.hidden
    own = module.stretched(outcome.digits.held_out[:, 0])
    seen = outcome.seen_without_pads.pictures
    assert abs(own.astype(int) - seen.astype(int)).max() <= 1


def test_the_lying_worker_is_refused(outcome):
    assert "answer is wrong" in outcome.refusal
    assert any(node in outcome.refusal for node in outcome.nodes)


def test_page_is_self_contained_and_complete(text, outcome):
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) == 3 * module.SHOWN
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in text
    assert len(text) < 200_000
    assert outcome.refusal.replace("'", "&#x27;") in text
    assert all(node in text for node in outcome.nodes)


def test_json(tmp_path):
    arguments = ["--json", "--inputs", "12", "--out", str(tmp_path / "new" / "folder")]
    done = CliRunner().invoke(app(), arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["inputs"] == 12
    assert found["agreement"] == 1.0
    assert found["report"]["hardware_rooted"] is False
    assert len(found["exposure"]) == 3
    assert (tmp_path / "new" / "folder" / "index.html").samefile(found["page"])


def test_transcript_of_the_text(tmp_path):
    done = CliRunner().invoke(app(), ["--inputs", "12", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    for line in (
        r"same answer +100\.0%",
        r"soundness +50\.4 bits",
        r"pads used +12, each once",
        r"hardware rooted +no",
        r"policy slalom",
        r"refused: node .* answer is wrong",
        r"page: .*index\.html",
    ):
        assert re.search(line, done.stdout), line


def test_a_missing_scikit_learn_names_the_remedy(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(module.importlib, "import_module", missing)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        module.load_digits(12)


def test_too_many_inputs_are_refused():
    with pytest.raises(InputError, match="360"):
        module.load_digits(361)


def test_an_unwritable_folder_is_named(outcome, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(InputError, match="choose another folder"):
        module.write_page(outcome, blocked)


def test_the_page_replaces_a_link_and_does_not_follow_it(outcome, tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "page"
    victim.write_text("precious")
    folder.mkdir()
    (folder / module.PAGE_NAME).symlink_to(victim)
    path = module.write_page(outcome, folder)
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
