"""What is no whole model though it looks like one: adapters, wrapped modules, leftovers of quantization.

Each gets one line that says what it is and how to save the model itself. An adapter's base is named, never fetched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from lfm2export.errors import SourceError, TensorError
from lfm2export.untrusted.json_reader import read_object
from lfm2export.untrusted.paths import find_file, named, shown

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = (ADAPTER_CONFIG, "adapter_model.safetensors", "adapter_model.bin")

MERGE = "load both with PEFT, merge_and_unload(), save_pretrained(FOLDER)"

#: Parts of tensor names -> what has put them there, and how to save the model itself. The first that is found counts.
MARKS = (
    (
        ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"),
        "an unmerged adapter",
        MERGE,
    ),
    (("base_layer",), "an unmerged PEFT model", MERGE),
    (("base_model",), "an unmerged PEFT model", MERGE),
    (("_orig_mod",), "torch.compile", "save the module that was compiled: model._orig_mod.save_pretrained(FOLDER)"),
    (("_fsdp_wrapped_module",), "FSDP", "gather the full state dict and save it with save_pretrained(FOLDER)"),
    (("_checkpoint_wrapped_module",), "activation checkpointing", "save the module that it wraps"),
    (("module",), "DataParallel", "save the module that it wraps: model.module.save_pretrained(FOLDER)"),
    (
        (
            *("qweight", "qzeros", "g_idx", "absmax", "quant_map", "quant_state", "SCB", "scales"),
            *("weight_scale", "weight_scale_inv", "weight_zero_point", "weight_packed", "weight_shape", "input_scale"),
        ),
        "a quantized model",
        "use the checkpoint before it was quantized",
    ),
)
#: A name without the model's own prefix: the module inside Lfm2ForCausalLM was saved.
BARE = "embed_tokens.weight"


def check_adapter(folder: Path, weights: bool) -> None:
    """That no adapter lies in `folder`, alone or beside whole `weights`.

    Raises:
        SourceError: one does; whether the weights have it already, nobody can tell.
    """
    names = [name for name in ADAPTER_FILES if os.path.lexists(folder / name)]
    if not names:
        return
    what = f"a PEFT adapter of {_base(folder)} ({names[0]})"
    if weights:
        raise SourceError(
            f"{folder} holds whole weights and beside them {what}, which an export would leave out; merge it "
            f"({MERGE}), or, if the weights have it already, take its files away"
        )
    raise SourceError(f"{folder} holds {what}, expected a whole model; {MERGE}, and give that folder")


def _base(folder: Path) -> str:
    """The base that the adapter names, for a message."""
    path = find_file(folder, ADAPTER_CONFIG, SourceError)
    remedy = "restore it, or take the adapter's files away"
    base = (
        None if path is None else read_object(path, SourceError, remedy, folder=folder).get("base_model_name_or_path")
    )
    return f"the base {shown(base)}" if isinstance(base, str) and base else "a base that it does not name"


def check_names(names: Iterable[str]) -> None:
    """That no tensor's name says that something else than an Lfm2ForCausalLM was saved.

    Raises:
        TensorError: one does; the message has the mark, what put it there, and how to save the model.
    """
    split = {name: name.split(".") for name in names}
    for marks, origin, remedy in MARKS:
        for name, parts in split.items():
            mark = next((part for part in parts if part in marks), None)
            if mark is not None:
                where = "begin with" if parts[0] == mark else "hold"
                raise TensorError(
                    f"names of the checkpoint's tensors {where} '{mark}.' ({named(name)}), which {origin} puts there, "
                    f"expected those of a plain model; {remedy}"
                )
    if BARE in split:
        raise TensorError(
            f"the checkpoint has {BARE}, expected model.{BARE}: the module inside Lfm2ForCausalLM was saved, without "
            "its head; if it is to write text, load it with Lfm2ForCausalLM.from_pretrained and save that"
        )
