"""Bundles: what comes back, what the host sees, what a reader refuses, and what it tells."""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from bundle.bundles import (
    CHUNK_BYTES,
    FOREIGN_KEY,
    FOREIGN_SIGNER,
    KEY,
    SIGNER,
    VENDOR,
    File,
    module,
    plan_of,
    sealed,
)
from cloister.base.rng import InsecureSeededRandom
from cloister.bundle.bundle_header import (
    KIND,
    MAX_VERSION,
    BundleHeader,
)
from cloister.bundle.bundle_keys import BundleKey
from cloister.bundle.sealed_bundle import SealedBundle, hidden_bytes, named_module
from cloister.errors import BundleError, InputError
from cloister.graph.canonical import PRELUDE
from cloister.graph.graph import Node
from cloister.plan.plan import Plan
from cloister.plan.protection import ENCLAVE
from cloister.plan.protection import MODULE as HIDDEN

MODULE = module()


@pytest.fixture
def path(tmp_path):
    return sealed(tmp_path / "model.bundle", MODULE, version=3)


def opened(path, key=KEY, **options):
    return SealedBundle.open(path, key, **{"vendor": VENDOR, **options})


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 20 * CHUNK_BYTES + 7])
@pytest.mark.parametrize("source", ["", "int secret;\n"])
@pytest.mark.parametrize("pad_to", [None, 2**15])
def test_a_bundle_comes_back_whole(tmp_path, size, source, pad_to):
    made = module(weights_bytes=size, source=source)
    path = sealed(tmp_path / "a.bundle", made, pad_to=pad_to)
    plan, found = opened(path)
    assert plan.to_bytes() == plan_of(made).to_bytes()
    assert (found.manifest, found.weights, found.source) == (made.manifest, made.weights, source)
    assert dict(found.builds) == dict(made.builds)
    assert File.read(path).header.hidden_bytes == (pad_to or hidden_bytes(made))


def test_what_anyone_can_see(path):
    header = SealedBundle.show(path)
    assert header == SealedBundle.verify(path, vendor=VENDOR).header
    assert header.version == 3
    assert header.vendor == VENDOR.public_bytes_raw()
    assert header.module_digest == MODULE.manifest.digest
    assert header.plan_digest == plan_of(MODULE).digest
    assert header.hidden_bytes == hidden_bytes(MODULE)


def test_nothing_hidden_is_in_the_file(path):
    data = path.read_bytes()
    for secret in (KEY, MODULE.source.encode(), b"HiddenOperator", MODULE.manifest.salt.encode()):
        assert secret not in data
    pieces = (MODULE.weights, *MODULE.builds.values())
    for piece in pieces:
        assert not any(piece[at : at + 8] in data for at in range(len(piece) - 8))


def test_padded_bundles_differ_in_no_size(tmp_path):
    sizes = set()
    for count in (10, 3000):
        file = sealed(tmp_path / f"{count}.bundle", module(weights_bytes=count), pad_to=8192)
        sizes.add(file.stat().st_size)
    assert len(sizes) == 1


def test_each_seal_has_a_key_and_nonces_of_its_own(tmp_path):
    rng = InsecureSeededRandom(5)
    files = [File.read(sealed(tmp_path / f"{i}.bundle", MODULE, rng=rng)) for i in range(2)]
    chunks = [chunk for file in files for chunk in file.chunks]
    assert files[0].header.bundle_id != files[1].header.bundle_id
    assert len({chunk[:12] for chunk in chunks}) == len(chunks) > 10


# ---- versions


@pytest.mark.parametrize("read", [SealedBundle.verify, lambda *a, **k: opened(*a, **k)])
def test_a_stale_bundle_is_refused(path, read):
    for at_least in (1, 3):
        assert read(path, vendor=VENDOR, at_least=at_least)
    with pytest.raises(BundleError, match="stale: it has version 3, and at least 4 is wanted"):
        read(path, vendor=VENDOR, at_least=4)


@pytest.mark.parametrize("version", [0, -1, MAX_VERSION + 1])
def test_a_version_has_bounds(tmp_path, version):
    with pytest.raises(InputError, match="version"):
        sealed(tmp_path / "a.bundle", MODULE, version=version)
    assert os.listdir(tmp_path) == []


# ---- who may open and sign


def test_another_content_key_opens_nothing(path):
    with pytest.raises(BundleError, match="content key is another bundle's"):
        opened(path, FOREIGN_KEY)
    with pytest.raises(InputError, match="32 bytes"):
        opened(path, KEY[:-1])


def test_another_vendor_is_refused(tmp_path, path):
    with pytest.raises(BundleError, match="no valid signature"):
        opened(path, vendor=FOREIGN_SIGNER.public_key())
    forged = tmp_path / "forged.bundle"
    forged.write_bytes(File.read(path).resigned(FOREIGN_SIGNER).data())
    with pytest.raises(BundleError, match="no valid signature"):
        opened(forged)


def test_a_vendor_that_signs_in_another_name_is_refused(tmp_path, path):
    forged = File.read(path).resigned(vendor=FOREIGN_SIGNER.public_key().public_bytes_raw())
    path.write_bytes(forged.data())
    with pytest.raises(BundleError, match="names another vendor"):
        opened(path)


# ---- the plan


def test_a_plan_of_another_module_is_not_sealed(tmp_path):
    with pytest.raises(BundleError, match="another module"):
        sealed(tmp_path / "a.bundle", MODULE, plan=plan_of(module(1)))
    assert os.listdir(tmp_path) == []


def test_a_plan_of_another_module_is_not_opened(tmp_path, path):
    file = File.read(path)
    file.plan = plan_of(module(1)).to_bytes()
    path.write_bytes(file.data())
    with pytest.raises(BundleError, match="plan is not the one that its vendor signed"):
        opened(path)
    path.write_bytes(file.resigned().data())
    with pytest.raises(BundleError, match="names another module than its header"):
        opened(path)
    # Even if the header names it too, the sealed manifest does not.
    path.write_bytes(file.resigned(module_digest=module(1).manifest.digest).data())
    with pytest.raises(BundleError, match="manifest is not that of the module"):
        opened(path)


def test_a_bundle_is_of_a_plan_with_one_module():
    plan = plan_of(MODULE)
    assert named_module(plan) == MODULE.manifest.digest
    relu, one = plan.graph.nodes
    other = dataclasses.replace(one, name="second", outputs=("more",))
    types = {**plan.graph.types, "more": plan.graph.types["scores"]}
    for nodes in ((relu,), (relu, one, other)):
        graph = dataclasses.replace(plan.graph, nodes=nodes, types=types)
        protections = {"relu": ENCLAVE, "module": HIDDEN, "second": HIDDEN}
        chosen = {node.name: protections[node.name] for node in nodes}
        with pytest.raises(BundleError, match="one hidden part"):
            named_module(Plan(graph, "own", chosen, {}))


# ---- chunks that the vendor's signature does not protect: of a holder of the vendor's key


def test_chunks_keep_their_order_and_their_bundle(tmp_path, path):
    file = File.read(path)
    older = File.read(
        sealed(tmp_path / "old.bundle", MODULE, version=2, rng=InsecureSeededRandom(9))
    )
    for chunks in (
        [file.chunks[1], file.chunks[0], *file.chunks[2:]],
        [older.chunks[0], *file.chunks[1:]],
        [*file.chunks[:2], older.chunks[2], *file.chunks[3:]],
        [file.chunks[0], file.chunks[0], *file.chunks[2:]],
    ):
        changed = dataclasses.replace(file, chunks=chunks)
        path.write_bytes(changed.data())
        with pytest.raises(BundleError, match="sealed part is not the one"):
            opened(path)
        path.write_bytes(changed.resigned().data())
        with pytest.raises(BundleError, match="does not open"):
            opened(path)


def test_a_hidden_part_cannot_lose_its_last_chunk(path):
    file = File.read(path)
    whole = sum(len(chunk) - 28 for chunk in file.chunks[:-1])
    cut = dataclasses.replace(file, chunks=file.chunks[:-1]).resigned(hidden_bytes=whole)
    path.write_bytes(cut.data())
    # The number of chunks is under each chunk's seal.
    with pytest.raises(BundleError, match="chunk 0 does not open"):
        opened(path)


def test_padding_is_zero(tmp_path, monkeypatch):
    monkeypatch.setattr("cloister.bundle.sealed_bundle._zeros", lambda count: iter([b"x" * count]))
    path = sealed(tmp_path / "a.bundle", MODULE, pad_to=2**13)
    with pytest.raises(BundleError, match="goes on behind its end"):
        opened(path)


def test_an_error_in_the_hidden_part_names_nothing_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr("cloister.bundle.manifest.ABI", 1)
    manifest = dataclasses.replace(MODULE.manifest, weights_sha256=64 * "0")
    broken = object.__new__(type(MODULE))  # a module that its own checks refuse
    for name, value in (vars(MODULE) | {"manifest": manifest}).items():
        object.__setattr__(broken, name, value)
    path = sealed(tmp_path / "a.bundle", broken)
    with pytest.raises(BundleError) as caught:
        opened(path)
    assert "contradicts itself" in str(caught.value)
    assert "head" not in str(caught.value)
    assert caught.value.__cause__ is None


class Stated:
    """A manifest that says what no compiler does, in its canonical form."""

    def __init__(self, manifest, place, value):
        self.fields = json.loads(manifest.to_bytes())
        *path, last = place
        part = self.fields
        for step in path:
            part = part[step]
        part[last] = value
        self.builds = manifest.builds

    def to_bytes(self):
        return json.dumps(self.fields, sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self):
        return hashlib.sha256(self.to_bytes()).digest()


@pytest.mark.parametrize(("place", "value"), [
    (("builds", "wasm", "nbytes"), -5),
    (("builds", "wasm", "nbytes"), 300.0),
    (("builds", "wasm", "nbytes"), "300"),
    (("builds", "wasm", "nbytes"), True),
    (("builds", "wasm", "nbytes"), None),
    (("builds", "wasm", "flags"), [[]]),
    (("builds", "wasm", "more"), 1),
    (("weights_bytes",), 1500.0),
    (("weights_bytes",), -1),
    (("weights_bytes",), math.nan),
    (("arena_bytes",), 64.0),
    (("abi",), True),
    (("name",), 5),
    (("inputs", 0, "shape"), [4.0]),
    (("inputs", 0, "shape"), [-2, -2]),
    (("inputs", 0, "shape"), [0]),
    (("inputs", 0, "shape"), "4"),
    (("inputs", 0, "shape"), [2**40]),
    (("inputs", 0, "dtype"), "O"),
    (("inputs", 0, "dtype"), "V4"),
    (("inputs", 0, "dtype"), ">f4"),
    (("inputs",), {}),
])  # fmt: skip
def test_a_manifest_that_its_vendor_made_up_is_refused(tmp_path, place, value):
    """The vendor signs it, so that only its parser is left to refuse it."""
    stated = Stated(MODULE.manifest, place, value)
    broken = object.__new__(type(MODULE))
    for name, kept in (vars(MODULE) | {"manifest": stated}).items():
        object.__setattr__(broken, name, kept)
    node = Node("module", "Module", ("features",), ("scores",), {"digest": stated.digest},
                "cloister")  # fmt: skip
    plan = plan_of(MODULE)
    graph = dataclasses.replace(plan.graph, nodes=(*plan.graph.nodes[:-1], node))
    plan = Plan(graph, "hidden head", plan.protections, {})
    path = sealed(tmp_path / "a.bundle", broken, plan=plan)
    with pytest.raises(BundleError, match="contradicts itself"):
        opened(path)


# ---- files


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a bundle"),
        (b"CLOP" + bytes(100), "is not a bundle"),
        (b"CLOB" + (7).to_bytes(4, "little") + bytes(100), "format 7"),
        (b"CLOB\1\0\0\0" + (2**62).to_bytes(8, "little"), f"longer than {KIND.most} B"),
        (b"CLOB\1\0\0\0" + (200).to_bytes(8, "little") + bytes(100), "cut off within its header"),
    ],
)
def test_what_is_no_bundle_is_refused(tmp_path, data, message):
    path = tmp_path / "x.bundle"
    path.write_bytes(data)
    for read in (opened, SealedBundle.show):
        with pytest.raises(BundleError, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(str(path))


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "", "none"):
        with pytest.raises(InputError):
            opened(tmp_path / name)


def test_cut_and_longer_files_are_refused(path):
    data = path.read_bytes()
    for changed in (data[:-1], data + b"\0", data + data):
        path.write_bytes(changed)
        with pytest.raises(BundleError, match="its vendor signed"):
            opened(path)


def test_a_header_has_one_form(path):
    head = File.read(path).head
    assert BundleHeader.from_bytes(head).to_bytes() == head
    text, digest = head[PRELUDE.size :], MODULE.manifest.digest.hex().encode()
    otherwise = (
        text.replace(b'"version":3', b'"version": 3'),
        text.replace(b'"version":3', b'"version":3.0'),
        text.replace(b"Ed25519", b"ed25519"), text + b" ", text[:-1], text[:-1] + b',"x":1}',
        text.replace(digest, digest.upper()), text.replace(digest, b""),
    )  # fmt: skip
    assert len({text, *otherwise}) == 9
    for changed in otherwise:
        with pytest.raises(BundleError):
            BundleHeader.from_bytes(PRELUDE.pack(KIND.magic, KIND.format, len(changed)) + changed)
    with pytest.raises(BundleError):
        BundleHeader.from_bytes(head + b" ")


@pytest.mark.parametrize("pad_to", [1, 2**37])
def test_padding_has_bounds(tmp_path, pad_to):
    with pytest.raises(InputError, match="padding"):
        sealed(tmp_path / "a.bundle", MODULE, pad_to=pad_to)


def test_large_modules_are_not_copied_more_than_once(tmp_path):
    size = 48 * 2**20
    made = module(weights_bytes=size)
    path = tmp_path / "large.bundle"
    tracemalloc.start()
    try:
        sealed(path, made, chunk_bytes=2**20)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
        tracemalloc.reset_peak()
        _, found = opened(path)
        assert tracemalloc.get_traced_memory()[1] < size + size // 4
    finally:
        tracemalloc.stop()
    assert found.weights == made.weights


SEAL_FOR_EVER = """
import pathlib, sys
from bundle import bundles
path, made = pathlib.Path(sys.argv[1]), bundles.module(weights_bytes=2**20)
version = int(sys.argv[2])
print("ready", flush=True)
while True:
    version += 1
    bundles.sealed(path, made, version=version, chunk_bytes=2**16)
"""


def test_a_process_that_is_killed_leaves_a_whole_bundle_or_none(tmp_path):
    path, version = tmp_path / "model.bundle", 0
    for round_ in itertools.count():
        if version and round_ >= 12:
            break
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", SEAL_FOR_EVER, path, str(version)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        child.stdout.readline()
        time.sleep(0.004 * round_)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if path.exists():
            version = SealedBundle.verify(path, vendor=VENDOR, at_least=version or 1).header.version
            opened(path)
    # The next one removes what killed ones have left.
    sealed(path, MODULE, signer=SIGNER)
    assert os.listdir(tmp_path) == ["model.bundle"]
    np.testing.assert_array_equal(opened(path)[1].manifest.inputs[0].shape, (4,))


def test_the_key_of_one_bundle_opens_no_other(tmp_path):
    made = module()
    first, second = (sealed(tmp_path / f"{i}.bundle", made, version=i + 1,
                            rng=InsecureSeededRandom(i)) for i in range(2))  # fmt: skip
    key = BundleKey.derive(KEY, bundle_id=SealedBundle.show(first).bundle_id)
    assert SealedBundle.open(first, key, vendor=VENDOR)[1].weights == made.weights
    with pytest.raises(BundleError, match="the key that was released is for"):
        SealedBundle.open(second, key, vendor=VENDOR)
    moved = BundleKey(SealedBundle.show(second).bundle_id, key.key)
    with pytest.raises(BundleError, match="chunk 0 does not open"):
        SealedBundle.open(second, moved, vendor=VENDOR)
