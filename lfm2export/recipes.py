"""Recipes as a table: for every dtype whether it is float16, and the block formats by tensor role.

A new dtype is a new row of :data:`RECIPES` (and a file name in `contract.MODEL_FILES`); `passes.precision` turns a row
into passes. Nothing here imports more than data, so that a bad option is refused at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lfm2export.contract import INT8_KV_DTYPES, KvCache, LogitsMode
from lfm2export.errors import Lfm2ExportError
from lfm2export.weights import BlockFormat, ChannelFormat, Quantizer

LookupKind = Literal["portable", "gather_block_quantized"]
ProfileName = Literal["web", "cpu"]
Int8Form = Literal["channels", "blocks"]
AccuracyLevel = Literal[0, 4]
DEFAULT_ACCURACY: AccuracyLevel = 4
Operators = Literal["few", "plain"]

#: A matrix as files store it -> its format. A matrix is named by its parts: source tensors in the order of their stack.
Chosen = Mapping[tuple[str, ...], BlockFormat]

#: Matrices that have the table's format: the embedding, and the head where it is not the same matrix.
TABLES = ("model.embed_tokens.weight", "lm_head.weight")

BLOCK_SIZES = (16, 32, 64, 128, 256)
TABLE_BITS = (4, 8)
FEWEST_TOKENS = 1024


@dataclass(frozen=True)
class Calibration:
    """What matrices are calibrated on.

    text: None for the text that ships with the package, "self" for text that the model samples, else a file's path.
    tokens: about that many; one sequence in eight is held out, to judge by.
    """

    text: str | None = None
    tokens: int = 16_384

    def __post_init__(self) -> None:
        if self.tokens < FEWEST_TOKENS:
            raise Lfm2ExportError(
                f"{self.tokens} calibration tokens say too little about any matrix, expected at least {FEWEST_TOKENS}"
            )


@dataclass(frozen=True)
class Target:
    """The most that a model file with its data may take: `value` decimal megabytes, or bits per weight of the model.

    text: what formats are compared on, as in :class:`Calibration`.
    """

    value: float
    unit: Literal["MB", "bits per weight"]
    text: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.value < float("inf"):
            raise Lfm2ExportError(f"the target is {self.value:g} {self.unit}, expected a positive number")

    def limit(self, parameters: int) -> int:
        """Bytes."""
        return int(self.value * self._bytes(parameters))

    def shown(self, size: int, parameters: int, whole: Callable[[float], int] = round) -> str:
        """`size` bytes in this unit, to three decimals that `whole` makes."""
        return f"{whole(1000 * size / self._bytes(parameters)) / 1000:.3f}"

    def _bytes(self, parameters: int) -> float:
        return 1e6 if self.unit == "MB" else parameters / 8


@dataclass(frozen=True)
class Options:
    """What a user may choose about the files; the same for every dtype of a build.

    block_size: values of a matrix row that share a scale. 32 is WebGPU's fast path; 256 is fastest on CPUs, and coarse.
    symmetric: 4-bit blocks without a zero point: smaller by 1/64 byte a parameter, and less exact. None: without one
        only where onnxruntime then fuses on WebGPU (see `gate_up_format`).
    table_bits: of the embedding table in q4 and q4f16; the table is the most sensitive tensor of all.
    lookup: how the quantized table is read; see `passes.lookup`.
    operators: "few" makes few kernels of a step on a GPU, see `passes.causal_conv` and `passes.rotary_table`, with an
        operator that onnxruntime has from 1.30 on and OpenVINO 2026.4 not. "plain" takes what every runtime has.
    q8: "channels" rounds weights per output channel and activations per token, both to 8 bits (see
        `passes.int8_matmul`); "blocks" rounds weights in blocks, exacter and slower.
    accuracy_level: of products of blocks (MatMulNBits). 4 lets a kernel round activations to 8 bits in blocks, which is
        three times as fast on CPUs, and with 8-bit weights a hundred times; 0 computes in the activations' own type.
    kv_cache: keys and values of q4 and q8 as the dtype has them ("native"), or as int8 with scales measured on text
        (see `passes.int8_cache`).
    calibration: of the matrices of q4 and q4f16 (see `calibrate`); None takes each by itself.
    target: of q4 and q4f16: the format of every matrix is chosen for it (see `sensitivity`), whatever `block_size`,
        `symmetric` and `table_bits` say, which then are those of q8 alone.
    """

    logits: LogitsMode = "last"
    block_size: int = 32
    symmetric: bool | None = None
    table_bits: Literal[4, 8] = 8
    quantizer: Quantizer = "search"
    lookup: LookupKind = "portable"
    q8: Int8Form = "channels"
    accuracy_level: AccuracyLevel = DEFAULT_ACCURACY
    kv_cache: KvCache = "native"
    operators: Operators = "few"
    calibration: Calibration | None = None
    target: Target | None = None

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            raise Lfm2ExportError(f"block size is {self.block_size}, expected one of {BLOCK_SIZES}")
        if self.lookup == "gather_block_quantized" and self.table_bits == 4 and not self.symmetric:
            raise Lfm2ExportError(
                "GatherBlockQuantized cannot read this table's zero points; add --symmetric, use --table-bits 8, "
                "or leave the lookup portable"
            )


#: What `--profile` chooses where no option says otherwise; what decided each is in README "Which profile". Both run
#: everywhere that is tested, but for what `Options.operators` says; what else was measured (packing, lookup, bits of
#: the table) favours the same for both.
PROFILES: Mapping[ProfileName, Options] = {
    "web": Options(block_size=32, operators="few"),
    "cpu": Options(block_size=256, operators="plain"),
}


def profiled(profile: ProfileName, **explicit: Any) -> Options:
    """The options of `profile`, with those of `explicit` that are not None in their place.

    Raises:
        Lfm2ExportError: as Options.
    """
    return replace(PROFILES[profile], **{name: value for name, value in explicit.items() if value is not None})


@dataclass(frozen=True)
class Recipe:
    """One row: is the file float16, and how many bits have body and table (None: not in blocks).

    few_operators: whether `Options.operators` counts. fp32 and q8 are for older runtimes and OpenVINO too; in
    fp16 onnxruntime's CPU kernel is handed new tokens in unrounded float32 and past ones in float16, so that a prompt
    in chunks differs from the whole by more than float16 does.
    """

    half: bool
    body_bits: Literal[4, 8] | None
    table_bits: Literal[4, 8, "option"] | None
    few_operators: bool = False


RECIPES: dict[str, Recipe] = {
    "fp32": Recipe(half=False, body_bits=None, table_bits=None),
    "fp16": Recipe(half=True, body_bits=None, table_bits=None),
    "q8": Recipe(half=False, body_bits=8, table_bits=8),
    "q4": Recipe(half=False, body_bits=4, table_bits="option", few_operators=True),
    "q4f16": Recipe(half=True, body_bits=4, table_bits="option", few_operators=True),
}


@dataclass(frozen=True)
class Formats:
    """The block format of every matrix of one file: that of its role, or the one chosen for it.

    body, table: None where the matrices of that role stay float. gate_up: of `w1` and `w3`; None: the body's. channels:
    set where every matrix is int8 by channel, whatever the others say.
    """

    body: BlockFormat | None
    table: BlockFormat | None
    chosen: Chosen = field(default_factory=dict)
    channels: ChannelFormat | None = None
    gate_up: BlockFormat | None = None

    def of(self, parts: tuple[str, ...], columns: int | None = None) -> BlockFormat | None:
        """The format of the matrix made of the source tensors `parts`; `columns` decide it where a row is a block."""
        if self.channels is not None and columns is not None:
            return self.channels.block(columns)
        role = self.table if parts[0] in TABLES else self.body
        if self.gate_up is not None and is_gate_up(parts):
            role = self.gate_up
        return self.chosen.get(parts, role)

    def apart(self, parts: tuple[str, ...]) -> bool:
        """Whether the matrix stacked of `parts` is stored, and multiplied by, as two: where that is fused on WebGPU."""
        return is_gate_up(parts) and is_fused_mlp(self.of(parts))


def formats(dtype: str, options: Options, chosen: Chosen | None = None) -> Formats:
    """Formats of the file of `dtype`. `chosen` goes into files with a 4-bit body; the others have one format a role."""
    mixed = chosen if chosen is not None and RECIPES[dtype].body_bits == 4 else {}
    return Formats(
        body_format(dtype, options),
        table_format(dtype, options),
        mixed,
        channel_format(dtype, options),
        gate_up_format(dtype, options),
    )


def channel_format(dtype: str, options: Options) -> ChannelFormat | None:
    """The format of every matrix of the file of `dtype` where it is int8 by channel, else None."""
    if RECIPES[dtype].body_bits == 8 and options.q8 == "channels":
        return ChannelFormat()
    return None


def kv_cache(dtype: str, options: Options) -> KvCache:
    """How the file of `dtype` holds keys and values."""
    return options.kv_cache if dtype in INT8_KV_DTYPES else "native"


def few_operators(dtype: str, options: Options) -> bool:
    """Whether the graph of `dtype` is made for few kernels on a GPU; a file with int8 caches is for processors."""
    return RECIPES[dtype].few_operators and options.operators == "few" and kv_cache(dtype, options) == "native"


def body_format(dtype: str, options: Options) -> BlockFormat | None:
    """Format of the projections, or None where they stay float. Eight bits need no zero point: the gain is nil."""
    bits = RECIPES[dtype].body_bits
    if bits is None:
        return None
    symmetric = bits == 8 or bool(options.symmetric)
    return BlockFormat(bits, options.block_size, symmetric=symmetric, quantizer=options.quantizer)


def gate_up_format(dtype: str, options: Options) -> BlockFormat | None:
    """Format of SwiGLU's two projections: the body's, without zero points where those alone keep WebGPU from fusing.

    On the shipped model that takes KLD from 71 to 73 % of symmetric rounding's.
    """
    body = body_format(dtype, options)
    if body is None or options.symmetric is not None:
        return body
    fusable = replace(body, symmetric=True)
    return fusable if is_fused_mlp(fusable) else body


def is_gate_up(parts: tuple[str, ...]) -> bool:
    """Whether a matrix is stacked of SwiGLU's gate and up."""
    return [part.split(".")[-3:-1] for part in parts] == [["feed_forward", "w1"], ["feed_forward", "w3"]]


def is_fused_mlp(format: BlockFormat | None) -> bool:
    """Whether onnxruntime, on WebGPU, makes one MatMulNBitsMlp of a norm, two products of this format and their gate.

    Its MatMulNBitsMlpFusion (seen in 1.30 and 1.31-dev) asks for 4 bits, blocks of 32 and no zero points.
    """
    return format is not None and (format.bits, format.block_size, format.symmetric) == (4, 32, True)


def table_format(dtype: str, options: Options) -> BlockFormat | None:
    """Format of the embedding table and of the head."""
    bits = RECIPES[dtype].table_bits
    if bits is None:
        return None
    chosen = options.table_bits if bits == "option" else bits
    symmetric = chosen == 8 or bool(options.symmetric)
    return BlockFormat(chosen, options.block_size, symmetric=symmetric, quantizer=options.quantizer)
