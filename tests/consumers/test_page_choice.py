"""Which file the chat page takes on which machine, and what it says of it: the page's own module, run in Node."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest

from lfm2export.consumers.page_files import PAGE

pytestmark = pytest.mark.consumer

MB = 1_000_000
#: 350M, every dtype.
FILES: dict[str, dict[str, Any]] = {
    "fp32": {"bytes": 1418 * MB, "largest": 268 * MB, "cache": "float32", "int8": False},
    "fp16": {"bytes": 709 * MB, "largest": 134 * MB, "cache": "float16", "int8": False},
    "q8": {"bytes": 355 * MB, "largest": 67 * MB, "cache": "float32", "int8": True},
    "q4": {"bytes": 238 * MB, "largest": 67 * MB, "cache": "float32", "int8": False},
    "q4f16": {"bytes": 237 * MB, "largest": 67 * MB, "cache": "float16", "int8": False},
}
GPU = {"half": True, "emulated": False, "buffer": 2**31}

RUN = """
const { choose, impossible } = await import(process.argv[1]);
const { files, machine, wish } = JSON.parse(process.argv[2]);
console.log(JSON.stringify(choose(new Map(Object.entries(files)), machine, wish)));
"""


def choose(
    dtypes: str,
    gpu: Mapping[str, Any] | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    memory: int | None = None,
    threads: int = 2,
    changed: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[str, str | None, str]:
    """(device, dtype, why) for the files named by `dtypes`."""
    files = {name: FILES[name] | dict((changed or {}).get(name, {})) for name in dtypes.split()}
    asked = {
        "files": files,
        "machine": {"gpu": gpu, "memory": memory, "threads": threads},
        "wish": {"device": device, "dtype": dtype},
    }
    command = ["node", "--input-type=module", "-e", RUN, (PAGE / "choose.mjs").as_uri(), json.dumps(asked)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert "\n" not in found["why"] and found["why"].endswith(".")
    return found["device"], found["dtype"], found["why"]


ALL = "fp32 fp16 q8 q4 q4f16"


def test_a_gpu_gets_four_bits_in_float16_where_it_can() -> None:
    assert choose(ALL, GPU)[:2] == ("webgpu", "q4f16")
    device, dtype, why = choose(ALL, GPU | {"half": False})
    assert (device, dtype) == ("webgpu", "q4") and "does not compute in float16" in why
    assert choose("fp16 q8", GPU)[:2] == ("webgpu", "fp16")


def test_a_processor_gets_eight_bits() -> None:
    device, dtype, why = choose(ALL)
    assert (device, dtype) == ("wasm", "q8")
    assert why == "q8 on the processor (wasm, 2 threads): this browser offers no WebGPU."
    assert "1 thread)" in choose(ALL, threads=1)[2]
    assert choose(ALL, GPU | {"emulated": True})[:2] == ("wasm", "q8")


def test_without_q8_it_says_that_it_is_slow() -> None:
    device, dtype, why = choose("fp32 q4")
    assert (device, dtype) == ("wasm", "q4") and "slow, for this site has no q8 file" in why
    assert "q8 would be many times as fast" in choose(ALL, dtype="q4")[2]


def test_q8_is_not_taken_to_a_gpu_unless_asked_for_and_then_says_where_it_computes() -> None:
    assert choose("q8", GPU)[:2] == ("wasm", "q8")
    device, dtype, why = choose(ALL, GPU, device="webgpu", dtype="q8")
    assert (device, dtype) == ("webgpu", "q8") and "its products run on the processor there; your choice" in why
    in_blocks = {"q8": {"int8": False}}
    assert choose("q8", GPU, changed=in_blocks)[:2] == ("webgpu", "q8")


def test_a_tensor_that_no_buffer_of_the_gpu_holds() -> None:
    small = GPU | {"half": False, "buffer": 50 * MB}
    device, dtype, why = choose(ALL, small)
    assert (device, dtype) == ("wasm", "q8") and "q4f16 is not for this GPU" in why
    device, dtype, why = choose("q8 q4", small)
    assert (device, dtype) == ("wasm", "q8")
    assert "q4 is not for this GPU (its largest tensor has 67 MB, and a buffer of this GPU 50 MB)" in why
    forced = choose("q8 q4", small, device="webgpu", dtype="q4")
    assert forced[:2] == ("webgpu", "q4") and "largest tensor has 67 MB" in forced[2]
    unknown = {"q4": {"largest": None}}  # a model whose page says nothing of it
    assert choose("q8 q4", small, changed=unknown)[:2] == ("webgpu", "q4")


def test_memory() -> None:
    assert choose(ALL, memory=1500 * MB)[:2] == ("wasm", "q8")
    device, dtype, why = choose(ALL, memory=1000 * MB)
    assert (device, dtype) == ("wasm", "q4")
    nothing = choose("fp32", memory=700 * MB)
    assert nothing[:2] == ("wasm", "fp32") and "of memory, and this device has 700 MB" in nothing[2]
    large = {"q8": {"bytes": 2600 * MB}, "q4": {"bytes": 1500 * MB}}
    device, dtype, why = choose("q8 q4", changed=large)
    assert (device, dtype) == ("wasm", "q4") and "wasm has 4,295 MB" not in why
    assert "wasm has 4,295 MB" in choose("q8", changed=large)[2]


def test_a_file_with_a_part_missing_is_not_taken_by_itself() -> None:
    broken = {"q8": {"bytes": None}}
    assert choose("q8 q4", changed=broken)[:2] == ("wasm", "q4")
    _, dtype, why = choose("q8 q4", dtype="q8", changed=broken)
    assert dtype == "q8" and "a part of it is missing on this site" in why


def test_int8_caches_stay_off_the_gpu() -> None:
    cached = {"q4": {"cache": "int8"}, "q4f16": {"cache": "int8"}}
    assert choose("q4 q8", GPU, changed=cached)[:2] == ("wasm", "q8")
    _, dtype, why = choose("q4", GPU, device="webgpu", changed=cached)
    assert dtype is None and "caches of int8 run on processors only" in why


def test_what_cannot_run_is_said() -> None:
    _, dtype, why = choose("fp16")
    assert dtype is None
    on_gpu, on_processor = (
        "fp16 on the GPU, this browser offers no WebGPU",
        "fp16 on the processor, float16 is for GPUs",
    )
    assert why == f"Nothing here can run: {on_gpu}; {on_processor}."
    assert choose("")[1] is None
    assert choose("q4f16", GPU | {"half": False})[1] is None
    assert choose(ALL, GPU, device="wasm", dtype="fp32")[:2] == ("wasm", "fp32")
