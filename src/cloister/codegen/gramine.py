"""Files for a run under Gramine-SGX: a manifest, and a script that signs and starts it.

They are written and checked as text. They were not run: that needs a processor with SGX.
"""

from pathlib import Path

from cloister.base import files
from cloister.bundle.compiled_module import CompiledModule
from cloister.bundle.manifest import Manifest

BASE_BYTES = 1 << 30
"""Of an enclave, for Python, NumPy and Gramine itself."""
COPIES = 3
"""Of the weights: sealed, opened, and as the module reads them."""
TEMPLATE, LAUNCH, README = "cloister.manifest.template", "launch.sh", "README.md"
MANIFEST_TEXT = """\
# The trusted runtime of a hidden module under Gramine-SGX. Rendered by launch.sh.
# Not run where it was written: see README.md.
loader.entrypoint.uri = "file:{{{{ gramine.libos }}}}"
libos.entrypoint = "{{{{ venv }}}}/bin/python3"
loader.log_level = "error"
loader.insecure__use_cmdline_argv = true
loader.env.LD_LIBRARY_PATH = "/lib:{{{{ arch_libdir }}}}:/usr{{{{ arch_libdir }}}}"
loader.env.PYTHONSAFEPATH = "1"

fs.mounts = [
  {{ path = "/lib", uri = "file:{{{{ gramine.runtimedir() }}}}" }},
  {{ path = "{{{{ arch_libdir }}}}", uri = "file:{{{{ arch_libdir }}}}" }},
  {{ path = "/usr{{{{ arch_libdir }}}}", uri = "file:/usr{{{{ arch_libdir }}}}" }},
  {{ path = "{{{{ venv }}}}", uri = "file:{{{{ venv }}}}" }},
  {{ path = "/model.bundle", uri = "file:{{{{ bundle }}}}" }},
  {{ path = "/tmp", type = "tmpfs" }},
]

# A debug enclave's memory can be read by the host: never set this.
sgx.debug = false
sgx.remote_attestation = "dcap"
sgx.enclave_size = "{enclave_mib}M"
sgx.max_threads = 16
sgx.edmm_enable = false

# Everything that is loaded is measured; the host provides no other file.
sgx.trusted_files = [
  "file:{{{{ gramine.libos }}}}",
  "file:{{{{ gramine.runtimedir() }}}}/",
  "file:{{{{ arch_libdir }}}}/",
  "file:/usr{{{{ arch_libdir }}}}/",
  "file:{{{{ venv }}}}/",
  "file:{{{{ bundle }}}}",
]
"""
LAUNCH_TEXT = """\
#!/bin/sh
# Sign and start: sh launch.sh SIGNING_KEY VENV BUNDLE -- ARGUMENTS OF cloister run
# The signing key is the caller's own; none comes with these files.
set -eu
test "$#" -ge 4 || { echo "usage: $0 SIGNING_KEY VENV BUNDLE -- ARGUMENTS" >&2; exit 2; }
key=$1 venv=$2 bundle=$3
shift 4
gramine-manifest -Dvenv="$venv" -Dbundle="$bundle" -Darch_libdir=/lib/x86_64-linux-gnu \\
  cloister.manifest.template cloister.manifest
gramine-sgx-sign --key "$key" --manifest cloister.manifest --output cloister.manifest.sgx
exec gramine-sgx cloister -P -m cloister run /model.bundle "$@"
"""
README_TEXT = """\
# Gramine-SGX

`cloister.manifest.template` describes an enclave of {enclave_mib} MiB, which holds Python, Cloister
and one sealed bundle ({weights_bytes} bytes of weights, {arena_bytes} bytes of arena).
`sh launch.sh` renders, signs and starts it on a machine with SGX and Gramine.

These files were checked as text. They were not run: the machine that wrote them was not asked for
SGX. Before you rely on them, run them on yours, compare the measurement that `gramine-sgx-sign`
prints with the one that the enclave attests, and keep the signing key outside of this folder. The
engine's own sandbox (seccomp) does nothing inside Gramine, whose boundary takes its place.
"""


def enclave_mib(manifest: Manifest) -> int:
    """Size of an enclave in MiB: a power of two with room for the runtime and the module."""
    buffers = manifest.arena_bytes + manifest.input_bytes + manifest.output_bytes
    needed = BASE_BYTES + COPIES * manifest.weights_bytes + buffers
    size = 1
    while size << 20 < needed:
        size *= 2
    return size


def write_gramine(module: CompiledModule, folder: Path) -> None:
    """Write Gramine's files for a module.

    Raises   OSError
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    manifest = module.manifest
    known = {
        "enclave_mib": enclave_mib(manifest),
        "weights_bytes": manifest.weights_bytes,
        "arena_bytes": manifest.arena_bytes,
    }
    texts = {
        TEMPLATE: MANIFEST_TEXT.format(**known),
        LAUNCH: LAUNCH_TEXT,
        README: README_TEXT.format(**known),
    }
    for name, text in texts.items():
        files.replace(folder / name, text.encode(), private=True)
