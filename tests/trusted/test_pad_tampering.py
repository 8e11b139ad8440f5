"""Every bit of a stored block changed: it is refused, and nothing is released.

What is not the terms is refused when the file is read, and so are sealed terms. What masked terms
give is refused by the check of the answer that they unblind.
"""

import numpy as np
import pytest

import nets
from cloister.base.rng import SystemRandom
from cloister.errors import PadStoreError, VerificationError
from cloister.trusted.pads import block_file
from cloister.trusted.pads.factory import fill
from cloister.trusted.pads.maker import PadMaker
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.pads.stored_plan import open_or_create
from cloister.trusted.session import Session
from trusted.links import DirectLink
from trusted.test_session import plan_of

HEAD = block_file.ALIGNED_BYTES
NAMED_BYTES = 105
"""Of the head, with its HMAC; zeros follow."""


def small():
    """A convolution and a dense layer: 10 terms."""
    net = nets.Net()
    x = net.input("image", 1, 2, 2)
    x = net.op("Relu", net.conv(x, 1, 2, (1, 1)))
    return net.model(net.gemm(net.op("Flatten", x), 8, 2))


@pytest.fixture(scope="module")
def plans():
    return {policy: plan_of(small(), policy) for policy in ("slalom", "blinded")}


@pytest.fixture
def feeds():
    return nets.samples(small(), 1)


def store_of(plan, folder, rows):
    store = open_or_create(plan, folder / "pads", key_file=folder / "key", rng=SystemRandom())
    fill(store, PadMaker(plan), count=rows, block_rows=rows)
    return store, folder / "pads" / "0.pad"


def term_bits(layout):
    """Every bit of a row that belongs to a term, from the beginning of its record."""
    used = np.zeros(layout.words, np.uint32)
    for part in layout.views(used).values():
        part[...] = 1
    return [32 * word + bit for word in np.flatnonzero(used).tolist() for bit in range(32)]


def flip(path, bit):
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def run(plan, store, feeds):
    link = DirectLink()
    with Session(plan, workers=[link], pads=store) as session:
        return session.run(feeds), link


def test_the_stores_of_both_kinds_give_a_sessions_outputs(plans, feeds, tmp_path):
    for policy, plan in plans.items():
        with Session(plan, workers=[DirectLink()]) as session:
            expected = session.run(feeds).outputs
        (tmp_path / policy).mkdir()
        store, _ = store_of(plan, tmp_path / policy, 3)
        assert store._files.sealed == (policy == "blinded")
        for _ in range(3):
            outputs = run(plan, store, feeds)[0].outputs
            assert all(np.array_equal(outputs[name], expected[name]) for name in expected)


def test_every_bit_of_masked_terms(plans, feeds, tmp_path):
    """One row for each bit: a session each, whose worker is honest."""
    plan = plans["slalom"]
    bits = term_bits(PadLayout.of(plan))
    assert len(bits) == 32 * 10
    store, path = store_of(plan, tmp_path, len(bits) + 1)
    for row, bit in enumerate(bits):
        flip(path, 8 * (HEAD + row * store._files.record_bytes) + bit)
    for _ in bits:
        with pytest.raises(VerificationError):
            run(plan, store, feeds)
    result, _ = run(plan, store, feeds)
    assert result.report.pads_used == 1
    assert store.status().ready == 0


@pytest.mark.parametrize("policy", ["slalom", "blinded"])
def test_every_bit_of_a_head_and_every_byte_of_what_is_no_masked_term(
    plans, tmp_path, monkeypatch, policy
):
    store, path = store_of(plans[policy], tmp_path, 1)
    files = store._files
    monkeypatch.setattr(block_file, "_set_aside", lambda _path: None)
    record = np.zeros((1, files.record_bytes), np.uint8)

    def read():
        reader = files.open(0)
        try:
            reader.read(0, record)
            if files.sealed:
                reader.unseal(0, record[0], np.empty(store.layout.words, np.uint32))
        finally:
            reader.close()

    terms = set() if files.sealed else {8 * HEAD + bit for bit in term_bits(store.layout)}
    rng = np.random.default_rng(2)
    size = path.stat().st_size
    bits = [
        *range(8 * NAMED_BYTES),
        *(8 * byte + int(rng.integers(8)) for byte in range(NAMED_BYTES, size)),
    ]
    read()
    for bit in bits:
        if bit in terms:
            continue
        flip(path, bit)
        with pytest.raises(PadStoreError, match=r"0\.pad"):
            read()
        flip(path, bit)
    read()


def test_rows_that_change_places_or_come_from_another_block(plans, feeds, tmp_path):
    plan = plans["slalom"]
    store, path = store_of(plan, tmp_path, 3)
    fill(store, PadMaker(plan), count=4)
    size, content = store._files.record_bytes, path.read_bytes()
    rows = [content[HEAD + i * size : HEAD + (i + 1) * size] for i in range(3)]
    other = path.with_name("1.pad").read_bytes()[HEAD:]
    path.write_bytes(content[:HEAD] + rows[1] + rows[0] + other)
    for _ in range(3):
        with pytest.raises(VerificationError):
            run(plan, store, feeds)
    assert run(plan, store, feeds)[0].report.pads_used == 1


def test_a_plan_without_checks_gives_no_answer_for_any_changed_byte(plans, feeds, tmp_path):
    plan = plans["blinded"]
    store, path = store_of(plan, tmp_path, 2)
    flip(path, 8 * HEAD + 8 * 20)
    link = DirectLink()
    with (
        Session(plan, workers=[link], pads=store) as session,
        pytest.raises(PadStoreError, match="was changed"),
    ):
        session.run(feeds)
    assert not link.seen
