"""Random-weight checkpoints of the released shapes, for measuring memory, speed and size at full size.

A checkpoint is streamed: the safetensors header first, then each tensor in pieces of rows. Every row is a window, at an
offset of its own and with a random sign, of one block of gaussian values that is scaled and rounded once per scale: as
fast as copying, no two rows of a tensor are equal, and the bytes depend on config and seed alone.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from lfm2export.errors import OutputError, SourceError
from lfm2export.progress import Progress, silent
from lfm2export.spec import ModelSpec, parse_spec
from lfm2export.staging import staged_output

Dtype = Literal["BF16", "F16", "F32"]
Bits = NDArray[np.unsignedinteger[Any]]

ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}

#: Values in the gaussian block, a power of two so that odd strides visit every offset once.
BLOCK_VALUES = 1 << 20
#: Bytes of one piece of rows.
PIECE_BYTES = 8 << 20

#: A card, so that nobody takes the numbers for a model.
CARD = """---
license: apache-2.0
pipeline_tag: text-generation
---

# Random weights of the shapes of LFM2-{size}

Written by `lfm2-export synth {size}` (seed {seed}) to measure the memory, speed and size of an export. It has learned
nothing. Tokenizer and chat template are those of the small model that ships with lfm2export.
"""

#: hidden size, heads, layers, block_ff_dim, auto-adjusted, attention layers of the released checkpoints.
_SIXTEEN = (2, 5, 8, 10, 12, 14)
_THIRTY = (2, 5, 9, 13, 17, 21, 24, 27)
FAMILY: dict[str, tuple[int, int, int, int, bool, tuple[int, ...]]] = {
    "350M": (1024, 16, 16, 6656, True, _SIXTEEN),
    "700M": (1536, 24, 16, 10240, True, _SIXTEEN),
    "1.2B": (2048, 32, 16, 12288, True, _SIXTEEN),
    "2.6B": (2048, 32, 30, 10752, False, _THIRTY),
}

#: What stands beside the weights, copied from the shipped model; without the first two nothing can be built from it.
REQUIRED_COMPANIONS = ("tokenizer.json", "tokenizer_config.json")
COMPANIONS = (*REQUIRED_COMPANIONS, "chat_template.jinja", "generation_config.json", "LICENSE", "NOTICE")


def family_config(size: str) -> dict[str, Any]:
    """config.json of the released checkpoint of this `size`, with the keys that the hub has.

    Raises:
        SourceError: no such size.
    """
    if size not in FAMILY:
        raise SourceError(f"there is no LFM2 of size {size!r}, expected one of {', '.join(FAMILY)}")
    hidden, heads, layers, ff_dim, adjust, attention = FAMILY[size]
    return {
        "architectures": ["Lfm2ForCausalLM"],
        "block_auto_adjust_ff_dim": adjust,
        "block_dim": hidden,
        "block_ff_dim": ff_dim,
        "block_ffn_dim_multiplier": 1.0,
        "block_mlp_init_scale": 1.0,
        "block_multiple_of": 256,
        "block_norm_eps": 1e-05,
        "block_out_init_scale": 1.0,
        "block_use_swiglu": True,
        "block_use_xavier_init": True,
        "bos_token_id": 1,
        "conv_L_cache": 3,
        "conv_bias": False,
        "conv_dim": hidden,
        "conv_dim_out": hidden,
        "conv_use_xavier_init": True,
        "eos_token_id": 7,
        "full_attn_idxs": list(attention),
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "max_position_embeddings": 128000,
        "model_type": "lfm2",
        "norm_eps": 1e-05,
        "num_attention_heads": heads,
        "num_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "pad_token_id": 0,
        "rope_theta": 1000000.0,
        "theta": 1000000.0,
        "tie_embedding": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.55.0.dev0",
        "use_cache": True,
        "use_pos_enc": True,
        "vocab_size": 65536,
    }


def write_synth(
    size: str,
    folder: Path,
    *,
    seed: int = 0,
    shard_bytes: int | None = None,
    progress: Progress = silent,
    companions: Path | None = None,
) -> Path:
    """A random checkpoint of a released `size` at `folder`: weights (BF16), config, tokenizer, chat template, licence.

    Memory is bounded by a few pieces of rows. The folder appears whole or not at all.

    Args:
        shard_bytes: split the weights, with an index, into files of at most this many bytes (a larger tensor alone).
        companions: where tokenizer and the like come from; the shipped model unless told.

    Raises:
        SourceError: no such size, or no tokenizer among the companions.
        OutputError: the folder exists and is not empty, or cannot be written.
    """
    config = family_config(size)
    if companions is None:
        companions = Path(str(resources.files("lfm2export") / "shipped"))
    for name in REQUIRED_COMPANIONS:
        if not (companions / name).is_file():
            raise SourceError(f"{companions} has no {name}; reinstall the package, the shipped model belongs to it")
    card = CARD.format(size=size, seed=seed)
    return _write(config, folder, companions, seed, "BF16", shard_bytes, progress, card)


def write_custom(
    config: Mapping[str, Any],
    folder: Path,
    *,
    seed: int = 0,
    dtype: Dtype = "BF16",
    shard_bytes: int | None = None,
    companions: Path | None = None,
) -> Path:
    """A random checkpoint of any `config`, with whatever of :data:`COMPANIONS` the `companions` folder holds.

    Raises:
        ConfigError: the config is not one of an LFM2.
        OutputError: as for :func:`write_synth`.
    """
    return _write(dict(config), folder, companions, seed, dtype, shard_bytes, silent)


def _write(
    config: dict[str, Any],
    folder: Path,
    companions: Path | None,
    seed: int,
    dtype: Dtype,
    shard_bytes: int | None,
    progress: Progress,
    card: str | None = None,
) -> Path:
    spec = parse_spec(config)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is not an empty folder; choose another one, or remove it first")
    with staged_output(folder, force=True) as staged:  # force: an empty folder may stand there
        staging = staged.folder
        _write_weights(spec, staging, seed, dtype, shard_bytes, progress)
        (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name in COMPANIONS:
            if companions is not None and (companions / name).is_file():
                shutil.copyfile(companions / name, staging / name)
        if card is not None:
            (staging / "README.md").write_text(card, encoding="utf-8")
    return folder


def _write_weights(
    spec: ModelSpec, folder: Path, seed: int, dtype: Dtype, shard_bytes: int | None, progress: Progress
) -> None:
    shapes = spec.source_tensors()
    sizes = {name: math.prod(shape) * ITEM_BYTES[dtype] for name, shape in shapes.items()}
    shards = _shards(sizes, shard_bytes)
    files = ["model.safetensors"]
    if shard_bytes is not None:
        files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True)
        (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")
    source = _Gaussian(spec, seed, dtype)
    done, total = 0, sum(sizes.values())
    for file, shard in zip(files, shards, strict=True):
        with (folder / file).open("wb") as out:
            _write_header(out, {name: (shapes[name], sizes[name]) for name in shard}, dtype)
            for name in shard:
                for piece in source.pieces(name, shapes[name]):
                    out.write(np.ascontiguousarray(piece).data)
                    done += piece.nbytes
                    progress("synth", done, total, "B")


def _shards(sizes: Mapping[str, int], limit: int | None) -> list[list[str]]:
    """Names in order, cut so that no shard of more than one tensor holds more than `limit` bytes."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if limit is not None and shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _write_header(out: BinaryIO, tensors: Mapping[str, tuple[tuple[int, ...], int]], dtype: Dtype) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8, as the format asks
    out.write(struct.pack("<Q", len(text)) + text)


class _Gaussian:
    """Rows of random weights, deterministic per (seed, tensor name)."""

    def __init__(self, spec: ModelSpec, seed: int, dtype: Dtype) -> None:
        self.spec = spec
        self.seed = seed
        self.dtype = dtype
        longest = max(spec.hidden_size, spec.intermediate_size, spec.num_attention_heads * spec.head_dim)
        self.block = np.random.default_rng(seed).standard_normal(BLOCK_VALUES + longest, dtype=np.float32)
        self._scaled: dict[float, Bits] = {}

    def pieces(self, name: str, shape: tuple[int, ...]) -> Iterator[Bits]:
        """The tensor's stored bits, in pieces of rows, in order."""
        random = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        if len(shape) != 2:
            yield _round(self._small(name, shape, random), self.dtype)
            return
        rows, columns = shape
        bits = self._bits(self._deviation(name, columns))
        windows = np.lib.stride_tricks.sliding_window_view(bits, columns)
        start = int(random.integers(BLOCK_VALUES))
        stride = int(random.integers(BLOCK_VALUES // 2)) * 2 + 1
        sign = bits.dtype.type(1 << (8 * bits.itemsize - 1))
        flips = random.integers(2, size=rows, dtype=np.uint8).astype(bool)
        step = max(1, PIECE_BYTES // (columns * bits.itemsize))
        for first in range(0, rows, step):
            index = np.arange(first, min(rows, first + step), dtype=np.int64)
            piece = windows[(start + index * stride) % BLOCK_VALUES]  # [rows of the piece, columns], a copy
            piece[flips[first : first + step]] ^= sign
            yield piece

    def _bits(self, deviation: float) -> Bits:
        if deviation not in self._scaled:
            if len(self._scaled) >= 4:
                self._scaled.clear()
            self._scaled[deviation] = _round(self.block * np.float32(deviation), self.dtype)
        return self._scaled[deviation]

    def _deviation(self, name: str, columns: int) -> float:
        """What keeps activations of order 1: unit gain, residual branches scaled so that their sum stays of order 1."""
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            return 2.5 / math.sqrt(columns)  # logits are a unit vector's sum over H products: deviation 2.5
        gain = 1.0 / math.sqrt(columns)
        if name.endswith(("out_proj.weight", "w2.weight")):
            gain *= 2.0 / math.sqrt(self.spec.num_hidden_layers)
        return gain

    def _small(self, name: str, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.float32]:
        values = random.standard_normal(shape, dtype=np.float32)
        if name.endswith("norm.weight"):
            return np.float32(1.0) + np.float32(0.15) * values
        if name.endswith("bias"):
            return np.float32(0.1) * values
        return values / np.float32(math.sqrt(self.spec.conv_L_cache))  # conv kernel [H, 1, L]


def _round(values: NDArray[np.float32], dtype: Dtype) -> Bits:
    """The bits of `values` in `dtype`, rounded to nearest, ties to even."""
    if dtype == "F32":
        return values.view(np.uint32)
    if dtype == "F16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
