from dataclasses import replace

import numpy as np
import pytest

import cloister
from authority.test_authority import mixed
from cloister.authority import service, tokens
from cloister.authority.agreement import Agreement
from cloister.authority.authority import Authority
from cloister.authority.client import AuthorityClient
from cloister.authority.database import FILE
from cloister.authority.enrolment import enrol
from cloister.authority.local import LocalClient
from cloister.authority.permutation import label_permutation
from cloister.authority.records import Terms
from cloister.authority.registration import NewPart
from cloister.authority.requests import Forward, Gradient, Labels
from cloister.base.identity import HPKE_FILE, PUBLIC_FILE, Identity, PublicIdentity
from cloister.base.rng import InsecureSeededRandom, SystemRandom
from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo
from cloister.errors import (
    AuthorityUnavailable,
    BudgetError,
    EncryptionError,
    FunctionError,
    InputError,
    ProtocolError,
    ShapeError,
    UnknownDatasetError,
)
from cloister.ring.linear import Geometry

RNG = SystemRandom()
OTHER = Agreement(DatasetInfo("other", (2, 2, 1), 5, Encoding(1.0, 0.0, 8), 0, 1), Terms(notes="x"))
NEW = NewPart("a" * 32, 1, "b" * 64, bytes(32), bytes(32), is_first=False)


@pytest.fixture
def served(kit):
    """The authority of `kit` behind HTTPS, and a maker of clients for a role."""
    server = service.serve(kit.folder, kit.authority, listen="127.0.0.1:0")
    clients = []

    def client(role, **options):
        token = tokens.issue(kit.folder / FILE, role, name="test", rng=RNG)
        options = {"public": kit.folder / PUBLIC_FILE, "token": token, "retry_for_s": 0.2} | options
        clients.append(AuthorityClient(server.url, **options))
        return clients[-1]

    yield client
    for made in clients:
        made.close()
    server.close()


def test_keys_over_https_are_those_of_the_authority(kit, served):
    linear, ids = mixed(4), np.array([3, 1], np.int64)
    geometry = Geometry((4, 4), 2, (3, 3), 2, kernel=(2, 2))
    delta = np.random.default_rng(1).integers(-9, 10, (2, 3, 3, 2)).astype(np.int16)
    for caller, receiver in ((served("server"), "server"), (served("trusted"), "trusted")):
        np.testing.assert_array_equal(
            caller.ask(Forward("set", ids, linear), receiver=receiver),
            kit.authority.ask(Forward("set", ids, linear), receiver="trusted"),
        )
        np.testing.assert_array_equal(
            caller.ask(Labels("set", ids), receiver=receiver),
            kit.authority.ask(Labels("set", ids), receiver="trusted"),
        )
    np.testing.assert_array_equal(
        caller.ask(Gradient("set", ids, geometry, delta), receiver="trusted"),
        kit.authority.ask(Gradient("set", ids, geometry, delta), receiver="trusted"),
    )
    assert caller.describe("set") == kit.authority.describe("set")
    assert caller.summary("set") == kit.authority.summary("set")
    assert caller.parts("set") == kit.authority.parts("set")
    assert caller.fingerprint == kit.authority.identity.public.fingerprint


def test_errors_keep_their_class(served):
    server = served("server")
    ids = np.arange(10, dtype=np.int64)
    with pytest.raises(BudgetError, match="sample 0"):
        server.ask(Forward("set", ids, mixed(9)), receiver="server")
    with pytest.raises(FunctionError):
        server.ask(Forward("set", ids, mixed(2, dim=9)), receiver="server")
    with pytest.raises(EncryptionError, match="no sample 99"):
        server.ask(Forward("set", ids * 11, mixed(2)), receiver="server")
    with pytest.raises(UnknownDatasetError, match="not known"):
        server.describe("nothing")
    with pytest.raises(ShapeError):
        geometry = Geometry((1, 1), 32, (1, 1), 1)
        server.ask(
            Gradient("set", ids, geometry, np.ones((9, 1, 1, 1), np.int16)), receiver="server"
        )


def test_the_token_decides_who_receives(kit, served):
    ids = np.arange(2, dtype=np.int64)
    with pytest.raises(FunctionError, match="may not ask as the trusted"):
        served("server").ask(Forward("set", ids, mixed(20)), receiver="trusted")
    with pytest.raises(FunctionError, match="role client"):
        served("client").ask(Forward("set", ids, mixed(2)), receiver="server")
    with pytest.raises(FunctionError, match="role server may not"):
        served("server").find("set")
    with pytest.raises(FunctionError, match="role trusted may not"):
        served("trusted").register(kit.authority.find("set").agreement, NEW)
    assert kit.authority.summary("set").rank_max == 0


@pytest.mark.parametrize(
    "token",
    [
        "", "nonsense", "clo_server_" + "0" * 16 + "_" + "0" * 64,
        "clo_admin_" + "0" * 16 + "_" + "0" * 64,
    ],
)  # fmt: skip
def test_unknown_tokens(served, token):
    with pytest.raises(InputError, match="token"):
        served("server", token=token).describe("set")


def test_a_connection_takes_its_token_from_a_file(kit, served, tmp_path):
    url, pin = served("client")._https._url, kit.folder / "authority.pub"
    token = tokens.issue(kit.folder / FILE, "client", name="", rng=RNG)
    file = tmp_path / "client.token"
    file.touch(0o600)
    file.write_text(f"{token}\n")
    for given in (token, file):
        with cloister.authority.connect(url, pin=pin, token=given) as client:
            assert client.find("set").label_key == kit.authority.find("set").label_key
    file.chmod(0o644)
    with pytest.raises(InputError, match="other users can read it"):
        cloister.authority.connect(url, pin=pin, token=file)
    with pytest.raises(InputError, match="can be read"):
        cloister.authority.connect(url, pin=pin, token=tmp_path / "none")
    with pytest.raises(InputError, match=r"or Path\(\.\.\.\) of the file"):
        cloister.authority.connect(url, pin=pin, token=str(file))


def test_a_token_cannot_be_given_another_role_or_secret(kit, served):
    token = tokens.issue(kit.folder / FILE, "server", name="", rng=RNG)
    last = "1" if token[-1] == "0" else "0"
    for changed in (token.replace("server", "trusted"), token[:-1] + last):
        with pytest.raises(InputError, match="token"):
            served("server", token=changed).describe("set")
    served("server", token=token).describe("set")
    assert token.encode() not in (kit.folder / FILE).read_bytes()
    assert token.rpartition("_")[2].encode() not in (kit.folder / f"{FILE}-wal").read_bytes()


def test_a_token_for_one_data_set_opens_no_other(kit, served):
    def bound(role, dataset):
        token = tokens.issue(kit.folder / FILE, role, name="", dataset=dataset, rng=RNG)
        return served(role, token=token)

    ids = np.arange(2, dtype=np.int64)
    assert bound("server", "set").ask(Forward("set", ids, mixed(2)), receiver="server").any()
    for role in ("server", "trusted"):
        other = bound(role, "other")
        for ask in (
            lambda keys: keys.describe("set"),
            lambda keys: keys.summary("set"),
            lambda keys: keys.parts("set"),
            lambda keys: keys.ask(Forward("set", ids, mixed(2)), receiver="server"),
            lambda keys: keys.ask(Labels("set", ids), receiver="server"),
        ):
            with pytest.raises(FunctionError, match="data set other, not set"):
                ask(other)
    client = bound("client", "other")
    with pytest.raises(FunctionError, match="data set other, not set"):
        client.register(kit.authority.find("set").agreement, NEW)
    with pytest.raises(FunctionError, match="data set other, not set"):
        client.find("set")
    third = replace(OTHER, info=replace(OTHER.info, name="third"))
    with pytest.raises(FunctionError, match="data set other, not third"):
        client.register(third, replace(NEW, is_first=True))
    assert client.register(OTHER, replace(NEW, is_first=True)) == 0


def test_a_revoked_token_opens_nothing_at_once(kit, served):
    path = kit.folder / FILE
    token = tokens.issue(path, "server", name="farm", rng=RNG)
    kept = served("server", token=tokens.issue(path, "server", name="other", rng=RNG))
    keys = served("server", token=token)
    keys.describe("set")
    assert tokens.revoke(path, "farm") == 1
    with pytest.raises(InputError, match="token"):
        keys.describe("set")
    kept.describe("set")
    for name in ("farm", "nobody", ""):
        with pytest.raises(InputError, match="no token"):
            tokens.revoke(path, name)


def test_clients_make_data_sets_and_share_the_permutation(kit, served):
    first, second = served("client"), served("client")
    assert second.find("other") is None
    making = enrol(first, OTHER, rng=RNG)
    # Nothing is made before its first part, and a lost answer is asked for again.
    assert second.find("other") is None
    for _ in range(2):
        assert making.register("a" * 32, 7, "b" * 64, bytes(32)) == 0
    joined = enrol(second, OTHER, rng=RNG)
    local = enrol(LocalClient(kit.authority), OTHER, rng=RNG)
    for one in (joined, local):
        np.testing.assert_array_equal(one.permutation, making.permutation)
        assert one.fingerprint == making.fingerprint
        assert one.agreement.terms == Terms(notes="x")
        assert one.agreement.info.samples == 7
    assert joined.register("c" * 32, 7, "d" * 64, bytes(31) + b"\1") == 7
    assert local.register("e" * 32, 7, "f" * 64, bytes(31) + b"\2") == 14
    assert second.describe("other").samples == 21


def test_of_two_clients_that_make_one_data_set_the_second_begins_anew(kit, served):
    one, two = (enrol(served("client"), OTHER, rng=RNG) for _ in range(2))
    one.register("a" * 32, 7, "b" * 64, bytes(32))
    with pytest.raises(EncryptionError, match="another client has made it since"):
        two.register("c" * 32, 7, "d" * 64, bytes(31) + b"\1")
    again = enrol(served("client"), OTHER, rng=RNG)
    assert again.register("c" * 32, 7, "d" * 64, bytes(31) + b"\1") == 7


def test_permutations_are_permutations_and_differ():
    found = set()
    for seed in range(60):
        key = InsecureSeededRandom(seed).random_bytes(32)
        order = label_permutation(key, 4)
        assert sorted(order.tolist()) == [0, 1, 2, 3]
        found.add(tuple(order.tolist()))
    assert len(found) > 16


def test_an_authority_of_another_key_is_noticed(served, tmp_path):
    Authority.create(tmp_path / "other", rng=RNG).close()
    with pytest.raises(AuthorityUnavailable, match="another certificate"):
        served("server", public=tmp_path / "other" / PUBLIC_FILE).describe("set")


def test_keys_sealed_to_another_authority_are_refused(kit, tmp_path):
    other = Identity.create(_folder(tmp_path / "x"), rng=RNG).public
    local = LocalClient(kit.authority)
    local._public = other
    with pytest.raises(EncryptionError, match="another authority"):
        local.register(kit.authority.find("set").agreement, NEW)


def test_sealed_keys_open_only_unchanged_and_for_their_purpose(tmp_path):
    identity = Identity.create(_folder(tmp_path / "x"), rng=RNG)
    sealed = identity.public.seal(b"key", info=b"a")
    assert identity.open_sealed(sealed, info=b"a") == b"key"
    changed = bytearray(sealed)
    changed[-1] ^= 1
    for data, info in ((sealed, b"b"), (bytes(changed), b"a"), (sealed[:50], b"a"), (b"", b"a")):
        with pytest.raises(EncryptionError):
            identity.open_sealed(data, info=info)


def test_public_files(tmp_path):
    folder = _folder(tmp_path / "x")
    public = Identity.create(folder, rng=RNG).public
    path = folder / PUBLIC_FILE
    assert PublicIdentity.load(path) == public
    text = path.read_text()
    damages = (
        "",
        "{}",
        text[: len(text) // 2],
        text.replace('"hpke_public": "', '"hpke_public": "A'),
    )
    for damaged in damages:
        path.write_text(damaged)
        with pytest.raises(EncryptionError):
            PublicIdentity.load(path)
    path.write_text(text.replace(public.fingerprint, "0" * 64))
    with pytest.raises(EncryptionError, match="damaged"):
        PublicIdentity.load(path)
    with pytest.raises(InputError):
        PublicIdentity.load(folder / "none")


def test_secrets_are_for_their_owner(tmp_path):
    folder = tmp_path / "authority"
    Authority.create(folder, rng=RNG).close()
    assert folder.stat().st_mode & 0o077 == 0
    for name in (HPKE_FILE, FILE, "certificate.key"):
        assert (folder / name).stat().st_mode & 0o077 == 0
    for name in (HPKE_FILE, FILE, "certificate.key"):
        (folder / name).chmod(0o640)
        with pytest.raises(InputError, match="chmod 600"):
            Authority(folder)
        (folder / name).chmod(0o600)
    (folder / FILE).write_bytes(b"nonsense" * 1000)
    with pytest.raises(EncryptionError, match="ledger"):
        Authority(folder)
    (folder / FILE).unlink()
    with pytest.raises(InputError, match="init"):
        Authority(folder)
    with pytest.raises(InputError, match="holds no authority"):
        Authority(tmp_path / "none")


def test_strange_requests_are_refused(served):
    https = served("server")._https
    ids = np.arange(2, dtype=np.int64)
    weights = mixed(2).weights
    named = Geometry((1, 1), 32, (1, 1), 2).to_fields()
    good = {"dataset": "set", "receiver": "server", "geometry": named}
    https.call("forward", good, (ids, weights))
    for fields, tensors in (
        (good | {"receiver": "nobody"}, (ids, weights)),
        (good | {"geometry": list(named.values())}, (ids, weights)),
        (good | {"geometry": {k: v for k, v in named.items() if k != "pad"}}, (ids, weights)),
        (good | {"geometry": named | {"in_size": [2**40, 1]}}, (ids, weights)),
        (good | {"geometry": named | {"in_size": [0, 1]}}, (ids, weights)),
        (good, (ids.astype(np.int32), weights)),
        (good, (ids, weights[:1])),
        (good, (ids,)),
        ({}, (ids, weights)),
    ):
        with pytest.raises((ProtocolError, ShapeError, InputError)):
            https.call("forward", fields, tensors)
    with pytest.raises(ProtocolError, match="no such operation"):
        https.call("everything", {})


def _folder(path):
    path.mkdir()
    return path
