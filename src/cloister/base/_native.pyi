"""The compiled kernels: see bindings/module.cpp."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Int16, Int32, Int64, UInt32, UInt64

# ---- instruction set

FORTIFY_LEVEL: int

def isa() -> str: ...
def force_isa(name: str) -> None: ...
def available_isas() -> list[str]: ...
def amx_refused() -> bool: ...

# ---- what suits a processor; no bit of a result depends on it

class Tuning:
    """Parameters of fused steps: see native/include/cloister/tuning.hpp."""

    def __init__(
        self, *, tile: int = ..., far_tiles: int = ..., stream_from: int = ...
    ) -> None: ...
    @property
    def tile(self) -> int: ...
    @property
    def far_tiles(self) -> int: ...
    @property
    def stream_from(self) -> int: ...

def tuning() -> Tuning: ...
def set_tuning(wanted: Tuning) -> None: ...

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
    @property
    def on_tiles(self) -> bool: ...
    def apply(
        self,
        x: UInt32[np.ndarray, "n h w c"] | Int16[np.ndarray, "n h w c"],
        out: UInt32[np.ndarray, "n oh ow oc"],
        threads: int,
    ) -> None: ...

def ring_map_memory(
    geometry: Geometry, batch: int, bytes_per_element: int, threads: int
) -> tuple[int, int]: ...

# ---- trusted: pads, checks, the steps between linear nodes and their executor

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

class Window:
    """Pooling, or a convolution with one filter per channel; pairs are (height, width)."""

    def __init__(
        self,
        *,
        kind: Literal["max", "average", "depthwise"],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        dilation: tuple[int, int],
        pad: tuple[int, int],
        out_size: tuple[int, int],
        count_include_pad: bool = False,
        weights: Float32[np.ndarray, "kh kw c"] | None = None,
        bias: Float32[np.ndarray, " c"] | None = None,
        lo: float = ...,
        hi: float = ...,
    ) -> None: ...

class Sink:
    """How a value becomes the request of one linear node."""

    @staticmethod
    def checked(
        *,
        inv_scale: float,
        qmax: int,
        rows: UInt64[np.ndarray, "h terms c"],
        columns: UInt64[np.ndarray, "terms w"] | None,
    ) -> Sink: ...
    @staticmethod
    def unchecked(*, inv_scale: float, qmax: int) -> Sink: ...

class FusedShape:
    """What all fused steps have in common."""

    def __init__(
        self,
        *,
        height: int,
        width: int,
        channels: int,
        lo: float = ...,
        hi: float = ...,
        window: Window | None = None,
        sinks: Sequence[Sink],
    ) -> None: ...

class SinkArrays:
    """Where one request goes, and its pad: a key with nonces, or the pad itself."""

    def __init__(
        self,
        out: UInt32[np.ndarray, "n oh ow c"] | Int16[np.ndarray, "n oh ow c"],
        *,
        key: bytes | None = None,
        nonces: bytes | None = None,
        pad: UInt32[np.ndarray, "n oh ow c"] | None = None,
    ) -> None: ...

class FusedStep:
    """From a float32 value, or from an answer that is checked or left unchecked for good."""

    @staticmethod
    def of_values(shape: FusedShape) -> FusedStep: ...
    @staticmethod
    def checked(
        shape: FusedShape,
        *,
        scale: Float32[np.ndarray, " c"],
        bias: Float32[np.ndarray, " c"],
        a: UInt64[np.ndarray, " positions"],
        b: UInt64[np.ndarray, " channels"],
    ) -> FusedStep: ...
    @staticmethod
    def unchecked(
        shape: FusedShape, *, scale: Float32[np.ndarray, " c"], bias: Float32[np.ndarray, " c"]
    ) -> FusedStep: ...
    @property
    def is_checked(self) -> bool: ...
    def run(
        self,
        *,
        n: int,
        source: UInt32[np.ndarray, "n h w c"] | Float32[np.ndarray, "n h w c"],
        sinks: Sequence[SinkArrays],
        answer_sums: UInt64[np.ndarray, " n"],
        request_sums: UInt64[np.ndarray, "sinks n"],
        clipped: UInt64[np.ndarray, "sinks n"],
        unblind: UInt32[np.ndarray, "n h w c"] | None = None,
        residual: Float32[np.ndarray, "n h w c"] | None = None,
        store_pre: Float32[np.ndarray, "n h w c"] | None = None,
        store_post: Float32[np.ndarray, "n oh ow c"] | None = None,
        threads: int = 1,
    ) -> None: ...

class Stop:
    """Why a run ended, and at which step, which was not completed."""

    @property
    def why(
        self,
    ) -> Literal[
        "done", "mismatch", "unbound", "outside", "unsent", "unanswered", "unexpected"
    ]: ...
    @property
    def step(self) -> int: ...
    @property
    def request_id(self) -> int: ...
    @property
    def deadline_s(self) -> float: ...
    @property
    def packet(self) -> bytes: ...

class Executor:
    """The steps of one program for one batch size; `checked` is by linear node.

    pad_offsets   first word of every blinded node's terms in the `pad_words` words of a pad set
    """

    def __init__(
        self,
        *,
        checked: Sequence[bool],
        batch: int,
        threads: int,
        pad_offsets: Mapping[int, int] = ...,
        pad_words: int = 0,
    ) -> None: ...
    def add_fused(
        self,
        step: FusedStep,
        *,
        node: int | None,
        unblinds: bool,
        binds: bool,
        reply: UInt32[np.ndarray, "n h w c"] | None,
        residual: Float32[np.ndarray, "n h w c"] | None,
        store_pre: Float32[np.ndarray, "n h w c"] | None,
        store_post: Float32[np.ndarray, "n oh ow c"] | None,
        sink_nodes: Sequence[int],
        messages: Sequence[UInt32[np.ndarray, "n oh ow c"] | Int16[np.ndarray, "n oh ow c"] | None],
        clipped: Sequence[UInt64[np.ndarray, " n"]],
    ) -> None: ...
    def add_exchange(
        self,
        *,
        node: int,
        packet: bytes,
        answer: bytes,
        id_offset: int,
        staged: Int16[np.ndarray, "n h w c"] | None,
        place: Int16[np.ndarray, "n h w c"] | None,
    ) -> None: ...
    def add_segment(
        self,
        *,
        packet: bytes,
        answer: bytes,
        id_offset: int,
        value: Float32[np.ndarray, "n h w c"],
        place: Float32[np.ndarray, "n ..."],
        channels_first: bool,
    ) -> None: ...
    def add_outside(self, *, node: int | None = None) -> None: ...
    def begin(
        self,
        *,
        keys: Sequence[bytes] = (),
        pad_ids: Sequence[int] = (),
        terms: Sequence[UInt32[np.ndarray, " words"]] = (),
        mask_keys: Sequence[bytes | None] = (),
    ) -> None: ...
    def bind(
        self,
        step: int,
        *,
        source: Float32[np.ndarray, "n h w c"] | None,
        residual: Float32[np.ndarray, "n h w c"] | None,
        messages: Sequence[UInt32[np.ndarray, "n oh ow c"] | Int16[np.ndarray, "n oh ow c"] | None],
        pads: Sequence[UInt32[np.ndarray, "n oh ow c"] | None],
    ) -> None: ...
    def end(self) -> None: ...
    def run(
        self,
        first: int,
        *,
        next_request_id: int,
        descriptor: int,
        timeout_s: float,
        max_packet_bytes: int,
    ) -> Stop: ...
    def answered(self, step: int, answer: UInt32[np.ndarray, "n h w c"] | None = None) -> None: ...
    @property
    def outstanding(self) -> tuple[int, int] | None: ...
    def costs(self, out: Int64[np.ndarray, "steps 3"], count: int) -> tuple[int, int, int]: ...

def reaches(
    counts: UInt64[np.ndarray, "nodes images"], limits: UInt64[np.ndarray, " nodes"]
) -> bool: ...

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
def scale_difference(
    p: UInt32[np.ndarray, "..."],
    m: UInt32[np.ndarray, "..."],
    factor: float,
    out: Float32[np.ndarray, "..."],
) -> None: ...
def dense_gradient(
    delta: Int16[np.ndarray, "n outputs"],
    x: UInt32[np.ndarray, "n inputs"],
    out: UInt32[np.ndarray, "outputs inputs"],
    threads: int,
) -> None: ...
def all_finite(x: Float32[np.ndarray, "..."]) -> bool: ...
def interleave(
    x: Float32[np.ndarray, "n rows columns"], out: Float32[np.ndarray, "n columns rows"]
) -> bool: ...
def transpose(
    x: UInt32[np.ndarray, "rows columns"],
    out: UInt32[np.ndarray, "columns rows"],
) -> None: ...
