"""Operators that not every tested runtime has: since when onnxruntime has them as they are written here.

    operator                    in                             onnxruntime (Python, Node, web)    OpenVINO 2026.4
    CausalConvWithState         q4, q4f16 of the web profile   1.30, for channels_last; 1.26 without   none

What else the files are made of is in the oldest release that is tested, and in OpenVINO.
"""

from __future__ import annotations

from pathlib import Path

from lfm2export.untrusted.onnx_file import read_model

#: Operator -> the first release that runs it, and the option that does without.
SINCE: dict[str, tuple[tuple[int, int], str]] = {"CausalConvWithState": ((1, 30), "--operators plain")}


def lacking(model: Path, version: str | None) -> str | None:
    """Why onnxruntime `version` cannot run the file `model`; None: it has every operator, or is not known.

    Raises:
        ArtifactError: the file is not an ONNX model.
    """
    if version is None:
        return None
    major, minor = (int(number) for number in version.split(".")[:2])
    for operator in sorted({node.op_type for node in read_model(model).graph.node} & SINCE.keys()):
        first, option = SINCE[operator]
        if (major, minor) < first:
            return f"{operator} needs onnxruntime {first[0]}.{first[1]}; build with {option} for older ones"
    return None
