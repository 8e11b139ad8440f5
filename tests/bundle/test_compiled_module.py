"""The folder of a compiled module."""

from dataclasses import replace

from bundle.bundles import module
from cloister.bundle.compiled_module import CompiledModule


def test_a_folder_has_the_builds_of_one_module_alone(tmp_path):
    first, second = module(0), module(1)
    (tmp_path / "notes.bin").write_bytes(b"the owner's")
    first.save(tmp_path)
    kept = {"wasm": second.manifest.builds["wasm"]}
    later = replace(
        second,
        manifest=replace(second.manifest, builds=kept),
        builds={"wasm": second.builds["wasm"]},
    )
    later.save(tmp_path)
    assert {path.name for path in tmp_path.glob("*.bin")} == {
        "notes.bin", "wasm.bin", "weights.bin",
    }  # fmt: skip
    assert CompiledModule.load(tmp_path).manifest == later.manifest
