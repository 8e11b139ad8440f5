"""Where a benchmark ran: processor, accelerator, versions and the commit that was measured."""

import subprocess

from benchmarks import ROOT
from cloister.cli.speed import machine
from cloister.wire import process

COMMAND_TIMEOUT_S = 10.0


def environment() -> dict[str, object]:
    """What a reader needs to judge a figure; the same keys in every result."""
    gpus = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "none"
    return {**machine(), "gpu": "; ".join(gpus.splitlines()), "git_commit": git_commit()}


def git_commit() -> str | None:
    """The commit of this checkout, "+" behind it when files differ; None without one."""
    commit = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return commit + ("+" if changed else "")


def _output(*command: str) -> str | None:
    """A program's first output, None when it is absent or fails."""
    try:
        ran = process.run(command, timeout_s=COMMAND_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return None if ran.returncode else ran.stdout.decode(errors="replace").strip()
