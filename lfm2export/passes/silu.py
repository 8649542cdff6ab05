"""SiLU of float16 files in ONNX's own operators, for runtimes whose com.microsoft QuickGelu computes in float32 alone.

    g - QuickGelu(alpha=1)                                  g -+- Sigmoid -+- Mul
                                               ->              `----------'

Once a layer. OpenVINO (2026.4) multiplies the float16 gate by a float32 alpha, and refuses its own graph. onnxruntime
makes QuickGelu of the two while loading, on the CPU and on WebGPU (1.30, 1.32; 1.22 on the CPU leaves them): as many
nodes as before.
"""

from __future__ import annotations

import onnx_ir as ir

from lfm2export.passes.matching import Builder, Firing, NoMatch, rewrite
from lfm2export.spec import ModelSpec


def expected(spec: ModelSpec) -> int:
    return spec.num_hidden_layers


def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
    def attempt(gelu: ir.Node, op: Builder) -> None:
        gate, alpha = gelu.inputs[0], gelu.attributes.get_float("alpha", 1.702)
        if alpha != 1.0:
            raise NoMatch(f"alpha is {alpha:g}, expected 1")
        op.replace(gelu.outputs[0], op("Mul", gate, op("Sigmoid", gate)))

    return rewrite(model, "QuickGelu", attempt)
