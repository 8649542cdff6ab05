"""Runs in the llama environment: a checkpoint as GGUF, and a GGUF quantized by llama.cpp itself.

python -m benchmarks.peers.gguf_worker write SOURCE OUT f32|f16|bf16
python -m benchmarks.peers.gguf_worker quantize GGUF OUT Q4_K_M|Q4_0 THREADS
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import gguf
import llama_cpp

from benchmarks.peers.gguf_layout import ARCHITECTURE, numbers, tensors
from lfm2export.checkpoint import open_checkpoint

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}
#: LFM2's text is split as Llama 3's is.
PRE_TOKENIZER = "lfm2"


def write(source: Path, out: Path, kind: str) -> None:
    """One tensor at a time; matrices in `kind`, all else float32."""
    checkpoint = open_checkpoint(source)
    writer = gguf.GGUFWriter(str(out), ARCHITECTURE)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[kind]])
    for name, value in numbers(checkpoint.spec).items():
        add = writer.add_array if isinstance(value, list) else _add_number(writer, value)
        add(f"{ARCHITECTURE}.{name}", value)
    _add_vocabulary(writer, source, checkpoint.spec.vocab_size)
    stored = [
        (tensor, gguf.GGMLQuantizationType[kind if tensor.matrix else "F32"]) for tensor in tensors(checkpoint.spec)
    ]
    for tensor, dtype in stored:
        nbytes = math.prod(tensor.shape) * ITEM_BYTES[dtype.name]
        writer.add_tensor_info(tensor.name, tensor.shape, None, nbytes, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, dtype in stored:
        values = checkpoint.rows(tensor.source, 0, checkpoint.tensors[tensor.source].shape[0])
        writer.write_tensor_data(gguf.quants.quantize(values.reshape(tensor.shape), dtype))
    writer.close()


def _add_number(writer: gguf.GGUFWriter, value: float) -> Any:
    return writer.add_uint32 if isinstance(value, int) else writer.add_float32


def _add_vocabulary(writer: gguf.GGUFWriter, source: Path, size: int) -> None:
    """The byte-level BPE of tokenizer.json; ids of the table that it does not know are unused tokens."""
    document = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    for token, index in document["model"]["vocab"].items():
        tokens[index], types[index] = token, gguf.TokenType.NORMAL
    for entry in document["added_tokens"]:
        tokens[entry["id"]] = entry["content"]
        types[entry["id"]] = gguf.TokenType.CONTROL if entry["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    gguf.SpecialVocab(source, load_merges=True).add_to_gguf(writer, quiet=True)


def quantize(source: Path, out: Path, kind: str, threads: int) -> None:
    """llama.cpp's own quantizer, with the mix of types that it knows under the name `kind`."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0 if kind == "Q4_0" else llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    parameters.nthread = threads
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), parameters)
    if code:
        raise SystemExit(f"llama_model_quantize returned {code} for {source}")


if __name__ == "__main__":
    action, given, made, kind, *rest = sys.argv[1:]
    if action == "write":
        write(Path(given), Path(made), kind)
    else:
        quantize(Path(given), Path(made), kind, int(rest[0]))
