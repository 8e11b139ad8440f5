"""What `make` installs is pinned by hash, and fits what pyproject.toml asks for."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCKED = {
    "demo.txt": ("build", "demo"),
    "train.txt": ("build", "demo", "train"),
    "hidden.txt": ("build", "demo", "compile"),
    "origami.txt": ("build", "demo", "audit"),
    "dev.txt": ("dev",),
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def entries(name):
    """The pinned requirements of a file with the number of their hashes."""
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    found = []
    for entry in text.replace("\\\n", " ").splitlines():
        pinned, *hashes = re.split(r"\s+--hash=", entry.strip())
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value.strip()) for value in hashes), entry
        found.append((Requirement(pinned), len(hashes)))
    return found


def wanted(extras):
    """Names that the project and these extras ask for, through extras of extras."""
    names = [Requirement(text) for text in PROJECT["dependencies"]]
    waiting = list(extras)
    while waiting:
        for text in PROJECT["optional-dependencies"][waiting.pop()]:
            requirement = Requirement(text)
            if requirement.name == PROJECT["name"]:
                waiting += requirement.extras
            else:
                names.append(requirement)
    return names


@pytest.mark.parametrize("name", LOCKED)
def test_everything_is_pinned_and_has_hashes(name):
    found = entries(name)
    assert len(found) > 20
    for requirement, hashes in found:
        assert [spec.operator for spec in requirement.specifier] == ["=="], requirement
        assert hashes, requirement
        assert requirement.url is None


@pytest.mark.parametrize("name", LOCKED)
def test_what_the_project_asks_for_is_pinned_at_a_version_it_accepts(name):
    pinned = {
        requirement.name: next(iter(requirement.specifier)).version
        for requirement, _ in entries(name)
    }
    for requirement in wanted(LOCKED[name]):
        if requirement.name != "torch":  # its CPU and CUDA builds share a version
            assert requirement.specifier.contains(pinned[requirement.name]), requirement


def test_compiled_packages_have_files_for_several_platforms():
    hashes = {requirement.name: count for requirement, count in entries("demo.txt")}
    for name in ("numpy", "onnxruntime", "cryptography", "pillow", "grpcio"):
        assert hashes[name] >= 10, name


def test_the_files_agree_with_each_other():
    versions = {}
    for name in LOCKED:
        for requirement, _ in entries(name):
            versions.setdefault(requirement.name, set()).add(str(requirement.specifier))
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_pytorch_alone_has_no_hash():
    (requirement,) = [
        Requirement(line)
        for line in (ROOT / "requirements/torch.txt").read_text(encoding="utf-8").splitlines()
    ]
    assert requirement.name == "torch"
    assert [spec.operator for spec in requirement.specifier] == ["=="]


def test_make_installs_nothing_else():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installs = [line for line in makefile.splitlines() if "install" in line and "PIP" in line]
    assert len(installs) == 3
    for line in installs:
        assert "--require-hashes" in line or "--no-deps -e ." in line or "torch.txt" in line
