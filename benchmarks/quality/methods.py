"""What is compared, as data: a row a method, a list of what the rows are expected to show.

A row of ours is the command line that makes the file. A new method is a new row; nothing else need change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.peers.genai import Recipe
from benchmarks.peers.gguf import Quantized


@dataclass(frozen=True)
class Ours:
    """`lfm2-export build SOURCE --dtype DTYPE ARGUMENTS`.

    outliers: SOURCE is the checkpoint of the same function with 12 channels of each place of each layer so many times
        as large (`benchmarks.outliers`); None leaves it as it is.
    """

    arguments: tuple[str, ...] = ()
    dtype: str = "q4"
    outliers: float | None = None

    @property
    def how(self) -> str:
        source = () if self.outliers is None else (f"(outlier channels x {self.outliers:g})",)
        return " ".join(("lfm2-export build", *source, "--dtype", self.dtype, *self.arguments))


@dataclass(frozen=True)
class Onnxruntime:
    """onnxruntime's MatMulNBitsQuantizer on this package's float graph, whose table is stored in 8 bits as in our q4.

    It quantizes MatMuls and nothing else, and a tied table is none: without that, its rows would have a float table.
    """

    algorithm: Literal["DEFAULT", "k_quant"]
    block_size: int = 32
    symmetric: bool = False

    @property
    def how(self) -> str:
        kind = "symmetric" if self.symmetric else "asymmetric"
        return f"onnxruntime.quantization MatMulNBitsQuantizer, {self.algorithm}, {kind}, block {self.block_size}"


@dataclass(frozen=True)
class Genai:
    """onnxruntime-genai's model builder."""

    recipe: Recipe

    @property
    def how(self) -> str:
        from benchmarks.peers.genai import RECIPES

        precision, options = RECIPES[self.recipe]
        return " ".join(("onnxruntime_genai.models.builder", "-p", precision, "-e cpu --extra_options", *options))


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp's quantizer, without an importance matrix; keys and values in float16, its default."""

    kind: Quantized

    @property
    def how(self) -> str:
        return f"llama_model_quantize {self.kind}"


Maker = Ours | Onnxruntime | Genai | LlamaCpp

FAMILIES: dict[type[Maker], str] = {
    Ours: "lfm2-export",
    Onnxruntime: "onnxruntime",
    Genai: "onnxruntime-genai",
    LlamaCpp: "llama.cpp",
}


@dataclass(frozen=True)
class Method:
    """One row. name: short and unique."""

    name: str
    maker: Maker

    @property
    def family(self) -> str:
        return FAMILIES[type(self.maker)]


ROUND_SYMMETRIC = "round symmetric g32"
DEFAULT = "default q4"
CALIBRATED = "calibrated g32"
CALIBRATED_WIDE = "calibrated g128"
CALIBRATED_SELF = "calibrated g32, own text"
#: No larger than the builder's mixed recipe, which takes 6.18 bits a weight on the shipped model.
MIXED = "mixed, 6.1 bits"
MIXED_CALIBRATED = "mixed, 6.1 bits, calibrated"
VENDOR = "genai k_quant + int8 mix"

#: Text that the model writes itself, four times the default's.
SELF = ("--calibration-text", "self", "--calibration-tokens", "65536")

#: Every ratio in the table is to this row.
BASELINE = ROUND_SYMMETRIC

METHODS: tuple[Method, ...] = (
    Method(ROUND_SYMMETRIC, Ours(("--quantizer", "round", "--symmetric"))),
    Method("round g32", Ours(("--quantizer", "round"))),
    Method("search symmetric g32", Ours(("--symmetric",))),
    Method(DEFAULT, Ours()),
    Method("round symmetric g32, 4-bit table", Ours(("--quantizer", "round", "--symmetric", "--table-bits", "4"))),
    Method("search g32, 4-bit table", Ours(("--table-bits", "4"))),
    Method("search g16", Ours(("--block-size", "16"))),
    Method("search g64", Ours(("--block-size", "64"))),
    Method("round symmetric g128", Ours(("--quantizer", "round", "--symmetric", "--block-size", "128"))),
    Method("search g128", Ours(("--block-size", "128"))),
    Method("search g256", Ours(("--block-size", "256"))),
    Method("search g128, 4-bit table", Ours(("--block-size", "128", "--table-bits", "4"))),
    Method(CALIBRATED, Ours(("--calibrate",))),
    Method(CALIBRATED_WIDE, Ours(("--calibrate", "--block-size", "128"))),
    Method("calibrated g256", Ours(("--calibrate", "--block-size", "256"))),
    Method(CALIBRATED_SELF, Ours(("--calibrate", *SELF))),
    Method("calibrated g256, own text", Ours(("--calibrate", "--block-size", "256", *SELF))),
    Method(MIXED, Ours(("--target-bpw", "6.1"))),
    Method(MIXED_CALIBRATED, Ours(("--target-bpw", "6.1", "--calibrate"))),
    Method("q8", Ours(dtype="q8")),
    Method("outliers x 50, default q4", Ours(outliers=50)),
    Method("outliers x 50, calibrated g32", Ours(("--calibrate",), outliers=50)),
    Method("outliers x 50, q8", Ours(dtype="q8", outliers=50)),
    Method("onnxruntime RTN symmetric g32", Onnxruntime("DEFAULT", symmetric=True)),
    Method("onnxruntime RTN g32", Onnxruntime("DEFAULT")),
    Method("onnxruntime k_quant g32", Onnxruntime("k_quant")),
    Method("genai RTN", Genai("rtn")),
    Method("genai k_quant", Genai("k_quant")),
    Method(VENDOR, Genai("vendor")),
    Method("llama.cpp Q4_0", LlamaCpp("Q4_0")),
    Method("llama.cpp Q4_K_M", LlamaCpp("Q4_K_M")),
)


@dataclass(frozen=True)
class Target:
    """`method` has at most `limit` times the KLD of `against`, both as shipped, by prefill."""

    method: str
    against: str
    limit: float


TARGETS: tuple[Target, ...] = (
    Target(DEFAULT, ROUND_SYMMETRIC, 0.78),
    Target(CALIBRATED, ROUND_SYMMETRIC, 0.60),
    Target(CALIBRATED_SELF, ROUND_SYMMETRIC, 0.45),
    Target(CALIBRATED_WIDE, ROUND_SYMMETRIC, 1.0),
    Target(MIXED, VENDOR, 0.60),
    Target(MIXED_CALIBRATED, VENDOR, 0.60),
)
