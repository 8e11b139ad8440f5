"""The page of an audit's report, of given figures."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

from audit.input.small_audits import graph
from cloister.audit.input.split_page import Gallery, split_page
from cloister.plan import policies
from plan.split_reports import EXPOSED, HARMLESS, split_report


def test_a_split_where_every_attack_finds_too_much_is_told_in_few_words():
    splits = [("a", EXPOSED, {}), ("b", HARMLESS, {"gan": EXPOSED, "decoder": EXPOSED})]
    claims = policies.enclave(graph()).claims()
    page = split_page(split_report(splits), claims, Gallery((), b"", {}))
    every = "ssim of every attack; explained of every attack; identification of every attack"
    assert f"{every}; the deeper split b fails" in page
    assert "ssim of conditional GAN, decoder; explained" in page
