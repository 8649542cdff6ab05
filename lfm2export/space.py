"""Disk space, before any work: the least that the files of a build take, and whether the disk has it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from lfm2export.errors import Lfm2ExportError, OutputError
from lfm2export.matrices import Matrix, matrices
from lfm2export.quant.blocks import row_bytes
from lfm2export.recipes import RECIPES, Options, formats
from lfm2export.spec import ModelSpec
from lfm2export.weights import BlockFormat

#: The smallest and the largest format that a target's matrices may get (of `sensitivity.formats.candidates`).
SMALLEST = BlockFormat(4, 128, symmetric=True)
LARGEST = BlockFormat(8, 32, symmetric=True)


def least_bytes(spec: ModelSpec, dtype: str, options: Options) -> int:
    """Bytes of the weights of one file: what is certain before its graph is known. The file has a little more."""
    return _other_bytes(spec, dtype) + sum(_stored(matrix, dtype, options) for matrix in matrices(spec))


def least_calibrated_bytes(spec: ModelSpec, dtypes: Sequence[str], options: Options) -> int:
    """Bytes of calibrated matrices, which lie on disk until files of `dtypes` are written from them."""
    dtype = next((dtype for dtype in dtypes if RECIPES[dtype].body_bits == 4), None)
    if options.calibration is None or dtype is None:
        return 0
    return sum(_stored(matrix, dtype, options) for matrix in matrices(spec) if matrix.layer is not None)


def check_space(out: Path, spec: ModelSpec, dtypes: Sequence[str], options: Options) -> None:
    """That the disk of `out`, which need not exist, can hold files of `dtypes`, and what calibration keeps meanwhile.

    Raises:
        OutputError: it clearly cannot.
    """
    needed = sum(least_bytes(spec, dtype, options) for dtype in dtypes)
    needed += least_calibrated_bytes(spec, dtypes, options)
    folder = next(parent for parent in (out, *out.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"{', '.join(dtypes)} need at least {needed / 1e6:,.0f} MB and {folder} has {free / 1e6:,.0f} MB free; "
            "free some, or choose another disk with -o"
        )


def check_target_size(spec: ModelSpec, dtypes: Sequence[str], options: Options) -> None:
    """That a target leaves room for the weights in the smallest formats there are.

    Raises:
        Lfm2ExportError: it clearly does not. (`sensitivity.target.check_target` knows to the byte, given the graph.)
    """
    if options.target is None:
        return
    least = max(least_bytes(spec, dtype, options) for dtype in dtypes if RECIPES[dtype].body_bits == 4)
    if options.target.limit(spec.num_parameters) < least:
        largest = sum(matrix.rows * row_bytes(LARGEST, matrix.columns) for matrix in matrices(spec))
        most = max(_other_bytes(spec, dtype) + largest for dtype in dtypes if RECIPES[dtype].body_bits == 4)
        low, high = (options.target.shown(size, spec.num_parameters, math.ceil) for size in (least, most))
        raise Lfm2ExportError(
            f"the target of {options.target.value:g} {options.target.unit} is less than any choice takes: possible are "
            f"about {low} to {high} {options.target.unit}; ask for one between"
        )


def _other_bytes(spec: ModelSpec, dtype: str) -> int:
    """Bytes of what is in no matrix: norms, kernels of convolutions, biases."""
    stacked = {part for matrix in matrices(spec) for part in matrix.parts}
    values = sum(math.prod(shape) for name, shape in spec.source_tensors().items() if name not in stacked)
    return values * _item(dtype)


def _stored(matrix: Matrix, dtype: str, options: Options) -> int:
    """Bytes of `matrix` in the file of `dtype`; with a target, the fewest that it may get."""
    if options.target is not None and RECIPES[dtype].body_bits == 4:
        return matrix.rows * row_bytes(SMALLEST, matrix.columns)
    format = formats(dtype, options).of(matrix.parts, matrix.columns)
    return matrix.rows * (matrix.columns * _item(dtype) if format is None else row_bytes(format, matrix.columns))


def _item(dtype: str) -> int:
    return 2 if RECIPES[dtype].half else 4
