"""Blocks that files will surely hold, quantized while the graph is still being traced.

The trace keeps one core busy for ten seconds, however large the model is. Which matrices are stored in which blocks
follows from spec and options alone (`matrices`, `recipes.formats`), so the other cores begin with them:

    trace      [==========]
    ahead      [=][=][=][=]                 pieces cut as the writer cuts them, one file each in a folder
    write                  [copy][copy][compute][compute]...

A piece that is not there, or that the graph stores otherwise, the writer computes as ever: nothing depends on this.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lfm2export.matrices import matrices
from lfm2export.pieces import row_ranges
from lfm2export.pool import Pool
from lfm2export.quant import blocks_of
from lfm2export.quant.blocks import code_bytes
from lfm2export.recipes import Options, formats
from lfm2export.spec import ModelSpec
from lfm2export.weights import BlockFormat, QuantizedBlocks, SourceTensor, WeightSource

#: Smaller models are done before processes have started.
FEW = 64_000_000


@dataclass(frozen=True)
class Rows:
    """Rows [start, stop) of the source tensor `part` in blocks of `format`."""

    part: str
    start: int
    stop: int
    format: BlockFormat


@dataclass(frozen=True)
class Ahead:
    """A `weights.WeightSource` over `source` that has some rows in blocks already.

    held: rows -> the name of their file in `folder`, and what of them did not fit float16.
    """

    source: WeightSource
    folder: Path
    held: dict[Rows, tuple[int, int, float]] = field(default_factory=dict)

    @property
    def tensors(self) -> Mapping[str, SourceTensor]:
        return self.source.tensors

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        return self.source.rows(name, start, stop)

    def prepared(self, name: str, start: int, stop: int, format: BlockFormat) -> QuantizedBlocks | None:
        """The blocks of these rows, if their turn came while the graph was traced; else what `source` says."""
        found = self.held.get(Rows(name, start, stop, format))
        if found is None:
            return self.source.prepared(name, start, stop, format)
        number, saturated, largest = found
        rows, blocks = stop - start, format.blocks(self.tensors[name].shape[1])
        stored = np.fromfile(self.folder / str(number), np.uint8)
        codes, scales, zeros = np.split(stored, np.cumsum([rows * blocks * code_bytes(format), rows * blocks * 2]))
        return QuantizedBlocks(
            codes.reshape(rows, blocks, -1),
            scales.view(np.float16).reshape(rows, blocks),
            None if format.symmetric else zeros.reshape(rows, -1),
            saturated,
            largest,
        )


@dataclass(frozen=True)
class QuantizeRows:
    """The job of a worker: quantize the rows of one number into the file of that name."""

    source: WeightSource
    wanted: Sequence[Rows]
    folder: Path

    def __call__(self, number: int) -> tuple[int, float]:
        """(saturated, largest) as in `QuantizedBlocks`."""
        rows = self.wanted[number]
        blocks = blocks_of(self.source, rows.part, rows.start, rows.stop, rows.format)
        with (self.folder / str(number)).open("wb") as file:
            for array in (blocks.codes, blocks.scales, blocks.zero_points):
                if array is not None:
                    file.write(array.data)
        return blocks.saturated, blocks.largest


def foreseen(source: WeightSource, spec: ModelSpec, dtypes: Sequence[str], options: Options) -> list[Rows]:
    """What the files of `dtypes` will hold in blocks, matrix by matrix; 4 bits first, for two files share them."""
    found: dict[Rows, None] = {}
    for dtype in reversed(dtypes):
        blocks = formats(dtype, options)
        for matrix in matrices(spec):
            block = blocks.of(matrix.parts, matrix.columns)
            for part in matrix.parts if block is not None else ():
                for start, stop in row_ranges(source.tensors[part].shape):
                    found[Rows(part, start, stop, block)] = None  # type: ignore[arg-type]
    return list(found)


@contextmanager
def quantized_ahead(
    source: WeightSource, spec: ModelSpec, dtypes: Sequence[str], options: Options, folder: Path, workers: int
) -> Iterator[Ahead]:
    """Quantize in `workers` processes while the block runs; `folder` is created, and is the caller's to remove.

    Whatever goes wrong here, the writer meets as well, and says it in the order of the file.
    """
    found = Ahead(source, folder)
    wanted = foreseen(source, spec, dtypes, options)
    if workers < 1 or not wanted or spec.num_parameters < FEW:
        yield found
        return
    folder.mkdir()
    numbers, lock, stopped = iter(range(len(wanted))), threading.Lock(), threading.Event()
    with Pool(workers, QuantizeRows(source, wanted, folder)) as pool, ThreadPoolExecutor(workers) as threads:

        def drain() -> None:
            while not stopped.is_set():
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                saturated, largest = pool.run(number)
                found.held[wanted[number]] = (number, saturated, largest)

        for _ in range(workers):
            threads.submit(drain)
        try:
            yield found
        finally:
            stopped.set()
