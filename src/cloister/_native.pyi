"""The compiled kernels: see bindings/module.cpp."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64, Int16, Int32, UInt32, UInt64

# ---- instruction set

FORTIFY_LEVEL: int

def isa() -> str: ...
def force_isa(name: str) -> None: ...
def available_isas() -> list[str]: ...

# ---- ring: exact linear maps modulo 2^32

class Geometry:
    def __init__(
        self,
        *,
        in_size: tuple[int, int],
        in_channels: int,
        out_size: tuple[int, int],
        out_channels: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        dilation: tuple[int, int],
        upsample: tuple[int, int],
        pad: tuple[int, int],
        groups: int,
    ) -> None: ...

class RingMap:
    def __init__(self, geometry: Geometry, weights: Int16[np.ndarray, "o kh kw c"]) -> None: ...
    def apply(
        self,
        x: UInt32[np.ndarray, "n h w c"] | Int16[np.ndarray, "n h w c"],
        out: UInt32[np.ndarray, "n oh ow oc"],
        threads: int,
    ) -> None: ...

def ring_map_memory(
    geometry: Geometry, batch: int, bytes_per_element: int, threads: int
) -> tuple[int, int]: ...

# ---- trusted: pads, checks, the pass between linear nodes

def aes_ctr_fill(
    key: bytes, nonce: bytes, first_block: int, out: UInt32[np.ndarray, " words"]
) -> None: ...
def freivalds_factors(
    geometry: Geometry,
    weights: Int16[np.ndarray, "o kh kw c"],
    alpha: UInt64[np.ndarray, " oh"],
    beta: UInt64[np.ndarray, " ow"],
    b: UInt64[np.ndarray, " channels"],
    a: UInt64[np.ndarray, " positions"],
    columns: UInt64[np.ndarray, "kw w"],
    rows: UInt64[np.ndarray, "h kw c"],
    threads: int = 1,
) -> None: ...
def freivalds_expand(
    geometry: Geometry,
    columns: UInt64[np.ndarray, "kw w"],
    rows: UInt64[np.ndarray, "h kw c"],
    t: UInt64[np.ndarray, "h w c"],
    threads: int = 1,
) -> None: ...
def freivalds_dot(
    coefficients: UInt64[np.ndarray, " count"], values: Int32[np.ndarray, " count"]
) -> int: ...
def split_share(
    share: UInt32[np.ndarray, " words"],
    t: UInt64[np.ndarray, " words"],
    widths: Sequence[int],
    digits: Int16[np.ndarray, "digits words"],
    sums: UInt64[np.ndarray, " digits"],
) -> None: ...
def add_answers(
    answers: UInt32[np.ndarray, "digits h w c"],
    a: UInt64[np.ndarray, " positions"],
    b: UInt64[np.ndarray, " channels"],
    widths: Sequence[int],
    out: UInt32[np.ndarray, "h w c"],
    sums: UInt64[np.ndarray, " digits"],
) -> None: ...

class Pass:
    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        scale: Float32[np.ndarray, " c"] | None,
        bias: Float32[np.ndarray, " c"] | None,
        act_lo: float,
        act_hi: float,
        window: Sequence[int] | None,
        sinks: Sequence[tuple[float, int]],
        depthwise: tuple[Float32[np.ndarray, "kh kw c"], Float32[np.ndarray, " c"], float, float]
        | None = None,
    ) -> None: ...
    def set_check(
        self, a: UInt64[np.ndarray, " positions"] | None, b: UInt64[np.ndarray, " channels"] | None
    ) -> None: ...
    def set_sink_check(
        self,
        sink: int,
        rows: UInt64[np.ndarray, "h terms c"] | None,
        columns: UInt64[np.ndarray, "terms w"] | None,
    ) -> None: ...
    def run(
        self,
        n: int,
        source: UInt32[np.ndarray, "n h w c"] | Float32[np.ndarray, "n h w c"],
        unblind: UInt32[np.ndarray, "n h w c"] | None,
        residual: Float32[np.ndarray, "n h w c"] | None,
        store_pre: Float32[np.ndarray, "n h w c"] | None,
        store_post: Float32[np.ndarray, "n oh ow c"] | None,
        sink_out: Sequence[UInt32[np.ndarray, "n oh ow c"] | Int16[np.ndarray, "n oh ow c"]],
        sink_keys: Sequence[bytes | None],
        sink_nonces: Sequence[bytes | None],
        sink_pads: Sequence[UInt32[np.ndarray, "n oh ow c"] | None],
        sums_out: UInt64[np.ndarray, " n"],
        sums_in: UInt64[np.ndarray, "sinks n"],
        clipped: UInt64[np.ndarray, "sinks n"],
        threads: int = 1,
    ) -> None: ...

class Walker:
    def __init__(self, nodes: int, batch: int, threads: int) -> None: ...
    def add_pass(
        self,
        native: Pass,
        node: int,
        unblinds: bool,
        accepts: bool,
        reply: UInt32[np.ndarray, "n h w c"] | None,
        residual: Float32[np.ndarray, "n h w c"] | None,
        store_pre: Float32[np.ndarray, "n h w c"] | None,
        store_post: Float32[np.ndarray, "n oh ow c"] | None,
        sink_nodes: Sequence[int],
        sink_out: Sequence[UInt32[np.ndarray, "n oh ow c"] | Int16[np.ndarray, "n oh ow c"]],
        clipped: Sequence[UInt64[np.ndarray, " n"]],
    ) -> int: ...
    def set_inputs(
        self,
        step: int,
        source: Float32[np.ndarray, "n h w c"] | None,
        residual: Float32[np.ndarray, "n h w c"] | None,
    ) -> None: ...
    def add_exchange(
        self,
        node: int,
        packet: bytes,
        answer: bytes,
        id_offset: int,
        staged: Int16[np.ndarray, "n h w c"] | None,
        place: Int16[np.ndarray, "n h w c"] | None,
    ) -> int: ...
    def begin(
        self,
        key: bytes | None,
        pad_ids: Sequence[int],
        hidden: Sequence[int],
        unblinding: Sequence[Sequence[UInt32[np.ndarray, "h w c"]]],
    ) -> None: ...
    def end(self) -> None: ...
    def run(
        self,
        first: int,
        last: int,
        next_request_id: int,
        descriptor: int,
        timeout_s: float,
        max_packet_bytes: int,
    ) -> tuple[str, int, int, float, bytes]: ...
    def answered(self, step: int) -> None: ...
    @property
    def outstanding(self) -> tuple[int, int] | None: ...
    def costs(self) -> list[tuple[int, int]]: ...

# ---- workers

def busy_poll(descriptor: int, patience_us: int) -> bool: ...

# ---- encrypted training: fixed point

def magnitudes(
    v: Float32[np.ndarray, "a b c"] | Float64[np.ndarray, "a b c"],
) -> tuple[float, float]: ...
def round_scaled(
    v: Float32[np.ndarray, "a b c"] | Float64[np.ndarray, "a b c"],
    exponent: int,
    out: Int16[np.ndarray, "a c b"],
) -> None: ...
def transpose(
    x: UInt32[np.ndarray, "rows columns"],
    out: UInt32[np.ndarray, "columns rows"],
) -> None: ...
