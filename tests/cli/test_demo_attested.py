"""`cloister demo attested`: four parties, each a process, from end to end."""

import json
import re

import pytest

pytest.importorskip("sklearn")

from cloister.examples import attested_demo, attested_page, digits_demo


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    said = []
    folder = tmp_path_factory.mktemp("attested")
    found = attested_demo.run(digits_demo.all_digits(), folder, say=said.append)
    assert [line[0] for line in said] == list("12345")
    return found


def test_the_customer_gets_the_vendors_labels_and_a_receipt(outcome):
    assert list(outcome.labels) == list(range(10))
    assert list(outcome.answers) == list(outcome.vendor_answers)
    assert outcome.receipt["license"] == attested_demo.LICENSE
    assert outcome.receipt["count"] == attested_demo.QUOTA
    assert outcome.appraisal["hardware_rooted"] is False


def test_four_attempts_are_refused_each_for_its_reason(outcome):
    reasons = {one.attempt: (one.by, one.reason) for one in outcome.refusals}
    assert len(reasons) == 4
    expected = {
        "debug mode": ("broker", r"debug: expected false, found True"),
        "another program": ("customer", r"measurement: expected c1c1.*, found 0e0e"),
        "replays": ("customer", r"answers another offer"),
        "one more": ("meter", r"quota|0 .* left"),
    }
    for attempt, (by, pattern) in expected.items():
        (found,) = [value for name, value in reasons.items() if attempt in name]
        assert found[0] == by
        assert re.search(pattern, found[1]), found


def test_the_ledger_names_who_got_the_key(outcome):
    releases = [one for one in outcome.ledger["entries"] if one["kind"] == "release"]
    assert len(releases) == 1
    text = json.dumps(releases)
    assert attested_demo.CODE in text and attested_demo.LICENSE in text


def test_secrets_are_found_where_they_belong_alone(outcome):
    *elsewhere, broker, customer, vendor = outcome.looked
    assert [one.place for one in elsewhere][-1] == "files of the operator"
    assert {name for name, count in broker.found.items() if count} == {"the bundle's key"}
    for place in elsewhere:
        assert place.nbytes > 1000
        assert set(place.found.values()) == {0}, place
    assert customer.found["digits"] > 10 and customer.found["hidden weights"] == 0
    assert customer.found["content key"] == customer.found["the bundle's key"] == 0
    assert vendor.found["content key"] == 1 and vendor.found["hidden weights"] > 1000


def test_page_is_self_contained_and_honest(outcome, tmp_path):
    text = attested_page.write_attested_page(outcome, tmp_path).read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) == 10
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in text
    assert "The machines here are played" in text
