"""`cloister license`, and runs of a bundle whose outputs a ticket buys."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from attest.tpm_server import swtpm  # noqa: F401
from cloister.base.rng import SystemRandom
from cloister.bundle.bundle_keys import create_keys, load_content_key, load_vendor
from cloister.examples.digits_demo import model_file
from cloister.tickets.local_meter import local_meter_key
from cloister.tickets.output_release import commitment
from cloister.tickets.receipt import Receipt, receipt_signer
from cloister.tickets.ticket import CounterKind, Ticket

DIGITS = Path(__file__).parents[2] / "examples/digits"
RUN = ("run", "digits.bundle", "digits", "--vendor", "vendor/vendor.pub", "--key",
       "vendor/content.key")  # fmt: skip
METERED = (*RUN, "--ticket", "acme.lic", "--meter", "meter", "--insecure-file-counter", "count")
ISSUE = (
    "license", "issue", "acme.lic", "--bundle", "digits.bundle", "--signer", "vendor/vendor.key",
    "--license", "acme-7", "--not-after", "2999-12-31T00:00Z",
)  # fmt: skip
LOCAL = (*ISSUE, "--outputs", "label", "--quota", "25", "--insecure-file-counter")
SHOW = ("license", "show", "acme.lic", "--vendor", "vendor/vendor.pub")
BROKER = "3f" * 32


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A vendor's keys and bundle; one of another customer too."""
    pytest.importorskip("ziglang")
    from cloister.cli.main import main

    folder = tmp_path_factory.mktemp("vendor")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with model_file() as path:
            shutil.copy(path, "digits.onnx")
        shutil.copytree(DIGITS, "digits")
        for vendor in ("vendor", "other"):
            create_keys(Path(vendor), rng=SystemRandom())
        for command in (
            "plan digits.onnx --last 2 --calibration digits --out vendor/digits.plan",
            *(f"bundle seal vendor/digits.module --plan vendor/digits.plan --key "
              f"vendor/content.key --signer vendor/vendor.key --out {name}.bundle"
              for name in ("digits", "another")),
        ):  # fmt: skip
            assert main(command.split()) == 0
    return folder


@pytest.fixture
def customer(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def issued() -> Ticket:
    return Ticket.read(Path("acme.lic"), vendor=load_vendor(Path("vendor/vendor.pub")))


def found(ran) -> dict:
    assert ran.code == 0, ran
    return json.loads(ran.out)


def refused(ran, code: int = 2) -> str:
    assert ran.code == code, ran
    return ran.err.splitlines()[-1]


# ---- issue


def test_a_ticket_says_what_was_asked_for(cloister, customer):
    ran = cloister(*ISSUE, "--outputs", "top-k", "--top", 3, "--serials", "1001-1100", "--quota",
                   50, "--not-before", "2026-01-01T00:00Z", "--broker", BROKER)  # fmt: skip
    assert ran.code == 0, ran
    ticket = issued()
    assert (ticket.license, ticket.first_serial, ticket.last_serial) == ("acme-7", 1001, 1100)
    assert (ticket.quota, ticket.outputs, ticket.top) == (50, "top-k", 3)
    assert (ticket.not_before, ticket.not_after) == (1767225600, 32503593600)
    assert ticket.broker == ticket.counter.identity == bytes.fromhex(BROKER)
    assert ticket.counter.kind is CounterKind.LEASE
    for line in ("outputs  50, each as top-k, the best 3 classes", "serials  1001 to 1100",
                 "valid    2026-01-01T00:00:00+00:00 to 2999-12-31T00:00:00+00:00",
                 f"counter  lease {BROKER} from 0 on"):  # fmt: skip
        assert line in ran.out
    assert Path("acme.lic").stat().st_mode & 0o777 == 0o600


def test_the_counter_of_a_tpm_is_named_with_its_value(cloister, customer):
    given = ("--outputs", "label", "--quota", 5, "--broker", BROKER)
    assert found(cloister(*ISSUE, *given, "--tpm-counter", "ab" * 32 + ":57", "--json"))
    rule = issued().counter
    assert (rule.kind, rule.identity, rule.start) == (CounterKind.TPM, bytes([0xAB]) * 32, 57)
    assert issued().broker == bytes.fromhex(BROKER)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--outputs", "label", "--quota", 5), "nothing meters the ticket"),
        (("--outputs", "label", "--insecure-file-counter"), "give --quota N, or --serials"),
        (("--outputs", "label", "--serials", "1-9", "--quota", 10, "--broker", BROKER),
         "quota 10: give 1 to 9"),
        (("--outputs", "label", "--serials", "9-1", "--broker", BROKER), "serials 9 to 1: no"),
        (("--outputs", "label", "--serials", "9", "--broker", BROKER), "give two numbers"),
        (("--outputs", "label", "--serials", f"1-{'9' * 30}", "--broker", BROKER), "two numbers"),
        (("--outputs", "top-k", "--quota", 5, "--broker", BROKER), "outputs top-k: give top"),
        (("--outputs", "label", "--top", 5, "--quota", 5, "--broker", BROKER), "top: goes with"),
        (("--outputs", "label", "--quota", 5, "--broker", "3f"), "--broker: has 1 bytes"),
        (("--outputs", "label", "--quota", 5, "--broker", "xyz"), "--broker: must be hexa"),
        (("--outputs", "label", "--quota", 5, "--tpm-counter", "3f" * 32), "a colon and its value"),
        (("--outputs", "label", "--quota", 5, "--tpm-counter", ":5"), "--tpm-counter: has 0 bytes"),
        (("--outputs", "label", "--quota", 5, "--tpm-counter", "3f" * 32 + ":5",
          "--insecure-file-counter"), "--tpm-counter: goes with no"),
        (("--outputs", "label", "--quota", 5, "--broker", BROKER, "--not-before", "3000-01-01"),
         "has no time zone"),
        (("--outputs", "label", "--quota", 5, "--broker", BROKER, "--not-before",
          "3000-01-01T00:00Z"), "not_after: expected a time behind not_before, 3000-01"),
        (("--outputs", "label", "--quota", 5, "--broker", BROKER, "--license", "a b"), "license: "),
        (("--outputs", "label", "--quota", 5, "--broker", BROKER, "--signer", "other/vendor.key"),
         "no valid signature of vendor"),
    ],
)  # fmt: skip
def test_a_ticket_that_could_not_be_used_is_not_issued(cloister, customer, more, message):
    assert message in refused(cloister(*ISSUE, *more))
    assert not Path("acme.lic").exists()


def test_no_ticket_is_replaced(cloister, customer):
    assert found(cloister(*LOCAL, "--json"))
    before = Path("acme.lic").read_bytes()
    assert "acme.lic: exists already; choose another name" in refused(cloister(*LOCAL))
    assert Path("acme.lic").read_bytes() == before


# ---- run


def test_a_run_spends_its_outputs_and_writes_a_receipt(cloister, customer):
    found(cloister(*LOCAL, "--json"))
    plain = found(cloister(*RUN, "--json"))
    first = found(cloister(*METERED, "--json", "--out", "out.npz"))
    assert first["report"]["inputs"] == 10
    for bought, free in zip(first["outputs"], plain["outputs"], strict=True):
        (label,), (scores,) = bought["values"].values(), free["values"].values()
        assert label == np.argmax(scores)
    ticket, key = issued(), load_content_key(Path("vendor/content.key"))
    public = receipt_signer(local_meter_key(key, ticket), ticket).public_key()
    path = Path(first["receipt"])
    receipt = Receipt.verify(path.read_bytes(), signer=public)
    assert receipt.serials == range(1, 11)
    assert first["receipt_key"] == public.public_bytes_raw().hex()
    with np.load("out.npz") as out:
        outputs = dict(out)
    opening = path.with_suffix(".opening")
    assert opening.stat().st_mode & 0o777 == 0o600
    assert receipt.commitment == commitment(outputs, opening.read_bytes())
    second = cloister(*METERED)
    assert second.code == 0, second
    assert "receipt meter/receipts/" in second.out
    assert "5 of its 25 outputs are left, and 10 are asked for" in refused(cloister(*METERED))


def test_a_run_of_another_bundle_or_without_the_counter_is_refused(cloister, customer):
    found(cloister(*LOCAL, "--json"))
    other = tuple("another.bundle" if one == "digits.bundle" else one for one in METERED)
    assert "acme-7: buys outputs of bundle" in refused(cloister(*other))
    assert "by a counter of kind insecure-file; name" in refused(cloister(*METERED[:-2]))
    assert "give --meter DIR" in refused(cloister(*METERED[:-4]))
    assert "--meter: goes with --ticket" in refused(cloister(*RUN, "--meter", "meter"))
    plain = ("run", "digits.onnx", "digits", "--ticket", "acme.lic")
    assert "--ticket: goes with a bundle" in refused(cloister(*plain))
    assert not Path("meter").exists()


def test_a_ticket_for_a_counter_of_another_kind_is_refused(cloister, customer):
    found(cloister(*ISSUE, "--outputs", "label", "--quota", 5, "--broker", BROKER, "--json"))
    assert "by a counter of kind lease, not insecure-file" in refused(cloister(*METERED))


def test_a_ticket_whose_time_is_over_is_refused(cloister, customer):
    over = tuple("2026-01-02T00:00Z" if one == "2999-12-31T00:00Z" else one for one in LOCAL)
    found(cloister(*over, "--not-before", "2026-01-01T00:00Z", "--json"))
    assert "expired; it was valid until 2026-01-02" in refused(cloister(*METERED))


def test_rollback_of_the_meter_is_refused_as_not_verified(cloister, customer):
    found(cloister(*LOCAL, "--json"))
    shutil.copytree("digits", "one")
    for path in list(Path("one").iterdir())[1:]:
        path.unlink()
    one = tuple("one" if given == "digits" else given for given in METERED)
    found(cloister(*one, "--json"))
    shutil.copytree("meter", "old")
    found(cloister(*one, "--json"))
    shutil.rmtree("meter")
    Path("old").rename("meter")
    message = refused(cloister(*one), code=3)
    assert "its ledger has 1 outputs, and 2 were released" in message


# ---- show


@pytest.fixture
def spent(cloister, customer):
    """Two runs of ten outputs each."""
    found(cloister(*LOCAL, "--json"))
    return [Path(found(cloister(*METERED, "--json"))["receipt"]) for _ in range(2)]


def key_of(ticket: Ticket) -> str:
    content = load_content_key(Path("vendor/content.key"))
    public: Ed25519PublicKey = receipt_signer(local_meter_key(content, ticket), ticket).public_key()
    return public.public_bytes_raw().hex()


def test_receipts_are_verified_offline(cloister, spent):
    ran = cloister(*SHOW, "--receipts", "meter/receipts", "--receipt-key", key_of(issued()))
    assert ran.code == 0, ran
    assert "receipts 2, of 20 of 25 outputs" in ran.out
    assert f"verified: meter {key_of(issued())} signed every receipt" in ran.out
    assert "not verified" not in ran.out
    ran = cloister(*SHOW, "--receipts", "meter/receipts")
    assert "not verified without --receipt-key" in ran.out
    for pinned in (False, True):
        named = ("--receipt-key", key_of(issued())) if pinned else ()
        told = cloister(*SHOW, "--receipts", "meter/receipts", *named, "--json")
        assert json.loads(told.out)["receipts"]["signer_pinned"] is pinned
    other = cloister(*SHOW, "--receipts", "meter/receipts", "--receipt-key", "00" * 32)
    assert "no valid signature of meter 0000" in refused(other)


def test_missing_and_changed_receipts_are_told(cloister, spent):
    first, second = spent
    kept = first.read_bytes()
    first.unlink()
    shown = found(cloister(*SHOW, "--receipts", "meter/receipts", "--json"))["receipts"]
    assert shown["gaps"] == [[1, 10]]
    assert shown["outputs"] == 10
    first.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    assert "no valid signature of meter" in refused(cloister(*SHOW, "--receipts", first.parent))
    first.write_bytes(kept)
    first.with_name("copy.receipt").write_bytes(second.read_bytes())
    shown = found(cloister(*SHOW, "--receipts", "meter/receipts", "--json"))["receipts"]
    assert [one["number"] for one in shown["receipts"]] == [1, 2]


def test_a_meter_shows_what_it_spent(cloister, spent):
    ran = cloister(*SHOW, "--meter", "meter", "--key", "vendor/content.key")
    assert ran.code == 0, ran
    assert "serials 1 to 10\n" in ran.out
    assert "serials 11 to 20\n" in ran.out
    assert "meter    20 of 25 outputs by its ledger" in ran.out
    other = cloister(*SHOW, "--meter", "meter", "--key", "other/content.key")
    assert "row 1 does not open" in refused(other, code=3)
    assert "is no meter" in refused(
        cloister(*SHOW, "--meter", "digits", "--key", "vendor/content.key")
    )
    assert not Path("digits/receipts.ledger").exists()


def test_without_a_vendor_nothing_is_verified(cloister, customer):
    found(cloister(*LOCAL, "--json"))
    ran = cloister("license", "show", "acme.lic")
    assert "acme.lic: not verified" in ran.out
    data = bytearray(Path("acme.lic").read_bytes())
    data[-1] ^= 1
    Path("acme.lic").write_bytes(data)
    assert found(cloister("license", "show", "acme.lic", "--json"))["verified"] is False
    assert "acme.lic: has no valid signature" in refused(cloister(*SHOW))
    assert "no valid signature" in refused(cloister(*METERED))


def test_two_tickets_of_one_licence_with_a_common_serial_are_refused(cloister, customer):
    for name, serials in (("a", "1-10"), ("b", "11-20"), ("c", "20-30")):
        ran = cloister("license", "issue", f"{name}.lic", *ISSUE[3:], "--outputs", "label",
                       "--serials", serials, "--insecure-file-counter", "--json")  # fmt: skip
        assert len(found(ran)["digest"]) == 64
    assert cloister("license", "show", "a.lic", "b.lic").code == 0
    assert "licence acme-7 has serial 20 twice" in refused(
        cloister("license", "show", "a.lic", "b.lic", "c.lic")
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--receipt-key", "00" * 32), "give --receipts DIR"),
        (("--meter", "meter"), "--meter and --key belong together"),
        (("--receipts", "digits"), "has no receipt"),
        (("--receipts", "nowhere"), "No such file"),
        (("acme.lic", "--receipts", "digits"), "are of one ticket"),
    ],
)
def test_options_of_show_that_mean_nothing_are_refused(cloister, customer, more, message):
    found(cloister(*LOCAL, "--json"))
    assert message in refused(cloister(*SHOW, *more))


# ---- a TPM


def test_outputs_counted_by_a_tpm(cloister, customer, swtpm):  # noqa: F811
    told = cloister("license", "counter", "--tpm", swtpm)
    identity, value = told.out.strip().split(":")
    assert found(cloister("license", "counter", "--tpm", swtpm, "--json")) == {
        "identity": identity, "value": int(value),
    }  # fmt: skip
    given = ("--outputs", "label", "--quota", 25, "--tpm-counter", told.out.strip())
    assert cloister(*ISSUE, *given).code == 0
    metered = (*METERED[:-2], "--tpm", swtpm)
    assert cloister(*metered).code == 0
    after = found(cloister("license", "counter", "--tpm", swtpm, "--json"))
    assert after["value"] == int(value) + 10
    shutil.copytree("meter", "copy")
    assert cloister(*metered).code == 0
    shutil.rmtree("meter")
    shutil.copytree("copy", "meter")
    assert "put back" in refused(cloister(*metered), 3)
    both = (*metered, "--insecure-file-counter", "count")
    assert "goes with no --tpm; one counter meters a ticket" in refused(cloister(*both))
    Path("acme.lic").unlink()
    assert cloister(*LOCAL).code == 0
    assert "by a counter of kind insecure-file, not tpm" in refused(cloister(*metered))


def test_a_tpm_that_is_not_there(cloister, customer):
    ran = cloister("license", "counter", "--tpm", "none")
    assert "counter none: none: No such file or directory" in refused(ran, 3)
    assert "--tpm: goes with --ticket" in refused(cloister(*RUN, "--tpm", "none"))
