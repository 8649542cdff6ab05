"""Runs the model card's ONNX Runtime loop in whatever environment it is started with: `python ... REQUEST ANSWERS`.

REQUEST is JSON: {program, folder, limit, tasks: [{file, half, int8}]}. The program is changed in where the files are,
how many tokens it makes, and the type of float16 and int8 caches; its session is watched, for the logits of every step.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

TOP = 8


class Watched(onnxruntime.InferenceSession):  # type: ignore[misc]
    """A session that remembers the highest logits of every step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.top: list[list[list[float]]] = []

    def run(self, *args: Any, **kwargs: Any) -> Any:
        values = super().run(*args, **kwargs)
        row = values[0][0, -1]
        self.top.append([[int(token), float(row[token])] for token in np.argpartition(row, -TOP)[-TOP:]])
        return values


def run_file(program: str, folder: str, limit: int, file: str, half: bool, int8: bool) -> dict[str, Any]:
    changes = {
        "from huggingface_hub import hf_hub_download\n": "",
        '"onnx-community/LFM2-2.6B-ONNX"': repr(folder),
        '"model_q4.onnx"': repr(file),
        "max_new_tokens = 1024": f"max_new_tokens = {limit}",
    }
    if half:
        changes["dtype=np.float32"] = "dtype=np.float16"
    if int8:  # keys and values alone; the line of conv states has another shape before its type
        changes["0, head_dim], dtype=np.float32"] = "0, head_dim], dtype=np.int8"
    for old, new in changes.items():
        if old not in program:
            raise ValueError(f"the program does not have {old!r}")
        program = program.replace(old, new)
    variables: dict[str, Any] = {"hf_hub_download": lambda repo_id, filename: f"{repo_id}/{filename}"}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(program, "card", "exec"), variables)
    return {
        "prompt": [int(token) for token in variables["inputs"]["input_ids"][0]],
        "tokens": [int(token) for token in variables["generated_tokens"][0]],
        "top": variables["session"].top,
        "said": said.getvalue(),
    }


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answers = Path(sys.argv[2])

    def tell(answer: dict[str, Any]) -> None:
        with answers.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(answer) + "\n")

    onnxruntime.InferenceSession = Watched
    tell({"version": onnxruntime.__version__})
    for number, task in enumerate(request["tasks"]):
        try:
            value = run_file(
                request["program"], request["folder"], request["limit"], task["file"], task["half"], task["int8"]
            )
            tell({"task": number, "value": value})
        except Exception as error:
            tell({"task": number, "error": " ".join(str(error).split())[:300]})


if __name__ == "__main__":
    main()
