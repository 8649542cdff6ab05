"""Ctrl-C and SIGTERM end the command while onnxruntime computes without end, and spare one that notices them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from lfm2export.contract import LogitsMode
from lfm2export.stopping import GRACE, SAME

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def endless(path: Path) -> None:
    """The logits go through a Loop of 2**62 trips."""
    model = onnx.load(path, load_external_data=False)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["value", "value"], ["sum"])],
        "body",
        [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, None),
        ],
    )
    for node in model.graph.node:
        node.output[:] = ["logits_once" if name == "logits" else name for name in node.output]
    model.graph.initializer.append(helper.make_tensor("trips", TensorProto.INT64, [], [2**62]))
    model.graph.initializer.append(helper.make_tensor("true", TensorProto.BOOL, [], [True]))
    model.graph.node.append(helper.make_node("Loop", ["trips", "true", "logits_once"], ["logits"], body=body))
    path.write_bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def folder(tiny_artifact: Callable[[LogitsMode], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    copied = tmp_path_factory.mktemp("endless") / "artifact"
    shutil.copytree(tiny_artifact("last"), copied)
    endless(copied / "onnx" / "model_q4.onnx")
    return copied


@pytest.mark.parametrize(
    ("number", "code", "twice"), [("SIGTERM", 143, False), ("SIGINT", 130, False), ("SIGINT", 130, True)]
)
def test_a_graph_without_end_is_ended(folder: Path, number: str, code: int, twice: bool) -> None:
    command = [sys.executable, "-P", "-m", "lfm2export", "generate", folder, "--dtype", "q4", "-p", "hi", "--greedy"]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        assert process.stderr.readline().startswith("[greedy")  # the session is open, the first step begins
        time.sleep(2)
        began = time.monotonic()
        process.send_signal(getattr(signal, number))
        if twice:
            time.sleep(SAME + 0.5)
            process.send_signal(getattr(signal, number))
        said = process.communicate(timeout=GRACE + 20)[1]
    finally:
        process.kill()
    assert process.returncode == code
    assert said == ("Interrupted.\n" if code == 130 else "")
    assert time.monotonic() - began < (GRACE if twice else GRACE + 10)


NOTICING = """
import signal, sys, time
from lfm2export import stopping
stopping.GRACE = .2
stopping.stop_on_signals()
for _ in range(2):
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        time.sleep(1.5)
print("goes on", flush=True)
signal.raise_signal(signal.SIGTERM)
"""


def test_a_program_that_takes_the_signal_goes_on(tmp_path: Path) -> None:
    """As a chat does, where Ctrl-C ends an answer."""
    ran: Any = subprocess.run([sys.executable, "-c", NOTICING], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (143, "goes on\n", "")
