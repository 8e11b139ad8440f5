"""`--until`, `--integrity` and `--audit` on the command line."""

import json

import numpy as np
import pytest

import cloister as cl
from cloister.cli.options import IntegrityName
from cloister.graph.split import split_points
from cloister.plan import policies, split_report
from cloister.plan.plan import Plan
from cloister.plan.protection import INTEGRITY
from cloister.wire.transcript import Transcript
from plan.split_reports import report_of

ORIGAMI = ("--policy", "origami")
ORT = ("--engine", "onnxruntime")


@pytest.fixture(scope="module")
def graph(model_file):
    return cl.load(model_file)


@pytest.fixture(scope="module")
def until(graph):
    """The only place to split the small model at."""
    (split,) = split_points(graph)
    return split.name


@pytest.fixture(scope="module")
def report(graph, until, tmp_path_factory):
    """A folder with a report that accepts the split."""
    return saved(graph, until, tmp_path_factory.mktemp("accepting"))


@pytest.fixture(scope="module")
def refusing(graph, tmp_path_factory):
    """A folder with a report that accepts none."""
    return saved(graph, None, tmp_path_factory.mktemp("refusing"))


def saved(graph, accepted, folder):
    samples = {name: np.ones((2, 3, 8, 6), np.float32) for name in graph.inputs}
    ranges = policies.measure_ranges("slalom", graph, calibration=samples)
    split_report.save(report_of(graph, accepted=accepted, ranges=ranges), folder)
    return folder


@pytest.fixture
def run(cloister, model_file, pictures, tmp_path):
    """`cloister run` on two pictures; the outputs, the document and the messages."""

    def run(*more, model=model_file, transcript=True):
        target, seen = tmp_path / "y.npz", tmp_path / "seen.npz"
        kept = ("--transcript", seen) if transcript else ()
        ran = cloister("run", model, *pictures[:2], "--out", target, "--json", *kept, *more)
        assert ran.code == 0, ran
        (found,) = np.load(target).values()
        messages = Transcript.load(seen).messages(direction="to_worker") if transcript else []
        return found, json.loads(ran.out), [message.dtype for message in messages]

    return run


def texts(told):
    return [statement["text"] for statement in told["claims"]["statements"]]


def test_the_options_values_are_the_librarys():
    assert [one.value for one in IntegrityName] == list(INTEGRITY)


@pytest.mark.parametrize(("integrity", "sent"), [
    ("full", [np.uint32, np.int16]), ("prefix", [np.uint32, np.float32]),
    ("none", [np.uint32, np.float32]),
])  # fmt: skip
def test_what_is_sent(run, until, integrity, sent):
    exact = run("--policy", "enclave", transcript=False)[0]
    found, told, seen = run(*ORIGAMI, "--until", until, "--integrity", integrity)
    np.testing.assert_allclose(found, exact, atol=0.03)
    assert seen == sent
    assert told["report"]["policy"] == INTEGRITY[integrity]
    assert told["calibration"].startswith(f"split after {until}; calibrated on the inputs")
    assert (told["report"]["soundness_bits"] is None) is (integrity == "none")
    assert any("no audit has measured it" in text for text in texts(told))
    named = run("--policy", INTEGRITY[integrity], "--until", until)[1]
    assert named["plan_digest"] == told["plan_digest"]


def test_everything_is_checked_by_default(run, until):
    told = run(*ORIGAMI, "--until", until)[1]
    assert told["report"]["policy"] == "origami"


def test_an_audit_chooses_the_split(run, until, report):
    told = run(*ORIGAMI, "--audit", report)[1]
    assert told["calibration"] == f"split after {until}; calibrated by the audit on images"
    digest = split_report.load(report).digest.hex()[:16]
    assert any(f"says report {digest}" in text for text in texts(told))
    for more in (("--until", "auto"), ("--until", until)):
        assert run(*ORIGAMI, "--audit", report, *more)[1]["plan_digest"] == told["plan_digest"]
    in_file = run(*ORIGAMI, "--audit", report / split_report.NAME)[1]
    assert in_file["plan_digest"] == told["plan_digest"]


def test_an_audit_that_accepts_none_says_so(run, cloister, model_file, pictures, refusing):
    _, told, seen = run(*ORIGAMI, "--audit", refusing, "--integrity", "prefix")
    assert told["calibration"].startswith("the audit accepts no split, so all layers are blinded;")
    assert seen == [np.uint32, np.uint32]
    assert told["report"]["policy"] == "origami-prefix"
    ran = cloister("run", model_file, pictures[0], *ORIGAMI, "--audit", refusing)
    assert "the audit accepts no split, so all layers are blinded; calibrated by" in ran.out


def test_other_samples_than_the_audits(run, report, pictures):
    told = run(*ORIGAMI, "--audit", report, "--calibration", pictures[0])[1]
    assert "calibrated on 1 sample of --calibration" in told["calibration"]


# ---- what is refused


@pytest.mark.parametrize("more", [(), ("--policy", "slalom"), ("--policy", "open")])
@pytest.mark.parametrize("option", ["--until", "--integrity", "--audit"])
def test_options_without_the_policy(refused, model_file, pictures, until, report, option, more):
    value = {"--until": until, "--integrity": "full", "--audit": report}[option]
    for verb in (
        ("run", model_file, pictures[0]), ("compare", model_file, pictures[0]),
        ("plan", model_file, "--out", "a.plan", "--calibration", pictures[0]),
        ("inspect", model_file), ("bench", "inference", model_file),
    ):  # fmt: skip
        message = refused(*verb, *more, option, value)
        assert message == f"error: {option}: goes with --policy origami; leave it out"


def test_an_unknown_integrity(cloister, model_file, pictures, until):
    ran = cloister(
        "run", model_file, pictures[0], *ORIGAMI, "--until", until, "--integrity", "some"
    )
    assert ran.code == 2
    assert "some" in ran.err


@pytest.mark.parametrize(("more", "said"), [
    ((), "no split is chosen: name the last node before it (--until NODE, until=)"),
    (("--until", "auto"), "no split is chosen"),
    (("--until", "pool9"), "node 'pool9': the model has none of that name; it can be split at "),
    (("--until", ""), "node '': the model has none of that name"),
    (("--audit", "nowhere"), "nowhere"),
])  # fmt: skip
def test_no_split(refused, model_file, pictures, more, said):
    message = refused("run", model_file, pictures[0], *ORIGAMI, *more)
    assert said in message


def test_a_split_that_is_no_cut(refused, model_file, pictures, graph):
    last = graph.nodes[-1].name
    message = refused("run", model_file, pictures[0], *ORIGAMI, "--until", last)
    assert message.endswith("no linear node is after it; use policy slalom")


def test_names_that_contradict(refused, model_file, pictures, until):
    given = ("--policy", "origami-none", "--until", until, "--integrity", "full")
    message = refused("run", model_file, pictures[0], *given)
    assert message.startswith("error: --integrity full: is policy origami, and --policy origami-no")


def test_a_report_of_another_model(refused, other_model_file, pictures, report):
    message = refused("run", other_model_file, pictures[0], *ORIGAMI, "--audit", report)
    assert "the audit is of the model" in message


def test_a_split_that_the_audit_refuses(refused, model_file, pictures, until, refusing):
    given = (*ORIGAMI, "--until", until, "--audit", refusing)
    message = refused("run", model_file, pictures[0], *given)
    assert f"the split at '{until}': the audit does not accept it: " in message


def test_a_report_that_was_edited(refused, model_file, pictures, report, tmp_path):
    text = (report / split_report.NAME).read_text(encoding="utf-8")
    edited = tmp_path / "report.json"
    assert text.count('"images"') >= 1
    edited.write_text(text.replace('"images": 200', '"images": 201'), encoding="utf-8")
    assert edited.read_text(encoding="utf-8") != text
    message = refused("run", model_file, pictures[0], *ORIGAMI, "--audit", edited)
    assert str(edited) in message


def test_samples_beside_an_audit(refused, model_file, pictures, report, tmp_path):
    message = refused(
        "plan", model_file, pictures[0], "--out", tmp_path / "a.plan", *ORIGAMI, "--audit", report
    )
    assert message.startswith("error: --audit: has the ranges of its data")


@pytest.mark.parametrize("more", [("--mean", "0.4"), ("--std", "0.5"), ("--scale", "1"),
                                  ("--channels", "bgr")])  # fmt: skip
def test_pictures_that_become_other_inputs_than_the_audits_are_refused(
    refused, model_file, pictures, report, more
):
    message = refused("run", model_file, pictures[0], *ORIGAMI, "--audit", report, *more)
    assert "the audit's inputs were made with mean 0 and std 1 of pixels in 0..1, rgb" in message


# ---- plans in files


@pytest.fixture
def stored(cloister, model_file, report, tmp_path):
    """A plan with a split that an audit accepted; no samples were named."""
    path = tmp_path / "split.plan"
    ran = cloister("plan", model_file, "--out", path, *ORIGAMI, "--audit", report)
    assert ran.code == 0, ran
    return path


def test_a_plan_in_a_file_has_its_split(run, stored, until, report):
    wanted = Plan.load(stored).digest.hex()
    named = ("--until", until)
    for more in (named, ("--audit", report), (*named, "--integrity", "full"), ("--digest", wanted)):
        assert run(*ORIGAMI, *more, model=stored)[1]["plan_digest"] == wanted


def test_a_file_that_nothing_pins_does_not_choose_the_split(refused, stored, pictures, until):
    """Its writer could show everything after the first layer, under the policy's name."""
    message = refused("run", stored, pictures[0], *ORIGAMI)
    assert f"is split at '{until}', which is its writer's choice; say --until {until}" in message


def test_its_audit_is_told_only_where_it_is_pinned(run, cloister, stored, until):
    """Whoever writes a plan's file can name any report."""
    plan = Plan.load(stored)
    name = plan.split.evidence.report.hex()[:16]
    told = run(*ORIGAMI, "--until", until, model=stored)[1]
    assert not any("pick the true image" in text for text in texts(told))
    assert any(
        f"the plan names report {name}, and no digest pins the plan" in t for t in texts(told)
    )
    digest = ("--digest", plan.digest.hex())
    assert told["calibration"].endswith(f", split after {until}")
    pinned = run(*digest, model=stored)[1]
    assert pinned["calibration"].endswith(f", split after {until}")
    assert any("pick the true image" in text for text in texts(pinned))
    shown = cloister("inspect", stored)
    assert "pick the true image" not in shown.out
    shown = cloister("inspect", stored, *digest)
    assert "pick the true image" in shown.out
    assert shown.out.startswith(f"split after {until}\n")
    told = json.loads(cloister("inspect", stored, "--json").out)
    assert told["split"] == f"split after {until}"


@pytest.mark.parametrize(("more", "said"), [
    ((), "is a plan of policy origami, and slalom is wanted"),
    ((*ORIGAMI, "--integrity", "none"), "is a plan of policy origami, and origami-none is wan"),
    (("--policy", "origami-prefix"), "is a plan of policy origami, and origami-prefix is wan"),
    ((*ORIGAMI, "--until", "auto"), "--until auto: the plan has its split already"),
    (("--until", "auto"), "--until: goes with --policy origami"),
])  # fmt: skip
def test_what_contradicts_a_plan_in_a_file(refused, stored, pictures, more, said):
    assert said in refused("run", stored, pictures[0], *more)


def test_a_plan_in_a_file_of_another_audit(refused, stored, pictures, refusing):
    message = refused("run", stored, pictures[0], *ORIGAMI, "--audit", refusing)
    assert "names report" in message
    message = refused("inspect", stored, "--policy", "origami", "--audit", refusing)
    assert "names report" in message


def test_an_unchecked_plan_passes_for_no_other(
    cloister, refused, model_file, until, pictures, tmp_path
):
    path = tmp_path / "none.plan"
    given = ("--policy", "origami", "--integrity", "none", "--until", until)
    made = cloister("plan", model_file, "--out", path, *given, "--calibration", pictures[0])
    assert made.code == 0
    for more in ((), ORIGAMI, ("--policy", "origami-prefix"), ("--policy", "blinded")):
        assert "is a plan of policy origami-none, and" in refused("run", path, pictures[0], *more)
    assert cloister("run", path, pictures[0], *given).code == 0


# ---- pad stores, hidden ends and the other verbs


def test_pads_of_a_split(cloister, refused, run, model_file, report, until, pictures, tmp_path):
    pads = (tmp_path / "pads", "--key", tmp_path / "pads.key")
    made = cloister("pads", "make", model_file, *pads, "--count", 4, *ORIGAMI, "--audit", report)
    assert made.code == 0, made
    assert f"split after {until}; calibrated by the audit" in made.out
    store = ("--pads", *pads)
    told = run(*store)[1]
    assert told["report"]["policy"] == "origami"
    assert told["report"]["pads_from"] == "store"
    message = refused("run", model_file, pictures[0], *store, "--policy", "origami-prefix")
    assert "the pad store: is a plan of policy origami, and origami-prefix is wanted" in message
    message = refused("run", model_file, pictures[0], *store, *ORIGAMI, "--until", "auto")
    assert "--until auto: the plan has its split already" in message


@pytest.mark.parametrize("integrity", INTEGRITY)
def test_a_split_before_a_hidden_end(
    cloister, refused, run, model_file, until, report, integrity, pictures
):
    """A model with two layers has no place for both: the message says so."""
    given = (*ORIGAMI, "--integrity", integrity, "--last", 1, *ORT)
    told = run(*given, "--audit", report)[1]
    assert told["report"]["policy"] == f"{INTEGRITY[integrity]}+ennclave"
    assert told["calibration"].startswith("the audit accepts no split, so all layers are blinded")
    message = refused("run", model_file, pictures[0], *given, "--until", until)
    assert "no linear node is after it; use policy slalom" in message


@pytest.mark.parametrize("integrity", INTEGRITY)
def test_compare(cloister, model_file, pictures, until, report, integrity):
    for more in (("--until", until), ("--audit", report)):
        given = (*ORIGAMI, "--integrity", integrity, *more)
        ran = cloister("compare", model_file, pictures[0], *given)
        assert ran.code == 0, ran
        assert f"split after {until}; calibrated" in ran.out


def test_inspect(cloister, model_file, until, report, refusing):
    rows = {}
    for name, more in (
        ("named", ("--until", until)), ("audited", ("--audit", report)),
        ("refused", ("--audit", refusing)),
    ):  # fmt: skip
        ran = cloister("inspect", model_file, *ORIGAMI, *more, "--json")
        assert ran.code == 0, ran
        rows[name] = json.loads(ran.out)
    assert rows["named"]["split"] == rows["audited"]["split"] == f"split after {until}"
    assert rows["refused"]["split"] == "the audit accepts no split, so all layers are blinded"
    kinds = {name: [node["protection"] for node in told["nodes"]] for name, told in rows.items()}
    assert kinds["named"] == kinds["audited"]
    assert "verified" in kinds["named"]
    assert "verified" not in kinds["refused"]
    assert cloister("inspect", model_file, *ORIGAMI, "--until", until).out.startswith("split after")


def test_a_digest_without_a_plan(refused, model_file):
    message = refused("inspect", model_file, "--digest", "00" * 32)
    assert message == "error: --digest: goes with a plan; leave it out"


def test_bench(cloister, model_file, until):
    ran = cloister(
        "bench", "inference", model_file, *ORIGAMI, "--until", until, "--repeats", 1, "--json"
    )
    assert ran.code == 0, ran
    told = json.loads(ran.out)
    assert (told["policy"], told["split"]) == ("origami", f"split after {until}")
