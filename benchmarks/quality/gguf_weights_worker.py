"""Runs in the llama environment: the weights of a GGUF file in floats, under the checkpoint's names.

    python -m benchmarks.quality.gguf_weights_worker CHECKPOINT GGUF OUT.npz

Prints how many bytes the file spends on its tensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np

from benchmarks.peers.gguf_layout import tensors
from lfm2export.checkpoint import open_checkpoint


def main() -> None:
    source, path, out = map(Path, sys.argv[1:])
    spec = open_checkpoint(source).spec
    shapes = spec.source_tensors()
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    values = {}
    for tensor in tensors(spec):
        found = stored[tensor.name]
        floats = gguf.quants.dequantize(found.data, found.tensor_type)
        values[tensor.source] = np.asarray(floats, np.float32).reshape(shapes[tensor.source])
    np.savez(out, **values)  # type: ignore[arg-type]
    print(sum(int(tensor.n_bytes) for tensor in stored.values()))


if __name__ == "__main__":
    main()
