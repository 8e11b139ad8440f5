"""Where a benchmark ran: processor, accelerator, versions and the commit that was measured."""

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cloister._native as native
from cloister.wire import process

PACKAGES = ("cloister", "numpy", "onnxruntime", "torch")
FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx512ifma", "avx_vnni", "amx_int8", "aes", "vaes",
    "vpclmulqdq", "neon", "asimd", "sve", "i8mm",
)  # fmt: skip
"""Processor flags that decide which kernels are used, here or in what is compared."""
COMMAND_TIMEOUT_S = 10.0


def environment() -> dict[str, object]:
    """What a reader needs to judge a figure; the same keys in every result."""
    return {
        "cpu": cpu_name(),
        "cpu_flags": cpu_flags(),
        "isa": native.isa(),
        "gpu": gpu_name(),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def cpu_name() -> str:
    """The processor, as the system calls it."""
    names = _cpuinfo("model name")
    return names[0] if names else platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Those of `FLAGS` the processor has."""
    found = {
        flag for line in (_cpuinfo("flags") + _cpuinfo("Features"))[:1] for flag in line.split()
    }
    return [flag for flag in FLAGS if flag in found]


def gpu_name() -> str:
    """The NVIDIA accelerators of the machine; "none" without one."""
    text = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    return "; ".join((text or "").splitlines()) or "none"


def versions() -> dict[str, str]:
    """Versions of what is measured."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_commit(folder: Path | None = None) -> str | None:
    """The commit of the checkout this code lies in, "+" behind it when files differ; else None."""
    root = folder or Path(__file__).resolve().parents[4]
    if not (root / ".git").exists():
        return None
    commit = _output(["git", "-C", str(root), "rev-parse", "HEAD"])
    if commit is None:
        return None
    changed = _output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return commit + ("+" if changed else "")


def _cpuinfo(key: str) -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [
        line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key
    ]


def _output(command: list[str]) -> str | None:
    """A program's first output, None when it is absent or fails."""
    program = shutil.which(command[0], path=process.environment().get("PATH"))
    if program is None:
        return None
    try:
        ran = process.run([program, *command[1:]], timeout_s=COMMAND_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return None if ran.returncode else ran.stdout.decode(errors="replace").strip()
