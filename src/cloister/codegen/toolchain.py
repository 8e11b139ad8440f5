"""The compilers: Zig's C compiler, which the package index pins, or the system's GCC.

The same text and compiler give the same bytes: no path, time or random number enters a binary.
"""

import hashlib
import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from cloister.base import files
from cloister.bundle.manifest import Build
from cloister.errors import CloisterError, InputError, one_line
from cloister.wire import process

LEVELS = {
    "native-x86-64-v4": "x86-64-v4", "native-x86-64-v3": "x86-64-v3", "native-x86-64": "x86-64",
}  # fmt: skip
"""Instruction sets of the native builds, as GCC names them; Zig writes _ for -."""
COMMON = (
    "-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror",
    "-fvisibility=hidden", "-nostdlib",
)  # fmt: skip
SHARED = ("-shared", "-fPIC", "-Wl,--build-id=none", "-s")
WASM = (
    "-target", "wasm32-freestanding", "-mcpu=generic+simd128", "-Wl,--no-entry",
    "-Wl,--export=cloister_module_size", "-Wl,--export=cloister_module_run",
    "-Wl,--export=__heap_base", "-s",
)  # fmt: skip
SELECTS = ("-mllvm", "-x86-cmov-converter=false")
"""Clang must not make a branch of a comparison that selects."""
COMPILE_LIMIT_S = 1800.0


@dataclass(frozen=True)
class Compiler:
    """A C compiler: its name with its version, and the command that runs it."""

    name: str
    command: tuple[str, ...]

    @property
    def is_zig(self) -> bool:
        """Whether it is Zig's, which alone makes WebAssembly."""
        return self.name.startswith("zig")

    def flags(self, build: str, contraction: str) -> tuple[str, ...]:
        """Arguments for a build, without file names.

        Raises   InputError for a build that this compiler cannot make
        """
        if build == "wasm":
            if not self.is_zig:
                raise InputError("gcc makes no WebAssembly; compile the wasm build with zig")
            return (*COMMON, *WASM)
        contract = ("-DCONTRACT",) if contraction == "fma" else ()
        level = LEVELS[build]
        machine: tuple[str, ...]
        if self.is_zig:
            machine = ("-target", "x86_64-linux-none", f"-mcpu={level.replace('-', '_')}", *SELECTS)
        else:
            machine = (f"-march={level}",)
        return (*COMMON, *machine, *contract, *SHARED)


def find_compiler(name: str) -> Compiler:
    """`zig` from the package index, or the `gcc` of the system.

    Raises   InputError that says what to install
    """
    if name == "zig":
        if find_spec("ziglang") is None:
            raise InputError(
                "the compiler is not installed; run `pip install 'cloister[compile]'`, or choose "
                "--compiler gcc"
            )
        command = process.python("-m", "ziglang", "cc")
        return Compiler(f"zig cc {metadata.version('ziglang')}", tuple(command))
    if name == "gcc":
        found = shutil.which("gcc")
        if found is None:
            raise InputError(
                "gcc is not installed; install it with the system's packages, or leave --compiler "
                "away to use zig"
            )
        version = process.run([found, "-dumpfullversion"]).stdout.decode().strip()
        return Compiler(f"gcc {version}", (found,))
    raise InputError(f"compiler {name!r}: choose zig or gcc")


def compile_c(source: str, build: str, *, compiler: Compiler, contraction: str) -> bytes:
    """The binary of one build.

    Raises   InputError for a build that the compiler cannot make, CloisterError with its first
             message if it refuses the text
    """
    flags = compiler.flags(build, contraction)
    with tempfile.TemporaryDirectory(prefix="cloister-compile-") as name:
        folder = Path(name)
        text, binary = folder / "module.c", folder / "module"
        files.replace(text, source.encode(), private=True)
        # The compiler's own cache would keep a hidden network's binary.
        caches = {f"ZIG_{which}_CACHE_DIR": str(folder) for which in ("LOCAL", "GLOBAL")}
        command = [*compiler.command, *flags, "-o", str(binary), str(text)]
        done = process.run(command, timeout_s=COMPILE_LIMIT_S, more=caches)
        if done.returncode or not binary.exists():
            raise CloisterError(
                f"build {build}: {compiler.name} failed: {_first(done.stderr, name)}"
            )
        return binary.read_bytes()


def described(binary: bytes, build: str, *, compiler: Compiler, contraction: str) -> Build:
    """The manifest's entry for a build."""
    flags = compiler.flags(build, contraction)
    return Build(compiler.name, flags, hashlib.sha256(binary).hexdigest(), len(binary))


def _first(stderr: bytes, folder: str) -> str:
    lines = stderr.decode(errors="replace").replace(f"{folder}/", "").splitlines()
    found = next((line for line in lines if re.search(r"error|undefined", line)), "")
    return one_line(CloisterError(found or "\n".join(lines)))
