"""Every writer of files: no link is followed, nothing is half there, secrets are their owner's."""

import ast
import os
import stat
from pathlib import Path

import numpy as np
import pytest

import cloister
from cloister.base import files
from cloister.errors import InputError

SOURCE = Path(cloister.__file__).parent


def mode(path):
    assert not path.is_symlink()
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def victim(tmp_path):
    path = tmp_path / "victim"
    path.write_bytes(b"precious")
    path.chmod(0o640)
    yield path
    assert path.read_bytes() == b"precious"
    assert mode(path) == 0o640


WRITERS = (files.replace, files.create)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("private", [True, False])
def test_modes(tmp_path, umask, write, private):
    write(tmp_path / "x", b"content", private=private)
    assert (tmp_path / "x").read_bytes() == b"content"
    assert mode(tmp_path / "x") == (0o600 if private else 0o666 & ~umask)
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("which", ["any", "new"])
@pytest.mark.parametrize("private", [True, False])
def test_modes_in_place(tmp_path, umask, which, private):
    os.close(files.open_in_place(tmp_path / "x", which, private=private))
    assert mode(tmp_path / "x") == (0o600 if private else 0o666 & ~umask)


def test_a_file_that_is_replaced_does_not_become_more_open(tmp_path, umask):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(0o640)
    files.replace(path, b"new", private=False)
    assert mode(path) == 0o640 & ~umask


def test_a_link_is_replaced_and_not_followed(tmp_path, victim):
    path = tmp_path / "x"
    for target in (victim, tmp_path / "nothing"):
        path.symlink_to(target)
        files.replace(path, b"new", private=False)
        assert not path.is_symlink()
        assert path.read_bytes() == b"new"
        path.unlink()
    assert not (tmp_path / "nothing").exists()


def test_what_is_there_is_not_created_again(tmp_path, victim):
    link, dangling = tmp_path / "link", tmp_path / "dangling"
    link.symlink_to(victim)
    dangling.symlink_to(tmp_path / "nothing")
    for path in (victim, link, dangling):
        with pytest.raises(FileExistsError):
            files.create(path, b"new", private=True)
    assert not (tmp_path / "nothing").exists()


def test_of_two_that_create_a_file_the_second_fails(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(FileExistsError), files.creating(path, private=False) as second:
        second.write(b"second")
        files.create(path, b"first", private=False)
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("begin", [files.replacing, files.creating])
def test_names_that_can_be_guessed_are_not_opened(tmp_path, victim, begin):
    """Traps under every name that the file in the making could be expected to have."""
    folder = tmp_path / "shared"
    folder.mkdir()
    traps = [f"{dot}x{end}" for dot in ("", ".") for end in (".new", ".part", ".tmp", "~", ".swp")]
    for name in traps:
        (folder / name).symlink_to(victim)
    seen = []
    for _ in range(2):
        with begin(folder / "x", private=True) as file:
            (name,) = set(os.listdir(folder)) - {*traps, "x"}
            assert stat.S_IMODE((folder / name).lstat().st_mode) == 0o600
            seen.append(name)
            file.write(b"content")
        if begin is files.creating:
            (folder / "x").unlink()
    assert seen[0] != seen[1]


def test_a_name_that_is_taken_after_all_is_not_opened(tmp_path, victim, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "urandom", bytes)
        (tmp_path / f"x.{bytes(8).hex()}.new").symlink_to(victim)
        with pytest.raises(FileExistsError):
            files.replace(tmp_path / "x", b"new", private=False)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("begin", [files.replacing, files.creating])
def test_a_block_that_raises_changes_nothing(tmp_path, begin):
    path = tmp_path / "x"
    if begin is files.replacing:
        path.write_bytes(b"old")
    before = os.listdir(tmp_path)
    with pytest.raises(RuntimeError), begin(path, private=False) as file:
        file.write(b"half")
        raise RuntimeError
    assert os.listdir(tmp_path) == before
    assert not path.exists() or path.read_bytes() == b"old"


def test_content_and_name_are_synced_in_this_order(tmp_path, monkeypatch):
    done = []
    real, replace = os.fsync, os.replace

    def fsync(descriptor):
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real(descriptor)

    def renamed(*names):
        done.append("rename")
        replace(*names)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(files.os, "replace", renamed)
    files.replace(tmp_path / "x", b"content", private=True)
    assert done == ["file", "rename", "folder"]


def test_long_names(tmp_path):
    path = tmp_path / ("ä" * 127)
    files.replace(path, b"content", private=True)
    assert path.read_bytes() == b"content"


# ---- changed in place


def test_in_place_no_link_is_followed(tmp_path, victim):
    path = tmp_path / "x"
    for target in (victim, tmp_path / "nothing"):
        path.symlink_to(target)
        for which in ("old", "any"):
            with pytest.raises(OSError, match="is a link"):
                files.open_in_place(path, which, private=False)
        with pytest.raises(FileExistsError):
            files.open_in_place(path, "new", private=False)
        path.unlink()
    assert not (tmp_path / "nothing").exists()


def test_in_place_only_regular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        files.open_in_place(tmp_path / "pipe", "any", private=True)
    with pytest.raises(FileNotFoundError):
        files.open_in_place(tmp_path / "none", "old", private=True)


def test_in_place_a_private_file_has_one_name_and_owner(tmp_path, victim, monkeypatch):
    os.link(victim, tmp_path / "x")
    with pytest.raises(OSError, match="hard links"):
        files.open_in_place(tmp_path / "x", "any", private=True)
    (tmp_path / "x").unlink()
    monkeypatch.setattr(files.os, "geteuid", lambda: victim.stat().st_uid + 1)
    with pytest.raises(OSError, match="another user"):
        files.open_in_place(victim, "any", private=True)


def test_in_place_a_private_file_is_closed_to_others(tmp_path):
    (tmp_path / "x").touch(0o644)
    os.close(files.open_in_place(tmp_path / "x", "any", private=True))
    assert mode(tmp_path / "x") == 0o600


# ---- secrets that are read


@pytest.mark.parametrize("permissions", [0o640, 0o604, 0o660, 0o602])
def test_a_secret_that_others_can_read_is_refused(tmp_path, permissions):
    path = tmp_path / "secret"
    files.create(path, b"secret", private=True)
    assert files.read_private(path, most=100) == b"secret"
    path.chmod(permissions)
    with pytest.raises(InputError, match="run chmod 600 on it"):
        files.read_private(path, most=100)


def test_a_secret_may_come_from_a_pipe():
    reader, writer = os.pipe()
    os.write(writer, b"secret")
    os.close(writer)
    assert files.read_private(Path(f"/dev/fd/{reader}"), most=100) == b"secret"
    os.close(reader)


# ---- what processes that died have left


def test_leftovers_are_deleted_and_nothing_else(tmp_path, victim):
    left, other = (tmp_path / f"{name}.{'0f' * 8}.new" for name in ("x", "y"))
    kept = ["x", "x.new", "x.0f.new", "notes.new", f"x.{'0g' * 8}.new"]
    for path in (left, other, *(tmp_path / name for name in kept)):
        path.write_bytes(b"")
    (tmp_path / f"x.{'1f' * 8}.new").symlink_to(victim)
    files.remove_leftovers(tmp_path, name="x")
    assert not left.exists()
    files.remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, f"x.{'1f' * 8}.new", "victim"])
    files.remove_leftovers(tmp_path / "none")


def test_a_file_in_the_making_is_no_leftover(tmp_path):
    with files.replacing(tmp_path / "x", private=True) as file:
        files.remove_leftovers(tmp_path)
        file.write(b"content")
    assert (tmp_path / "x").read_bytes() == b"content"


# ---- nobody writes in another way


ELSEWHERE = {
    ("base/files.py", "os.open"),
    ("trusted/pads/block_file.py", "os.open"),  # for reading
    ("attest/attester.py", "os.open"),  # the kernel's and Gramine's interfaces
    ("attest/nsm_attester.py", "os.open"),  # a device
    ("attest/tpm_commands.py", "os.open"),  # a device
    ("cli/main.py", "os.open"),  # /dev/null
    ("base/reading.py", "os.open"),  # to read
    ("tickets/ticket_meter.py", "os.open"),  # a folder, to lock it
    ("data/writer.py", "TemporaryFile"),  # without a name
    ("data/spool.py", "TemporaryFile"),
    ("examples/commands.py", "TemporaryFile"),
    ("examples/attested_demo.py", "np.save"),  # in a folder that was made for the demonstration
    # In a folder that was made for this and is its owner's alone.
    ("graph/onnx/frontends.py", "TemporaryDirectory"),
    ("cli/demo_verbs.py", "TemporaryDirectory"),
    ("cli/trusted_verbs.py", "TemporaryDirectory"),
    ("cli/speed.py", "TemporaryDirectory"),
    ("training/classifier.py", "TemporaryDirectory"),
    ("codegen/toolchain.py", "TemporaryDirectory"),
}
"""(module, call): writes that this test knows to be harmless."""
TO_A_FILE = ("np.savez", "np.savez_compressed", "np.save", "torch.save", "image.save")
OPENS = ("mkstemp", "NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile",
         "TemporaryDirectory", "mkdtemp", "write_text", "write_bytes", "touch", "os.open",
         "symlink_to", "hardlink_to", "os.link", "copyfile", "copy2")  # fmt: skip


def writes(tree):
    """The calls that may create or change a file under a name."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        texts = [value.value for value in given if isinstance(value, ast.Constant)]
        last = name.rsplit(".", 1)[-1]
        if last == "open" and name != "os.open":
            if any(isinstance(text, str) and set("wax+") & set(text[:3]) for text in texts):
                yield last
        elif name in OPENS or last in OPENS:
            yield name if name in OPENS else last
        elif name == "onnx.save" or (
            name in TO_A_FILE and not {"file", "buffer"} & {ast.unparse(one) for one in given}
        ):
            yield name


def test_no_module_writes_files_in_a_way_of_its_own():
    found = {
        (path.relative_to(SOURCE).as_posix(), call)
        for path in SOURCE.rglob("*.py")
        for call in writes(ast.parse(path.read_text()))
    }
    assert found - {("base/files.py", "os.link")} == ELSEWHERE


def test_the_search_for_writers_finds_them():
    code = "\n".join(
        ["path.open('wb')", "open(path, mode='a')", "p.write_text(x)", "np.savez(path, x)",
         "os.open(p, 1)", "tempfile.mkstemp()", "path.open('rb')", "np.savez(file, x)"]
    )  # fmt: skip
    assert list(writes(ast.parse(code))) == [
        "open", "open", "write_text", "np.savez", "os.open", "mkstemp",
    ]  # fmt: skip


def test_an_archive_can_be_written_as_it_comes(tmp_path):
    with files.replacing(tmp_path / "x.npz", private=True) as file:
        np.savez(file, x=np.arange(3))
    with np.load(tmp_path / "x.npz") as found:
        np.testing.assert_array_equal(found["x"], np.arange(3))


def test_an_error_names_the_file_and_not_its_unfinished_one(tmp_path):
    path = tmp_path / "missing" / "page.html"
    with pytest.raises(FileNotFoundError) as caught:
        files.replace(path, b"", private=True)
    assert caught.value.filename == str(path)
