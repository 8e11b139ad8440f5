"""`cloister demo hidden`, from end to end."""

import json
import re

import pytest

from cloister.examples import digits_demo, hidden_demo, hidden_page

THEFTS = len(hidden_demo.STOLEN_QUERIES)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    said = []
    folder = tmp_path_factory.mktemp("hidden")
    found = hidden_demo.run(digits_demo.all_digits(), folder, say=said.append)
    assert [line[0] for line in said] == list("12345")
    return found


def test_the_customer_gets_the_vendors_answers(outcome):
    assert list(outcome.answers) == list(outcome.vendor_answers)
    assert list(outcome.labels) == list(range(10))
    assert outcome.vendor_accuracy > 0.99


def test_most_weights_are_hidden(outcome):
    hidden, whole = outcome.weights
    assert 0.9 < hidden / whole < 1


def test_no_search_of_the_customer_finds_a_weight(outcome):
    assert len(outcome.searches) == 4
    for search in outcome.searches:
        assert search.nbytes > 100
        assert search.hidden_words == 0
    # The same search finds them where they are.
    assert outcome.control.hidden_words > hidden_demo.LAYERS * 1000


def test_every_attempt_is_refused(outcome):
    errors = {one.attempt: one.error for one in outcome.refusals}
    assert len(errors) == 3
    assert "content key is another" in errors["open it with another key"]
    assert "sealed part is not the one" in errors["change one bit of it"]
    assert "is stale" in errors["put back the older version"]


def test_more_answers_give_a_better_surrogate(outcome):
    accuracies = [theft.accuracy for theft in outcome.thefts]
    assert accuracies[0] < 0.75
    assert 0.8 < accuracies[THEFTS - 1] < 0.96
    assert accuracies[-1] > 0.97
    assert all(abs(theft.fidelity - theft.accuracy) < 0.05 for theft in outcome.thefts)


def test_the_counter_stops_the_thief(outcome):
    assert [theft.allowed for theft in outcome.thefts] == [True] * THEFTS + [False] * 3
    assert f"0 of its {hidden_demo.SOLD_QUERIES} queries are left" in outcome.stopped


def test_page_is_self_contained_and_honest(outcome, tmp_path):
    text = hidden_page.write_hidden_page(outcome, tmp_path).read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) == 10
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in text
    assert "Without attested hardware, the owner of the machine can read the memory" in text


def test_json_and_text(cloister, tmp_path):
    ran = cloister("demo", "hidden", "--json", "--out", tmp_path)
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert found["answers"] == found["vendor_answers"]
    assert (tmp_path / "index.html").samefile(found["page"])
    assert [theft["queries"] for theft in found["thefts"]][:3] == [25, 50, 100]
