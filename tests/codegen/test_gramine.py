"""Gramine's files as text: nothing here is run."""

import stat
from dataclasses import replace

import pytest

import nets
from cloister.codegen.gramine import enclave_mib, write_gramine
from cloister.graph.onnx.read import from_model
from codegen.modules import compiled


@pytest.fixture(scope="module")
def module():
    return compiled(from_model(nets.chain(), name="chain"), builds=())


def test_the_enclave_is_no_debug_enclave_and_everything_in_it_is_measured(module, tmp_path):
    write_gramine(module, tmp_path)
    text = (tmp_path / "cloister.manifest.template").read_text()
    settings = dict(line.split(" = ", 1) for line in text.splitlines() if line.startswith("sgx."))
    assert settings["sgx.debug"] == "false"
    assert settings["sgx.remote_attestation"] == '"dcap"'
    assert "sgx.trusted_files" in settings
    assert "sgx.allowed_files" not in text
    assert "file_check_policy" not in text
    assert text.count("{{") == text.count("}}") > 0


def test_no_signing_key_comes_with_the_files(module, tmp_path):
    write_gramine(module, tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["README.md", "cloister.manifest.template", "launch.sh"]
    for path in tmp_path.iterdir():
        assert "PRIVATE KEY" not in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert '--key "$key"' in (tmp_path / "launch.sh").read_text()


def test_the_files_say_that_they_were_not_run(module, tmp_path):
    write_gramine(module, tmp_path)
    assert "They were not run" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("weights", [0, 10**6, 10**9])
def test_the_enclave_has_room_and_is_a_power_of_two(module, weights):
    manifest = replace(module.manifest, weights_bytes=weights)
    size = enclave_mib(manifest)
    assert size & (size - 1) == 0
    assert size << 20 >= 3 * weights + 2**30
