"""The native modules are built so that a defect in one ends the process and runs no other code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cloister
import cloister.base._native as native
import cloister.published._published_native as published_native

WEAK_SYMBOLS = Path(__file__).parents[1] / "tools" / "weak_symbols.py"
GENERATOR = bytes.fromhex("e2f2ae0a6abc4e71a884a961c500515f58e30b6aa582dd8db6a65945e08d2d76")


@pytest.fixture(params=[native, published_native], ids=lambda module: module.__name__)
def module(request):
    return request.param


def readelf(module, *options):
    # binutils come with every compiler that can have built the module.
    return subprocess.run(
        ["readelf", "-W", *options, module.__file__], capture_output=True, text=True, check=True
    ).stdout


def test_functions_with_buffers_guard_their_return_address(module):
    assert "__stack_chk_fail" in readelf(module, "--dyn-syms")


def test_calls_of_the_c_library_check_their_sizes(module):
    assert module.FORTIFY_LEVEL >= 2


def test_addresses_of_imported_functions_are_read_only_once_loaded(module):
    assert "GNU_RELRO" in readelf(module, "--segments")
    assert "BIND_NOW" in readelf(module, "--dynamic")


def test_no_segment_can_be_written_and_executed(module):
    segments = [line.split() for line in readelf(module, "--segments").splitlines()]
    loaded = [words for words in segments if words and words[0] in ("LOAD", "GNU_STACK")]
    assert len(loaded) >= 3
    for words in loaded:
        flags = "".join(words[6:-1])
        assert not {"W", "E"} <= set(flags), words
    assert any(words[0] == "GNU_STACK" for words in loaded)


@pytest.mark.parametrize("option", ["RPATH", "RUNPATH", "TEXTREL"])
def test_no_library_is_looked_for_in_a_folder_of_the_build(module, option):
    assert f"({option})" not in readelf(module, "--dynamic")


def test_the_trusted_side_does_not_contain_the_group_of_the_published_scheme():
    """Its generator is a constant of the code that does."""
    assert GENERATOR[:8] in Path(published_native.__file__).read_bytes()
    assert GENERATOR[:8] not in Path(native.__file__).read_bytes()
    assert not [name for name in dir(native) if "curve" in name.lower() or "scalar" in name]


# ---- one copy of a function for two instruction sets (every build runs tools/weak_symbols.py)

LOCAL = "namespace { int twice(int x) { return 2 * x; } }\nint {name}(int x) { return twice(x); }\n"
SHARED = LOCAL.replace("namespace { int", "inline __attribute__((noinline)) int").replace(
    "} }", "}"
)
STARTS = "int fresh();\nint now = fresh();\n"


def weak_symbols(folder, sources):
    """Runs the tool on an archive of these sources."""
    objects = []
    for name, text in sources.items():
        source = folder / f"{name}.cpp"
        source.write_text(text.replace("{name}", name))
        objects.append(f"{source.name}.o")
        command = ["c++", "-O1", "-c", source.name, "-o", objects[-1]]
        subprocess.run(command, cwd=folder, check=True)
    subprocess.run(["ar", "qc", "planted.a", *objects], cwd=folder, check=True)
    return subprocess.run(
        [sys.executable, "-P", str(WEAK_SYMBOLS), "nm", "planted.a"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_a_function_that_the_linker_could_mix_is_found(tmp_path, isa):
    done = weak_symbols(tmp_path, {"plain": SHARED, f"planted_{isa}": SHARED})
    assert done.returncode == 1
    assert f"planted_{isa}.cpp.o" in done.stderr
    assert "twice" in done.stderr


def test_code_that_runs_before_an_instruction_set_is_chosen_is_found(tmp_path):
    done = weak_symbols(tmp_path, {"plain": LOCAL, "planted_avx2": STARTS})
    assert done.returncode == 1
    assert "_GLOBAL__sub_I" in done.stderr


def test_functions_of_unnamed_namespaces_are_not_mixed(tmp_path):
    assert weak_symbols(tmp_path, {"plain": SHARED, "local_avx2": LOCAL}).returncode == 0


def test_an_archive_with_nothing_to_check_is_refused(tmp_path):
    done = weak_symbols(tmp_path, {"plain": SHARED})
    assert done.returncode != 0
    assert "nothing was checked" in done.stderr


def importers(extension):
    source = Path(cloister.__file__).parent
    pattern = rf"^(import cloister\.(\w+\.)*|from cloister\S* import ){extension}\b"
    return {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if re.search(pattern, path.read_text(), re.MULTILINE)
    }


def test_only_the_group_of_the_published_scheme_calls_its_native_code():
    assert importers("_published_native") == {"published/dlog.py", "published/ddh/curve.py"}
    assert "ring/pads.py" in importers("_native")
    assert not [path for path in importers("_native") if path.startswith("published/")]
