"""Makes vectors/tpm anew from a fresh TPM that swtpm plays: `python tests/attest/record_tpm.py`.

Needs swtpm and tpm2-tools. The quotes by RSA keys are made by tpm2-tools alone, so their bytes owe
nothing to our own commands.
"""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from attest.tpm_server import RECORDED, running
from cloister.attest import tpm_attester
from cloister.attest.tpm import REGISTERS, TpmEvidence, qualifying
from cloister.attest.tpm_attester import TpmAttester
from cloister.attest.tpm_commands import Tpm, open_tpm
from cloister.attest.tpm_structures import ENDORSEMENT
from cloister.base.rng import InsecureSeededRandom
from cloister.tickets import tpm_counter

DATA = bytes(range(64))
STARTED = {0: "11", 4: "44", 7: "77", 8: "88", 9: "99", 11: "bb"}
SIGNS = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign|noda"


def main():
    folder = RECORDED.parent
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as state, running(Path(state)) as path:
        for index, octet in STARTED.items():
            tool(path, "pcrextend", f"{index}:sha256={octet * 32}")
        exchange = []
        tpm_attester.open_tpm = recording(exchange)
        (folder / "quote.bin").write_bytes(TpmAttester(path).evidence(DATA))
        for scheme in ("rsassa", "rsapss"):
            (folder / f"quote_{scheme}.bin").write_bytes(by_tools(path, scheme, Path(state)))
        counted = []
        tpm_counter.open_tpm = recording(counted)
        counter = tpm_counter.TpmCounter.open(path, rng=InsecureSeededRandom(7))
        counter.read()
        counter.advance(1, 3)
        counter.read()
    RECORDED.write_text(json.dumps({"evidence": exchange, "counter": counted}, indent=1) + "\n")


def recording(exchange):
    @contextmanager
    def opened(path):
        with open_tpm(path) as tpm:
            yield Tpm(Recording(tpm._connection, exchange))

    return opened


class Recording:
    def __init__(self, connection, exchange):
        self._connection, self._exchange = connection, exchange

    def exchange(self, command):
        answer = self._connection.exchange(command)
        self._exchange.append((command.hex(), answer.hex()))
        return answer


def tool(path, name, *arguments):
    subprocess.run(
        [f"tpm2_{name}", *arguments], check=True, stdout=subprocess.DEVNULL,
        env={**os.environ, "TPM2TOOLS_TCTI": f"swtpm:path={path}"},
    )  # fmt: skip


def by_tools(path, scheme, folder):
    """A quote by an RSA key, made by tpm2-tools."""
    context, public, message, signature = (str(folder / one) for one in ("c", "p", "m", "s"))
    tool(path, "createprimary", "-C", "e", "-G", f"rsa2048:{scheme}-sha256:null", "-a", SIGNS,
         "-c", context)  # fmt: skip
    tool(path, "readpublic", "-c", context, "-f", "tss", "-o", public)
    tool(path, "quote", "-c", context, "-l", f"sha256:{','.join(map(str, REGISTERS))}", "-q",
         qualifying(DATA).hex(), "--scheme", scheme, "-m", message, "-s", signature)  # fmt: skip
    tool(path, "flushcontext", "-t")
    with open_tpm(path) as tpm:
        registers = tpm.registers(REGISTERS)
    statement, signed, key = (Path(one).read_bytes() for one in (message, signature, public))
    parent = ENDORSEMENT.to_bytes(4, "big")
    return TpmEvidence(statement, signed, key[2:], parent, registers, DATA).encode()


if __name__ == "__main__":
    main()
