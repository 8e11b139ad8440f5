"""Claims against what is really sent: every interface is watched in runs of every mode."""

import inspect
import re
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from cloister.authority.client import AuthorityClient
from cloister.authority.key_service import KeyService
from cloister.authority.requests import KINDS, Request
from cloister.data.feature_noise import GaussianNoise
from cloister.plan.claims import Claims, Extent, Role, Strength, Verb, claims_of
from cloister.plan.maker_claims import with_makers
from cloister.plan.protection import BLINDED_VERIFIED
from cloister.training import ciphertext_service
from cloister.training.ciphertext_service import RemoteCiphertextServer
from cloister.training.ciphertexts import CiphertextServer, LocalCiphertextServer
from cloister.training.kept_model import kept_model
from cloister.training.sent import Content, sent, sent_by_prediction
from cloister.training.training_claims import CAN, TELLS, claims
from training.doubles import MemoryAuthority, MemoryDataset, blobs
from training.test_trainer import FROZEN, PAPER, SHAPE, TRUSTED, trainer
from trusted.test_transcript_is_uniform import ALARM, p_value

GUARDED = replace(FROZEN, first_layer="trainable")
CLEAN = replace(TRUSTED, first_layer="frozen")
OFFLOADING = replace(TRUSTED, offload_gradients=True)
NOISY = replace(TRUSTED, noise=GaussianNoise(4.0, "gradients"))
NOISY_OFFLOADING = replace(NOISY, offload_gradients=True)
MODES = pytest.mark.parametrize("settings", [
    PAPER, FROZEN, TRUSTED, CLEAN, OFFLOADING, NOISY, NOISY_OFFLOADING,
], ids=["paper", "frozen", "trusted", "trusted frozen", "offloading", "noisy",
        "noisy offloading"])  # fmt: skip
HOSTED = pytest.mark.parametrize("hosted", [False, True], ids=["local", "hosted"])
VALUES, LABELS, MODEL = "a sample's values", "labels", "the model"
# The interfaces' methods that a client or a command calls, not a run.
OF_CLIENTS = {"find", "register", "withdraw", "close"}


class Watched:
    """Passes every call on to another object, and keeps method and arguments."""

    def __init__(self, of):
        self._of, self.calls = of, []

    def __getattr__(self, name):
        found = getattr(self._of, name)
        if not callable(found):
            return found

        def call(*arguments, **more):
            # A request is known by its kind, and every other call by its method.
            self.calls.append((getattr(arguments[0], "kind", name), arguments))
            return found(*arguments, **more)

        return call


class Log:
    """A recorder in memory."""

    def __init__(self):
        self.kept = []

    def append(self, release):
        self.kept.append(release)


def dense():
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 3))


def watched_run(settings, folder, *, hosted, epochs=2):
    """A run with evaluation and checkpoints; what crossed each interface."""
    x, y, encoding = blobs(60, SHAPE)
    dataset = MemoryDataset(x, y, encoding=encoding)
    authority = Watched(MemoryAuthority(dataset, mode=settings.mode))
    host = Watched(LocalCiphertextServer(dataset)) if hosted else None
    log = Log()
    made, _, _ = trainer(
        settings, model=dense(), n=60, authority=authority, server=host, checkpoint_dir=folder,
        release_log=log,
    )  # fmt: skip
    made.fit(epochs)
    kept_model(made, name="dense", authority="f" * 64, clients="c" * 64).save(folder / "model")
    return made, {
        Role.AUTHORITY: authority.calls,
        Role.CIPHERTEXT_HOST: [] if host is None else host.calls,
        Role.SERVER: [(release.kind, (release.request,)) for release in log.kept],
        Role.FOLDER: [(path.name, ()) for path in folder.iterdir() if path.is_file()],
        Role.HOLDER: [
            (re.sub("-[0-9a-f]{16}", "-*", path.name), ()) for path in (folder / "model").iterdir()
        ],
    }


def functions(calls, kind):
    """The different integer arrays that were sent with this kind of request."""
    return {arguments[0].operand.tobytes() for sent, arguments in calls if sent == kind}


@MODES
@HOSTED
def test_whatever_is_sent_is_listed(settings, hosted, tmp_path):
    made, crossed = watched_run(settings, tmp_path, hosted=hosted)
    rows = sent(made.settings, hosted=made.hosted)
    for role, calls in crossed.items():
        listed = {row.kind: row.carries for row in rows if row.role is role}
        assert {kind for kind, _ in calls} <= set(listed), role
        # Integers that change from step to step follow from samples; only a projection does not.
        if len(functions(calls, "forward")) > 1:
            assert {Content.WEIGHTS, Content.VALUES} & set(listed["forward"]), role
        if functions(calls, "gradient"):
            assert {Content.OUTPUT_GRADIENTS, Content.VALUES} & set(listed["gradient"]), role
    assert crossed[Role.AUTHORITY]
    assert bool(crossed[Role.CIPHERTEXT_HOST]) is hosted
    assert bool(crossed[Role.SERVER]) is (settings.unblind_to == "server")
    assert crossed[Role.FOLDER]
    assert len(crossed[Role.HOLDER]) == 4


def methods(interface):
    return {
        name for name, member in inspect.getmembers(interface, callable) if not name.startswith("_")
    }


def test_every_method_of_an_interface_is_listed():
    """A new request to authority or host has no claim before it has a row."""
    rows = [
        row
        for settings in (PAPER, FROZEN, TRUSTED, CLEAN, OFFLOADING)
        for row in (
            *sent(settings, hosted=True),
            *sent_by_prediction(settings, hosted=True, answers_to="client", evaluates=True),
        )
    ]
    kinds = {role: {row.kind for row in rows if row.role is role} for role in Role}
    requests = {kind.kind for kind in get_args(Request)}
    assert requests == set(KINDS)
    assert methods(KeyService) - {"ask"} | requests <= kinds[Role.AUTHORITY]
    assert methods(AuthorityClient) - OF_CLIENTS - {"ask"} | requests == kinds[Role.AUTHORITY]
    assert set(ciphertext_service.OPERATIONS) == kinds[Role.CIPHERTEXT_HOST] - {"data set file"}
    assert methods(RemoteCiphertextServer) - {"close"} == methods(CiphertextServer) == {"ask"}


def test_every_content_tells_something():
    assert set(TELLS) == set(Content)


def learned(made):
    """What is learned of a run, by role and thing."""
    statements = claims(made, epochs=2).statements
    return {(one.role, one.about): one for one in statements if one.verb is Verb.LEARNS}


def table(settings, *, hosted=False):
    x, y, encoding = blobs(60, SHAPE)
    dataset = MemoryDataset(x, y, encoding=encoding)
    server = LocalCiphertextServer(dataset) if hosted else None
    made, _, _ = trainer(settings, model=dense(), n=60, server=server)
    return learned(made)


@MODES
@HOSTED
def test_nothing_may_be_said_only_where_nothing_is_sent(settings, hosted):
    """A party that is sent what follows from samples is never said to learn nothing of them."""
    found = table(settings, hosted=hosted)
    telling = {Content.WEIGHTS, Content.OUTPUT_GRADIENTS, Content.VALUES, Content.FIXED_VALUES,
               Content.FEATURES, Content.MODEL, Content.RUN}  # fmt: skip
    for row in sent(settings, hosted=hosted):
        claim = found[row.role.value, VALUES]
        if telling & set(row.carries):
            assert claim.extent != "nothing", claim
        if claim.extent == "nothing":
            assert claim.assumes, claim
    said = [claim for claim in found.values() if claim.about == VALUES]
    assert {claim.extent for claim in said} <= {"nothing", "bounded", "everything"}


@MODES
def test_every_role_of_a_run_learns_something_and_can_do_something(settings):
    made, _, _ = trainer(settings, model=dense(), n=60)
    found = claims(made, epochs=2)
    assert Claims.from_dict(found.to_dict()) == found
    assert set(dict.fromkeys(one.role for one in found.statements)) == {
        row.role for row in sent(settings, hosted=False)
    }
    for role in CAN:
        if found.of(role, Verb.LEARNS):
            assert found.of(role, Verb.CAN)
    # Whatever shows samples is said to, and nothing is called proved that only attacks show.
    for one in found.statements:
        assert (one.strength is Strength.EMPIRICAL) <= (one.extent is Extent.EVERYTHING)


def test_whoever_holds_ciphertexts_alone_holds_uniform_words():
    """Another client is sent the file: it is said to learn nothing of it."""
    x, y, encoding = blobs(60, SHAPE)
    dataset = MemoryDataset(np.zeros_like(x), y, encoding=encoding)
    ids = np.arange(60)
    assert p_value(dataset.data(ids)) > ALARM
    assert p_value(dataset.labels(ids)) > ALARM
    client = table(FROZEN)[Role.CLIENT, VALUES]
    assert client.extent is Extent.NOTHING
    assert "every ciphertext is uniformly random" in client.text


def test_inference_and_training_know_every_role():
    inference = claims_of("slalom", {"a": BLINDED_VERIFIED})
    with_pads = with_makers(inference, one_party=False, encrypted=True).statements
    training = (row for settings in (PAPER, TRUSTED) for row in sent(settings, hosted=True))
    using = sent_by_prediction(PAPER, hosted=True, answers_to="client", evaluates=True)
    assert {one.role for one in (*with_pads, *training, *using)} == set(Role)


def test_claims_follow_the_settings():
    paper, frozen, budgeted = table(PAPER), table(FROZEN), table(GUARDED)
    server = ("training server", VALUES)
    assert [t[server].extent for t in (paper, frozen, budgeted)] == [
        "everything", "bounded", "bounded",
    ]  # fmt: skip
    assert "7 fixed linear functions of 30 values" in frozen[server].text
    assert "beyond, the authority refuses" in budgeted[server].text
    for found in (paper, frozen):
        assert found["training server", LABELS].extent == "everything"
        assert found["training server", MODEL].extent == "everything"
        assert ("ciphertext host", VALUES) not in found
        assert found["network", VALUES].extent == "nothing"
        assert found["another client", VALUES].extent == "nothing"
    assert frozen["holder of the model", VALUES].extent == "bounded"
    assert table(TRUSTED)["trusted runtime", VALUES].extent == "everything"


@pytest.mark.parametrize("settings", [FROZEN, GUARDED, CLEAN], ids=["frozen", "budgeted", "clean"])
def test_a_bound_that_binds_nothing_is_none(settings):
    """As many independent functions as a sample has values are the sample."""
    x, y, encoding = blobs(60, SHAPE)
    dataset = MemoryDataset(x, y, encoding=encoding)
    authority = MemoryAuthority(dataset, mode="budgeted", budget_rank=30)
    made, _, _ = trainer(replace(settings, rank=None), model=dense(), n=60, authority=authority)
    found = learned(made)
    parties = ["holder of the model", "reader of --checkpoint"]
    if settings is not CLEAN:
        parties.append("training server")
    for party in parties:
        assert found[party, VALUES].extent == "everything", party


def test_only_a_frozen_first_layer_hides_everything_from_a_host():
    trusted, clean = table(TRUSTED, hosted=True), table(CLEAN, hosted=True)
    host = ("ciphertext host", VALUES)
    assert trusted[host].extent == "everything"
    assert "differences of the weights are gradients" in trusted[host].text
    for about in (VALUES, LABELS, MODEL):
        assert clean["ciphertext host", about].extent == "nothing"
    assert table(OFFLOADING, hosted=True)["ciphertext host", LABELS].extent == "everything"


def test_the_authority_is_sent_gradients_too():
    """It has no ciphertext, and needs none: weights before and after, and who moved them how."""
    for settings in (PAPER, GUARDED, TRUSTED, NOISY):
        claim = table(settings)["authority", VALUES]
        assert claim.extent == "everything"
        assert "linear system for the batch" in claim.text
    for settings in (FROZEN, CLEAN):
        claim = table(settings)["authority", VALUES]
        assert claim.extent == "nothing"
        assert "never holds the data set file" in claim.assumes


def test_noise_bounds_what_weights_tell_and_nothing_else():
    found = table(NOISY, hosted=True)
    for party in ("ciphertext host", "holder of the model"):
        claim = found[party, VALUES]
        assert claim.extent == "bounded"
        assert "1e-05)-differentially private" in claim.text
    assert "nothing of its answers" in found["ciphertext host", VALUES].assumes
    assert found["authority", VALUES].extent == "everything"
    # A checkpoint holds the key of the noise that comes next.
    assert found["reader of --checkpoint", VALUES].extent == "everything"
    assert table(NOISY_OFFLOADING, hosted=True)["ciphertext host", VALUES].extent == "everything"


def test_in_trusted_mode_the_host_sees_no_gradient(tmp_path):
    """It is asked for forward products, and for nothing else: no ciphertext, label or gradient."""
    for settings, expected in ((TRUSTED, {"forward"}), (OFFLOADING, {"forward", "gradient"})):
        made, crossed = watched_run(settings, tmp_path / str(len(expected)), hosted=True, epochs=1)
        assert {kind for kind, _ in crossed[Role.CIPHERTEXT_HOST]} == expected
        alone, _ = watched_run(settings, tmp_path / f"{len(expected)}a", hosted=False, epochs=1)
        for name, value in made.model.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), alone.model.state_dict()[name].numpy())
