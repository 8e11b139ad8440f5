import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cloister.authority import service, tokens
from cloister.authority.agreement import EXPOSURE
from cloister.authority.authority import Authority
from cloister.authority.database import FILE
from cloister.authority.requests import Forward, Labels
from cloister.base import files
from cloister.base.identity import PUBLIC_FILE
from cloister.base.rng import SystemRandom
from cloister.data import dataset as datasets
from cloister.data.dataset import EncryptedDataset
from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo
from cloister.data.owner import Notes
from cloister.data.writer import check_registered
from cloister.errors import EncryptionError
from cloister.ring import pads
from cloister.ring.linear import Geometry, LinearMap
from cloister.training import proposal
from training.same_draws import same_draws


@pytest.fixture
def authority(tmp_path):
    with Authority.create(tmp_path / "authority", rng=SystemRandom()) as made:
        yield made


@pytest.fixture
def to(authority, tmp_path):
    """The options that name authority, token and file, of a client for each call."""
    folder = tmp_path / "authority"
    server = service.serve(folder, authority, listen="127.0.0.1:0")

    def options(role="client", out="set.cloister", public=folder / PUBLIC_FILE):
        token = tokens.issue(folder / FILE, role, name="", rng=SystemRandom())
        return (
            "--authority", server.url, "--pin", public, "--token", token, "--out",
            tmp_path / out, "--digests", tmp_path / "digests" / token[-8:],
        )  # fmt: skip

    yield options
    server.close()


@pytest.fixture
def pixels(tmp_path):
    path = tmp_path / "pixels.npz"
    generator = np.random.default_rng(4)
    x = generator.integers(0, 256, (30, 3, 2, 1), dtype=np.uint8)
    np.savez(path, x=x, y=np.arange(30) % 3)
    return path, x


def decrypted(authority, path, name="set"):
    """What the file holds in plain, by the keys a trusted runtime would get."""
    opened = EncryptedDataset.open(path)
    ids = opened.ids
    dim = int(np.prod(opened.shape))
    identity = LinearMap(
        Geometry((1, 1), dim, (1, 1), dim), np.eye(dim, dtype=np.int16).reshape(dim, 1, 1, dim)
    )
    key = authority.ask(Forward(name, ids, identity), receiver="trusted")
    x = pads.unblind(pads.forward(identity, opened.data(ids).reshape(-1, 1, 1, dim)), key)
    y = pads.unblind(opened.labels(ids), authority.ask(Labels(name, ids), receiver="trusted"))
    return opened, opened.encoding.decode(x.reshape(-1, *opened.shape)), y


def test_pixels_of_two_clients_in_one_file(cloister, authority, to, pixels, tmp_path):
    path, x = pixels
    first = cloister("data", "encrypt", path, *to(), "--test-fraction", 0.2)
    assert first.code == 0, first
    assert "30 samples encrypted" in first.out
    second = cloister("data", "encrypt", path, *to(), "--split", "test", "--json")
    assert second.code == 0, second
    assert json.loads(second.out)["parts"][0]["first"] == 30
    opened, plain, one_hot = decrypted(authority, tmp_path / "set.cloister")
    assert (opened.samples, len(opened.test_ids), opened.classes) == (60, 36, 3)
    check_registered(opened, authority.parts("set"))
    by_class = {x[i].tobytes(): i % 3 for i in range(30)}
    seen = set()
    for sample, label in zip(np.rint(plain * 255).astype(np.uint8), one_hot, strict=True):
        assert label.sum() == 1
        seen.add((by_class[sample.tobytes()], int(label.argmax())))
    # Every class has one place, the same for both clients.
    assert len(seen) == 3
    assert len({true for true, _ in seen}) == len({place for _, place in seen}) == 3


def test_numbers_and_labels_by_their_names(cloister, refused, authority, to, tmp_path):
    """The first client's ranges and names hold for the second, whose columns are permuted."""
    path, ranges = tmp_path / "numbers.npz", tmp_path / "ranges.json"
    rng = np.random.default_rng(5)
    x, y = rng.uniform(-1, 1, (30, 6)), rng.uniform(0, 10, (30, 2))
    np.savez(path, x=x, y=y)
    np.savez(tmp_path / "other.npz", x=x, y=y[:, ::-1])
    ranges.write_text('{"age": [0, 10], "weight": [-10, 10]}')
    public = ("--range", "-1,1", "--target-ranges", ranges)
    ran = cloister("data", "encrypt", path, *to(), *public, "--classes", "age,weight")
    assert ran.code == 0, ran
    assert ran.err == ""
    ran = cloister("data", "encrypt", tmp_path / "other.npz", *to(), "--classes", "weight,age")
    assert ran.code == 0, ran
    opened, plain, integers = decrypted(authority, tmp_path / "set.cloister")
    assert (opened.targets, opened.classes) == ("numbers", 2)
    values = integers / 32767 * [5, 10] + [5, 0]
    for sample, target in zip(plain.reshape(60, 6), values, strict=True):
        nearest = int(np.abs(x - sample).sum(axis=1).argmin())
        np.testing.assert_allclose(target, y[nearest], atol=1e-3)
    shown = json.loads(cloister("data", "show", tmp_path / "set.cloister", "--json").out)
    assert (shown["targets"], shown["classes"]) == ("numbers", 2)
    np.savez(path, x=x, y=(y > 5).astype(int))
    said = refused("data", "encrypt", path, *to(), "--classes", "age,weight")
    assert "data set set has numbers to learn, these samples have labels" in said
    said = refused("data", "encrypt", path, *to(out="other.cloister"), *public)
    assert "--target-ranges: is for numbers" in said
    said = refused("data", "encrypt", path, *to(), "--targets", "classes")
    assert "has not exactly one class" in said
    wider = ("--targets", "numbers", "--classes", "age,weight", "--target-ranges", ranges)
    ranges.write_text('{"age": [0, 11], "weight": [-10, 10]}')
    assert "drop --target-ranges" in refused("data", "encrypt", path, *to(), *wider)


def test_numbers_of_tables_by_their_columns(cloister, refused, authority, to, tmp_path):
    rng = np.random.default_rng(8)
    rows = rng.uniform(-100, 100, (40, 10)).round(2)
    names = [*"abcdefgh", "pressure", "pulse"]

    def written(name, order, values):
        lines = (",".join(str(row[i]) for i in order) for row in values.tolist())
        path = tmp_path / name
        path.write_text("\n".join([",".join(names[i] for i in order), *lines]))
        return path

    numbers = ("--targets", "numbers", "--label", "pressure,pulse", "--json")
    ran = cloister("data", "encrypt", written("a.csv", range(10), rows), *to(), *numbers)
    assert ran.code == 0, ran
    inside = rows[5:9] * 0.5
    other = written("b.csv", [9, 1, 2, 8, 3, 4, 5, 6, 7, 0], inside)
    ran = cloister("data", "encrypt", other, *to(), *numbers)
    assert ran.code == 0, ran
    _, plain, integers = decrypted(authority, tmp_path / "set.cloister")
    both = np.concatenate([rows, inside])
    low, high = rows.min(axis=0), rows.max(axis=0)
    scaled = (2 * both - low - high) / (high - low)
    for sample, target in zip(plain.reshape(44, 8), integers / 32767, strict=True):
        nearest = int(np.abs(scaled[:, :8] - sample).sum(axis=1).argmin())
        np.testing.assert_allclose(target, scaled[nearest, 8:], atol=1e-4)
    inside[2, 9] = 400.0
    beyond = written("c.csv", range(10), inside)
    message = refused("data", "encrypt", beyond, *to(), "--again", *numbers)
    assert "c.csv: line 4, number pulse: the value is outside" in message


def test_several_sources_are_parts_of_one_data_set(cloister, refused, to, pixels, tmp_path):
    path, x = pixels
    np.savez(tmp_path / "more.npz", x=255 - x[:9], y=np.arange(9) % 3)
    sources = (path, tmp_path / "more.npz")
    order = ("--order", tmp_path / "order.npz")
    assert "encrypt them one by one" in refused("data", "encrypt", *sources, *to(), *order)
    ran = cloister("data", "encrypt", *sources, *to(), "--json")
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert [(part["first"], part["samples"]) for part in found["parts"]] == [(0, 30), (30, 9)]
    assert ["had 30 samples" in str(part["remarks"]) for part in found["parts"]] == [False, True]
    ran = cloister("data", "show", tmp_path / "set.cloister", "--json")
    shown = json.loads(ran.out)
    assert (shown["name"], shown["samples"], shown["shape"]) == ("set", 39, [3, 2, 1])
    assert [part["part"] for part in shown["parts"]] == [part["part"] for part in found["parts"]]
    assert shown["authority"] == found["fingerprint"]
    text = cloister("data", "show", tmp_path / "set.cloister").out
    assert all(part["sha256"] in text for part in shown["parts"])
    content = (tmp_path / "set.cloister").read_bytes()
    (tmp_path / "set.cloister").write_bytes(content[:-200] + bytes(200))
    assert "was altered" in refused("data", "show", tmp_path / "set.cloister")


def test_a_source_that_does_not_fit_leaves_nothing_registered(
    cloister, refused, authority, to, pixels, tmp_path
):
    path, x = pixels
    np.savez(tmp_path / "wider.npz", x=np.concatenate([x, x], axis=2), y=np.arange(len(x)) % 3)
    said = refused("data", "encrypt", path, tmp_path / "wider.npz", *to())
    assert "wider.npz: holds pixels of shape" in said
    assert "nothing was encrypted" in said
    assert not (tmp_path / "set.cloister").exists()
    assert cloister("data", "encrypt", path, *to()).code == 0


def test_an_error_names_the_sources_that_were_added_before(cloister, to, pixels, tmp_path):
    path, x = pixels
    np.savez(tmp_path / "unknown.npz", x=x, y=np.arange(len(x)) % 3 + 5)
    ran = cloister("data", "encrypt", path, tmp_path / "unknown.npz", *to())
    assert ran.code == 2
    assert f"{path}: in {tmp_path / 'set.cloister'} already, do not encrypt them again" in ran.err


def test_tables_of_two_clinics(cloister, refused, authority, to, tmp_path):
    one, two, ranges = tmp_path / "1.csv", tmp_path / "2.csv", tmp_path / "ranges.json"
    one.write_text("age,pulse,label\n20,60,well\n40,90,sick\n")
    two.write_text("age,pulse,label\n70,75,sick\n")
    ranges.write_text('{"age": [0, 100], "pulse": [50, 100]}')
    narrow = tmp_path / "narrow.json"
    narrow.write_text('{"age": [0, 30], "pulse": [50, 100]}')
    found = refused("data", "encrypt", one, *to(), "--ranges", ranges)
    assert "samples of 2 elements have no function that does not give an element away" in found
    agreed = ("--privacy", "budget=0", "--max-bits", 16)
    assert "column age" in refused("data", "encrypt", one, *to(), *agreed, "--ranges", narrow)
    narrow.write_text('{"age": [0, 30]}')
    assert "column pulse is missing" in refused("data", "encrypt", one, *to(), "--ranges", narrow)
    found = refused("data", "encrypt", two, *to(), "--ranges", ranges)
    assert "2 to 65536 classes, not 1; name all of them (--classes)" in found
    narrow.write_text("[1, 2]")
    assert "not a file of ranges" in refused("data", "encrypt", one, *to(), "--ranges", narrow)
    assert authority.datasets() == ()
    ran = cloister("data", "encrypt", one, *to(), *agreed, "--ranges", ranges)
    assert ran.code == 0, ran
    assert ran.err == (
        "note: a budget of 0 gives a training server nothing: only `cloister train --unblind-to "
        "trusted` trains on this data set; a new one may have a --privacy budget=N\n"
    )
    found = refused("data", "encrypt", two, *to())
    assert "bits of a sample 16 instead of the default 8 (--max-bits 16)" in found
    ran = cloister("data", "encrypt", two, *to(), *agreed)
    assert ran.code == 0, ran
    assert "data set set had 2 samples" in ran.err
    assert "on its terms, which give away no more than yours" in ran.err
    other = tmp_path / "other.json"
    other.write_text('{"age": [0, 90], "pulse": [50, 100]}')
    found = refused("data", "encrypt", two, *to(), *agreed, "--ranges", other)
    assert "set has other ranges; drop --ranges to take those of its first client" in found
    found = refused("data", "encrypt", two, *to(), *agreed, "--classes", "sick,well,cured")
    assert "set has the classes sick, well; drop --classes" in found
    more = (*agreed, "--ranges", ranges, "--classes", "well,sick")
    assert cloister("data", "encrypt", two, *to(), *more).code == 0
    _, plain, _ = decrypted(authority, tmp_path / "set.cloister")
    found = sorted((plain[:, 0, 0] * [50, 25] + [50, 75]).tolist())
    np.testing.assert_allclose(found, [[20, 60], [40, 90], [70, 75], [70, 75]], atol=0.4)
    two.write_text("age,pulse,label\n170,75,sick\n")
    assert "line 2, column age: 170 is outside the range 0 to 100" in refused(
        "data", "encrypt", two, *to(), *agreed
    )
    assert cloister("data", "encrypt", two, *to(), *agreed, "--clip").code == 0
    two.write_text("age,pulse,label\n70,75,cured\n")
    assert "class 'cured'" in refused("data", "encrypt", two, *to(), *agreed)
    two.write_text("height,age,label\n70,75,sick\n")
    found = refused("data", "encrypt", two, *to(), *agreed)
    assert "has no column pulse, which the data set has: its columns are age, pulse" in found
    # The data set's order counts, not that of the file.
    two.write_text("pulse,age,label\n70,75,sick\n")
    assert cloister("data", "encrypt", two, *to(), *agreed).code == 0
    _, plain, _ = decrypted(authority, tmp_path / "set.cloister")
    np.testing.assert_allclose(plain[-1, 0, 0] * [50, 25] + [50, 75], [75, 70], atol=0.4)


def test_clinics_with_other_tables_encode_alike(cloister, refused, authority, to, tmp_path):
    one, two = tmp_path / "1.csv", tmp_path / "2.csv"
    one.write_text(
        "id,seen,age,sex,label\n"
        "1,2024-01-01,20,f,well\n2,2024-01-11,NA,m,sick\n3,2024-01-06,40,,well\n"
    )
    ran = cloister("data", "encrypt", one, *to(), "--without", "id")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines() == [
        f"error: {one}: 2 cells cannot be used",
        "  line 3, column age: the value is missing",
        "  line 4, column sex: the value is missing",
        "  fill it (--fill), or leave out rows with missing cells (--drop)",
    ]
    assert authority.datasets() == ()
    options = ("--without", "id", "--fill", "median,sex=other", "--test-fraction", 0)
    ran = cloister("data", "encrypt", one, *to(), *options)
    assert ran.code == 0, ran
    for said in (
        "note: every column's smallest and largest value, every value of a category, every fill of "
        "missing cells of your data becomes known to the other clients and the authority; give "
        "public --ranges to avoid it",
        "note: column seen: dates are read as %Y-%m-%d",
        "note: column age: 1 missing cells are filled by 30",
        "note: column sex: a category of f, m, other",
        "note: column sex: 1 missing cells are filled by other",
    ):
        assert said in ran.err
    two.write_bytes(
        "größe;label;sex;age;seen\n170;sick;m;25,5;03.01.2024\n180;well;;;11.01.2024\n".encode(
            "latin-1"
        )
    )
    assert "column größe is not in the data set; leave it out with --without größe" in refused(
        "data", "encrypt", two, *to()
    )
    ran = cloister("data", "encrypt", two, *to(), "--without", "größe")
    assert ran.code == 0, ran
    assert "note: numbers have decimal commas" in ran.err
    opened, plain, _ = decrypted(authority, tmp_path / "set.cloister")
    assert opened.shape == (1, 1, 5)
    rows = sorted(plain[:, 0, 0].tolist())
    np.testing.assert_allclose(
        rows,
        [[-1, -1, 1, 0, 0], [-0.6, -0.45, 0, 1, 0], [0, 1, 0, 0, 1], [1, 0, 0, 0, 1],
         [1, 0, 0, 1, 0]],
        atol=0.005,
    )  # fmt: skip
    two.write_text("seen,age,sex,label\n2024-01-05,30,x,well\n2025-01-05,30,f,well\n")
    found = refused("data", "encrypt", two, *to())
    assert "line 2, column sex: 'x' is none of the column's values (f, m, other)" in found
    two.write_text("seen,age,sex,label\n2025-01-05,30,f,well\n")
    found = refused("data", "encrypt", two, *to())
    assert "column seen: 2025-01-05 is outside the range 2024-01-01 to 2024-01-11" in found


def test_own_ranges_are_used_and_said_to_be_public(cloister, to, tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("age,pulse,weight,label\n20,60,70,x\n40,80,90,y\n")
    ran = cloister("data", "encrypt", table, *to())
    assert ran.code == 0, ran
    assert "smallest and largest" in ran.err
    np.savez(tmp_path / "b.npz", x=np.linspace(0, 3, 12).reshape(4, 3), y=np.arange(4) % 2)
    ran = cloister("data", "encrypt", tmp_path / "b.npz", *to(out="other.cloister"))
    assert ran.code == 0, ran
    assert "0 to 3, becomes public" in ran.err


def test_bad_input_adds_nothing(cloister, refused, authority, to, pixels, tmp_path):
    path, x = pixels
    assert cloister("data", "encrypt", path, *to()).code == 0
    file = tmp_path / "set.cloister"
    before = file.read_bytes()
    np.savez(tmp_path / "wide.npz", x=x.reshape(30, 2, 3, 1), y=np.zeros(30, int))
    np.savez(tmp_path / "nan.npz", x=np.full((3, 3, 2, 1), np.nan), y=np.zeros(3, int))
    np.savez(tmp_path / "class.npz", x=x, y=np.full(30, 3))
    assert "samples (3, 2, 1), these are (2, 3, 1)" in refused(
        "data", "encrypt", tmp_path / "wide.npz", *to()
    )
    assert "class '3'" in refused("data", "encrypt", tmp_path / "class.npz", *to())
    np.savez(tmp_path / "values.npz", x=np.ones((3, 3, 2, 1)), y=np.zeros(3, int))
    message = refused("data", "encrypt", tmp_path / "values.npz", *to())
    assert "holds pixels of 0 to 255, these are values that are no pixels" in message
    assert "3 of 3 samples hold NaN" in refused("data", "encrypt", tmp_path / "nan.npz", *to())
    assert "NaN" in refused("data", "encrypt", tmp_path / "nan.npz", *to(out="new.cloister"))
    assert "role client" in refused("data", "encrypt", path, *to(role="server"))
    assert "token" in refused("data", "encrypt", path, *to()[:-4], "--token", "x", "--out", file)
    assert "data set second is not known" in refused(
        "data", "encrypt", path, *to(), "--name", "second"
    )
    with Authority.create(tmp_path / "other", rng=SystemRandom()):
        wrong = to(public=tmp_path / "other" / PUBLIC_FILE)
        assert "another certificate" in refused("data", "encrypt", path, *wrong)
    assert "--split" in refused("data", "encrypt", path, *to(), "--split", "half")
    both = ("--split", "train", "--test-fraction", 0.5)
    assert "leave out --test-fraction" in refused("data", "encrypt", path, *to(), *both)
    assert file.read_bytes() == before
    file.write_bytes(before[:-300])
    with pytest.raises(Exception, match="truncated"):
        EncryptedDataset.open(file)


def test_paper_mode_and_budgets_are_the_owner_s_words(cloister, refused, authority, to, pixels):
    path, _ = pixels
    agreed = PAPER
    wrong = (
        (agreed[:2], "--allow-unbounded-leakage"),
        (agreed[2:], "privacy strict: privacy paper gives every sample away"),
        ((*agreed, "--value-bits", 8), "privacy paper has no limits"),
        (("--privacy", "budget=-1"), "privacy budget=-1: give strict|budget=N|paper"),
        (("--privacy", "budgeted"), "privacy budgeted: give strict|budget=N|paper"),
    )
    for options, message in wrong:
        assert message in refused("data", "encrypt", path, *to(out="paper.cloister"), *options)
    assert authority.datasets() == ()
    made = cloister("data", "encrypt", path, *to(out="paper.cloister"), *agreed)
    assert made.code == 0, made
    assert "no budget (mode paper): a training server can learn every value" in made.out
    assert authority.describe("paper").mode == "paper"
    # Whoever adds to it has to agree as well.
    found = refused("data", "encrypt", path, *to(out="paper.cloister"))
    assert f"mode paper instead of the default budgeted ({' '.join(agreed)})" in found
    assert cloister("data", "encrypt", path, *to(out="paper.cloister"), *agreed).code == 0
    made = cloister(
        "data",
        "encrypt",
        path,
        *to(),
        "--privacy",
        "budget=2",
        "--max-bits",
        40,
        "--labels-to",
        "trusted",
    )
    assert made.code == 0, made
    assert authority.describe("set").budget_rank == 2
    terms = authority.terms("set")
    assert (terms.max_bits, terms.labels_to_server) == (40, False)
    found = refused("data", "encrypt", path, *to(), "--privacy", "budget=1", "--max-bits", 50)
    assert (
        "set gives away more than you agreed to: budget 2 instead of 1 (--privacy budget=2);"
        in found
    )
    found = refused("data", "encrypt", path, *to(), "--privacy", "budget=3", "--max-bits", 30)
    assert "agreed to: bits of a sample 40 instead of 30 (--max-bits 40);" in found
    assert (
        cloister("data", "encrypt", path, *to(), "--privacy", "budget=3", "--max-bits", 50).code
        == 0
    )


PAPER = ("--privacy", "paper", "--allow-unbounded-leakage")
WEAK = {
    "encoding": ("--bits", 12),
    "budget_rank": ("--privacy", "budget=5"),
    "max_bits": ("--max-bits", 1000),
    "value_bits": ("--value-bits", 32),
    "one_function": ("--many-functions",),
    "mode": PAPER,
    "labels_to_server": ("--labels-to", "server"),
    "evaluations": ("--labels-to", "trusted", "--evaluations", 5),
}
"""The option by which a first client gives away more, for every term."""


@pytest.fixture
def values(tmp_path):
    path = tmp_path / "values.npz"
    generator = np.random.default_rng(4)
    np.savez(path, x=generator.random((6, 4, 2)), y=np.arange(6) % 2)
    return path


@pytest.mark.parametrize("term", EXPOSURE)
def test_a_first_client_decides_no_term_for_those_who_did_not_ask_for_it(
    cloister, refused, authority, to, values, tmp_path, term
):
    weak = WEAK[term]
    # Labels go to the server by default: that is beyond what a client asks for who says otherwise.
    of_labels = term in ("labels_to_server", "evaluations")
    ours = ("--labels-to", "trusted") if of_labels else ()
    assert cloister("data", "encrypt", values, *to(), "--range", "0,1", *weak).code == 0
    before = (tmp_path / "set.cloister").read_bytes()
    found = refused("data", "encrypt", values, *to(), *ours)
    option = " ".join(str(word) for word in WEAK[term])
    assert "data set set gives away more than you agreed to: " in found
    assert f"({option})" in found
    assert ("the default" in found) == (not ours)
    assert (tmp_path / "set.cloister").read_bytes() == before
    assert len(authority.parts("set")) == 1
    # What the message names is enough.
    assert cloister("data", "encrypt", values, *to(), *weak).code == 0
    assert len(authority.parts("set")) == 2


def test_all_terms_that_are_weak_are_named_at_once(cloister, refused, authority, to, values):
    weak = ("--privacy", "budget=8", "--value-bits", 32, "--max-bits", 1000000)
    assert cloister("data", "encrypt", values, *to(), "--range", "0,1", *weak).code == 0
    found = refused("data", "encrypt", values, *to())
    for text in (
        "budget 8 instead of the default 2 (--privacy budget=8)",
        "bits of a value 32 instead of the default 8 (--value-bits 32)",
        "bits of a sample 1000000 instead of the default 16 (--max-bits 1000000)",
    ):
        assert text in found
    assert authority.describe("set").samples == 6


def test_a_larger_budget_is_agreed_to_with_the_bits_that_follow_from_it(
    cloister, refused, to, values
):
    assert (
        cloister("data", "encrypt", values, *to(), "--range", "0,1", "--privacy", "budget=8").code
        == 0
    )
    found = refused("data", "encrypt", values, *to())
    assert "agreed to: budget 8 instead of the default 2 (--privacy budget=8); agree with" in found
    assert cloister("data", "encrypt", values, *to(), "--privacy", "budget=8").code == 0


def test_terms_that_give_away_less_need_no_word(cloister, to, values):
    strict = (
        "--range", "0,1", "--bits", 6, "--privacy", "budget=1", "--max-bits", 5, "--value-bits", 5,
        "--labels-to", "trusted",
    )  # fmt: skip
    assert cloister("data", "encrypt", values, *to(), *strict).code == 0
    assert cloister("data", "encrypt", values, *to()).code == 0
    assert (
        cloister(
            "data",
            "encrypt",
            values,
            *to(),
            "--privacy",
            "budget=2",
            "--bits",
            7,
            "--many-functions",
        ).code
        == 0
    )


def test_a_range_that_is_asked_for_is_the_one_that_is_used(cloister, refused, to, values):
    assert cloister("data", "encrypt", values, *to(), "--range", "0,2").code == 0
    assert "set holds 0 to 2; drop --range" in refused(
        "data", "encrypt", values, *to(), "--range", "0,1"
    )
    assert cloister("data", "encrypt", values, *to(), "--range", "0,2").code == 0


def test_every_term_can_be_said():
    assert set(proposal.FIELDS) == set(EXPOSURE) == set(WEAK)


def test_a_file_s_header_decides_nothing(cloister, refused, authority, to, values, tmp_path):
    """It is written by nobody in particular: terms and encoding are those of the authority."""
    assert cloister("data", "encrypt", values, *to(), "--range", "0,1").code == 0
    file = tmp_path / "set.cloister"
    whole = file.read_bytes()
    header = EncryptedDataset.open(file).header
    for change in (
        {"encoding": replace(header.encoding, bits=16)},
        {"encoding": replace(header.encoding, scale=1.0)},
        {"classes": 3},
        {"shape": (2, 4, 1)},
        {"authority_fingerprint": "0" * 64},
    ):
        block = bytearray(whole[: datasets.BLOCK_BYTES])
        lied = datasets.encode_block(replace(header, **change))
        block[datasets.HEADER_OFFSET :] = lied[datasets.HEADER_OFFSET :]
        altered = bytes(block) + whole[datasets.BLOCK_BYTES :]
        file.write_bytes(altered)
        assert "choose another file" in refused("data", "encrypt", values, *to())
        assert file.read_bytes() == altered
    assert authority.describe("set").samples == 6


def test_a_token_from_a_file(cloister, refused, to, pixels, tmp_path):
    path, _ = pixels
    options = list(to())
    files.create(tmp_path / "token", (options[5] + "\n").encode(), private=True)
    options[5] = f"@{tmp_path / 'token'}"
    assert cloister("data", "encrypt", path, *options).code == 0
    options[5] = f"@{tmp_path / 'absent'}"
    assert f"{tmp_path / 'absent'}: holds no token" in refused("data", "encrypt", path, *options)
    options[5] = str(tmp_path / "token")
    assert f"give --token @{tmp_path / 'token'}" in refused("data", "encrypt", path, *options)
    for other in ("x" * 5000, "\x00", ""):
        options[5] = other
        assert "token" in refused("data", "encrypt", path, *options)


def test_a_budget_of_a_whole_sample_is_said(cloister, to, pixels):
    path, _ = pixels
    whole = cloister("data", "encrypt", path, *to(), "--privacy", "budget=6")
    assert whole.code == 0, whole
    assert "a budget of 6 is a whole sample: a training server may get values" in whole.err
    part = cloister("data", "encrypt", path, *to(out="b.cloister"), "--privacy", "budget=5")
    assert "is a whole sample" not in part.err


def test_defaults_bound_bits_and_functions(cloister, refused, authority, to, pixels, tmp_path):
    path, _ = pixels
    made = cloister("data", "encrypt", path, *to(), "--privacy", "budget=2")
    assert made.code == 0, made
    assert "values of 8 bits of one function, at most 16 bits" in made.out
    found = refused("data", "encrypt", path, *to(), "--privacy", "budget=2", "--value-bits", 4)
    assert "agreed to: bits of a value 8 instead of 4 (--value-bits 8);" in found
    bits = ("--value-bits", 32, "--max-bits", 64)
    loose = (*to(out="loose.cloister"), *bits, "--many-functions")
    made = cloister("data", "encrypt", path, *loose)
    assert made.code == 0, made
    assert "exact of any functions" in made.out
    # Whoever adds to it has to agree as well.
    found = refused("data", "encrypt", path, *to(out="loose.cloister"))
    assert "bits of a value 32 instead of the default 8 (--value-bits 32)" in found
    assert "functions many instead of the default one (--many-functions)" in found
    assert cloister("data", "encrypt", path, *loose, "--again").code == 0
    x = np.zeros((3, 16, 20), np.uint8)
    np.savez(tmp_path / "pictures.npz", x=x, y=np.arange(3))
    assert cloister("data", "encrypt", tmp_path / "pictures.npz", *to(out="p.cloister")).code == 0
    assert authority.describe("p").budget_rank == 16 * 20 // 16


def test_the_owner_can_keep_the_order(cloister, refused, authority, to, pixels, tmp_path):
    path, x = pixels
    kept = tmp_path / "order.npz"
    assert cloister("data", "encrypt", path, *to()).code == 0
    made = cloister("data", "encrypt", path, *to(), "--order", kept)
    assert made.code == 0, made
    assert "keep it to yourself" in made.err
    assert kept.stat().st_mode & 0o777 == 0o600
    opened, plain, _ = decrypted(authority, tmp_path / "set.cloister")
    with np.load(kept) as found:
        assert found["ids"].tolist() == list(range(30, 60))
        assert sorted(found["rows"].tolist()) == list(range(30))
        np.testing.assert_array_equal(np.rint(plain[30:] * 255).astype(np.uint8), x[found["rows"]])
        np.testing.assert_array_equal(opened.encoding.decode(found["x"]), plain[30:])
        np.testing.assert_array_equal(found["y"], found["rows"] % 3)
    assert "exists" in refused("data", "encrypt", path, *to(), "--order", kept)
    assert ".npz" in refused("data", "encrypt", path, *to(), "--order", tmp_path / "order.csv")


def test_noise_on_samples_is_added_and_stated(cloister, refused, authority, to, pixels, tmp_path):
    pytest.importorskip("dp_accounting")
    path, x = pixels
    assert "sigma" in refused("data", "encrypt", path, *to(), "--noise", -1)
    assert authority.datasets() == ()
    order = tmp_path / "order.npz"
    with same_draws():
        made = cloister("data", "encrypt", path, *to(), "--noise", 0.5, "--order", order)
    assert made.code == 0, made
    assert "epsilon" in made.out
    assert "labels are not covered" in made.out
    _, plain, _ = decrypted(authority, tmp_path / "set.cloister")
    with np.load(order) as found:
        # The order keeps what was meant, not what was made of it.
        original = x[found["rows"]] / 255.0
        assert np.abs(found["x"] / 254.0 + 0.5 - original).max() < 0.01
    # Cut at the ends of the encoding, which for pixels reach half a range beyond.
    assert 0.3 < (plain - original).std() < 1
    assert (plain.min(), plain.max()) == pytest.approx((-0.5, 1.5), abs=0.01)


@pytest.mark.parametrize("notes", [
    "", "[" * 60000, "7", '{"kind":"table"}', '{"classes":7,"kind":"table"}',
    *('{"classes":["a","b","c"],"kind":"table","columns":' + columns + "}" for columns in (
        "7", "[7]", '["age"]', "[{}]", '[{"name":"age","kind":"number"}]',
        '[{"name":"age","kind":"text","low":0,"high":1}]',
        '[{"name":7,"kind":"number","low":0,"high":1}]',
        '[{"name":"","kind":"number","low":0,"high":1}]',
        '[{"name":"age","kind":"number","low":1,"high":0}]',
        '[{"name":"age","kind":"number","low":NaN,"high":0}]',
        '[{"name":"age","kind":"number","low":0,"high":1' + 400 * "0" + "}]",
        '[{"name":"age","kind":"number","low":0,"high":1,"fill":2}]',
        '[{"name":"age","kind":"number","low":0,"high":1,"fill":"0"}]',
        '[{"name":"sex","kind":"category","values":[]}]',
        '[{"name":"sex","kind":"category","values":["f","f"]}]',
        '[{"name":"sex","kind":"category","values":["f",""]}]',
        '[{"name":"sex","kind":"category","values":["f",1]}]',
        '[{"name":"sex","kind":"category","values":["f"],"fill":"m"}]',
        '[{"name":"sex","kind":"category","values":["f"],"fill":0}]',
    )),
])  # fmt: skip
def test_notes_of_another_client_are_read_or_refused(notes):
    info = DatasetInfo("set", (1, 1, 4), 3, Encoding(1.0, 0.0, 8), 0, 1)
    with pytest.raises(
        EncryptionError, match="data set set: was not made by `cloister data encrypt`"
    ):
        Notes.read(notes, info)


def folder(root, **classes):
    for name, arrays in classes.items():
        (root / name).mkdir(parents=True)
        for i, array in enumerate(arrays):
            Image.fromarray(array).save(root / name / f"{i}.png")
    return root


def test_pictures_of_several_kinds_are_brought_to_one(cloister, refused, authority, to, tmp_path):
    generator = np.random.default_rng(4)
    sizes = [generator.integers(0, 256, (20 + i, 18), dtype=np.uint8) for i in range(4)]
    colour = generator.integers(0, 256, (20, 18, 3), dtype=np.uint8)
    glass = generator.integers(0, 256, (20, 18, 4), dtype=np.uint8)
    root = folder(tmp_path / "scans", sick=[*sizes, glass], well=[*sizes[:2], colour])
    (root / "sick" / "notes.txt").write_text("x")
    message = refused("data", "encrypt", root, *to())
    assert "sick/4.png: has transparent pixels" in message
    assert "--background COLOUR" in message
    assert "--resize HEIGHT,WIDTH" in message
    assert "--channels gray or rgb" in message
    options = ("--resize", "16,16", "--channels", "gray", "--background", "black")
    ran = cloister("data", "encrypt", root, *to(), *options, "--json")
    assert ran.code == 0
    (part,) = json.loads(ran.out)["parts"]
    assert part["remarks"] == [
        "2 samples repeat others of the same source (samples 5, 6)",
        "files: 1 skipped (sick/notes.txt)", "pictures that --resize changed: 8",
        "pictures that --channels changed: 2",
    ]  # fmt: skip
    assert EncryptedDataset.open(tmp_path / "set.cloister").shape == (16, 16, 1)
    assert "--channels bgr" in refused("data", "encrypt", root, *to(), "--channels", "bgr")
    assert "give height,width" in refused("data", "encrypt", root, *to(), "--resize", "16")


def test_a_value_beyond_the_range_names_its_picture(cloister, refused, to, tmp_path):
    scans = np.full((4, 4, 5), 1000, np.uint16)
    root = folder(tmp_path / "scans", sick=scans[:2], well=scans[2:])
    options = ("--range", "0,4095", "--bits", "12")
    assert cloister("data", "encrypt", root, *to(), *options).code == 0
    scans[3, 2, 4] = 5000
    other = folder(tmp_path / "others", sick=scans[:2], well=scans[2:])
    message = refused("data", "encrypt", other, *to(), "--bits", "12")
    assert "well/1.png, element (2, 4, 0): the value is outside" in message
    single = folder(tmp_path / "one", sick=np.zeros((2, 4, 4), np.uint8))
    assert "name all of them (--classes)" in refused(
        "data", "encrypt", single, *to(out="new.cloister")
    )


def test_options_about_other_files_are_refused(refused, to, pixels, tmp_path):
    path, _ = pixels
    assert "are about pictures" in refused("data", "encrypt", path, *to(), "--resize", "4,4")
    root = folder(tmp_path / "scans", sick=[np.zeros((4, 4), np.uint8)])
    assert "is about arrays" in refused("data", "encrypt", root, *to(), "--layout", "nchw")
