"""The C file of a module: a header comment, the kernels it uses, a function for each layer."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from cloister.bundle.manifest import ABI, ModuleTensor, offsets, span
from cloister.codegen.buffer_places import BufferPlaces
from cloister.codegen.lowering import Layer
from cloister.codegen.views import Buffer, View
from cloister.errors import printable

LINE = 100
INCLUDE = re.compile(r'^#include "(\w+\.c)"\n', re.MULTILINE)
INTERFACE = """\
EXPORT uint64_t cloister_module_size(int32_t which);
EXPORT int32_t cloister_module_run(
    const void *weights, uint64_t weights_bytes, const void *inputs, uint64_t inputs_bytes,
    void *outputs, uint64_t outputs_bytes, void *arena, uint64_t arena_bytes);
"""
CHECKS = """\
/* One sample. 0: done. 1 to 4: that length is not the module's, and nothing was written. */
int32_t cloister_module_run(
    const void *weights, uint64_t weights_bytes, const void *inputs, uint64_t inputs_bytes,
    void *outputs, uint64_t outputs_bytes, void *arena, uint64_t arena_bytes)
{
    if (weights_bytes != WEIGHTS_BYTES)
        return 1;
    if (inputs_bytes != INPUTS_BYTES)
        return 2;
    if (outputs_bytes != OUTPUTS_BYTES)
        return 3;
    if (arena_bytes != ARENA_BYTES)
        return 4;
"""
SIZES = """\
/* Bytes that the caller provides, each at a multiple of 64: 1 weights, 2 inputs, 3 outputs,
 * 4 arena; 0 is the version of this interface. */
uint64_t cloister_module_size(int32_t which)
{
    static const uint64_t sizes[5] = {
        INTERFACE_VERSION, WEIGHTS_BYTES, INPUTS_BYTES, OUTPUTS_BYTES, ARENA_BYTES,
    };
    return which >= 0 && which < 5 ? sizes[which] : 0;
}
"""


@dataclass(frozen=True)
class ModuleParts:
    """What the text of a module states."""

    operators: Sequence[str]
    layers: Sequence[Layer]
    inputs: Mapping[Buffer, ModuleTensor]
    outputs: Mapping[Buffer, ModuleTensor]
    places: BufferPlaces


def c_source(parts: ModuleParts) -> str:
    """The text of a module; the same for the same parts."""
    used = ["prelude.c", "memory.c", *(name for layer in parts.layers for name in layer.uses)]
    names = [f"layer_{at}_{layer.name}" for at, layer in enumerate(parts.layers)]
    layers = [_function(n, layer) for n, layer in zip(names, parts.layers, strict=True)]
    pieces = [_header(parts), _constants(parts), *kernel_texts(used), INTERFACE, *layers]
    pieces += [SIZES, _run(parts, names)]
    return "\n".join(piece.rstrip("\n") + "\n" for piece in pieces)


def _header(parts: ModuleParts) -> str:
    lines = [
        "A hidden module: layers of a neural network, compiled by Cloister for one sample.",
        "",
        "Operators: " + (", ".join(parts.operators) or "none"),
        *(f"Input:  {_tensor(one)}" for one in parts.inputs.values()),
        *(f"Output: {_tensor(one)}" for one in parts.outputs.values()),
        f"Memory: {parts.places.weights_bytes} bytes of weights, "
        f"{parts.places.arena_bytes} bytes of arena",
        "",
        "Needs no libc, allocates nothing, and has no branch or index that depends on values or",
        "weights. Images are (height, width, channels) in memory. Compile with -std=c11 and",
        "-ffp-contract=off. CONTRACT: a product and its sum are rounded once. HOSTED: there is a",
        "libc, which has memcpy.",
    ]
    wrapped = [piece for line in lines for piece in _wrap(line)]
    return "/*\n" + "\n".join(f" * {line}".rstrip() for line in wrapped) + "\n */\n"


def _wrap(line: str) -> list[str]:
    """A long line in several; a word that is too long stays whole."""
    pieces, indent = [], "    "
    while len(line) > LINE - 3:
        at = line.rfind(" ", len(indent), LINE - 3)
        if at < 0:
            break
        pieces.append(line[:at])
        line = indent + line[at + 1 :]
    return [*pieces, line]


def _tensor(tensor: ModuleTensor) -> str:
    return f"{_safe(tensor.name)}, {tensor.dtype} {tuple(tensor.shape)}"


def _safe(text: str) -> str:
    """Text of the model's for a comment, which it must not end."""
    return re.sub(r"[^A-Za-z0-9_.:,+ ()-]", "_", printable(text))


def _constants(parts: ModuleParts) -> str:
    sizes = {
        "INTERFACE_VERSION": ABI,
        "WEIGHTS_BYTES": parts.places.weights_bytes,
        "INPUTS_BYTES": span(tuple(parts.inputs.values())),
        "OUTPUTS_BYTES": span(tuple(parts.outputs.values())),
        "ARENA_BYTES": parts.places.arena_bytes,
    }
    includes = "#include <stddef.h>\n#include <stdint.h>\n\n"
    return includes + "".join(f"#define {name} UINT64_C({size})\n" for name, size in sizes.items())


def kernel_texts(names: Iterable[str]) -> list[str]:
    """The text of these files and of those they include, each once."""
    found: dict[str, str] = {}

    def add(name: str) -> None:
        if name in found:
            return
        text = _file(name)
        for included in INCLUDE.findall(text):
            add(included)
        found[name] = INCLUDE.sub("", text)

    for name in names:
        add(name)
    return list(found.values())


@cache
def _file(name: str) -> str:
    return (resources.files("cloister.codegen") / "c" / name).read_text(encoding="utf-8")


def _function(name: str, layer: Layer) -> str:
    reads = [f"const {view.c_type} *restrict {one}" for one, view in layer.reads.items()]
    writes = [f"{view.c_type} *restrict {one}" for one, view in layer.writes.items()]
    comment = [f"/* {_safe(layer.title)}"]
    comment += [f" *   {one}: {_shape(view)}" for one, view in layer.reads.items()]
    comment += [f" *   {one}: {_shape(view)} (written)" for one, view in layer.writes.items()]
    lines = ["\n".join(comment) + " */", f"static void {name}("]
    lines += [*_broken(f"    {', '.join((*reads, *writes))})", "    "), "{"]
    if layer.constants:
        named = ", ".join(f"{one} = {value}" for one, value in layer.constants.items())
        lines += ["    enum {", *_broken(f"        {named},", "        "), "    };"]
    body = [piece for line in layer.body for piece in _broken(f"    {line}", "        ")]
    return "\n".join([*lines, *body, "}"])


def _broken(line: str, indent: str) -> list[str]:
    """A long line of C in several, broken after commas."""
    pieces = []
    while len(line) > LINE and (at := line.rfind(", ", 0, LINE)) > 0:
        pieces.append(line[: at + 1])
        line = indent + line[at + 2 :]
    return [*pieces, line]


def _shape(view: View) -> str:
    return f"({', '.join(map(str, view.shape))})"


def _run(parts: ModuleParts, names: Sequence[str]) -> str:
    """The function that checks the lengths and calls every layer."""
    pointers: dict[Buffer, str] = {}
    lines: list[str] = []
    inputs = zip(parts.inputs, offsets(tuple(parts.inputs.values())), strict=True)
    outputs = zip(parts.outputs, offsets(tuple(parts.outputs.values())), strict=True)
    for letter, base, const, places in (
        ("in", "inputs", "const ", dict(inputs)),
        ("out", "outputs", "", dict(outputs)),
        ("w", "weights", "const ", parts.places.weights),
        ("v", "arena", "", parts.places.arena),
    ):
        byte = f"{const}unsigned char *{base}_start = {base};"
        lines.append(byte if places else f"(void){base};")
        for at, (buffer, offset) in enumerate(places.items()):
            kind = View(buffer, (), ()).c_type
            pointers[buffer] = f"{letter}{at}"
            lines.append(
                f"{const}{kind} *{letter}{at} = ({const}{kind} *)({base}_start + {offset});"
            )
        lines += [f"(void)in{at};" for at in range(len(places)) if base == "inputs"]
    for name, layer in zip(names, parts.layers, strict=True):
        views = (*layer.reads.values(), *layer.writes.values())
        lines.append(f"{name}({', '.join(_pointer(pointers, view) for view in views)});")
    return CHECKS + "".join(f"    {line}\n" for line in lines) + "    return 0;\n}\n"


def _pointer(pointers: Mapping[Buffer, str], view: View) -> str:
    name = pointers[view.buffer]
    return f"{name} + {view.start}" if view.start else name
