"""Exact folds: moving a scale per channel between two tensors of a layer, so that the columns of a matrix round better.

Blocks run along a row, so multiplying a row by a number changes nothing of how it rounds, and multiplying columns does:
columns that large inputs meet can be made large, and get a finer share of their block's scale ("AWQ: Activation-aware
Weight Quantization", Lin et al., 2023). What a column is multiplied by, whatever feeds it is divided by. LFM2 has these
places where that is exact in real numbers:

    norm gain g -> in_proj | q, k, v | w1, w3            RMSNorm(x) = g * n(x), elementwise in g           fold_norm
    w3 rows -> w2 columns                                w2 (silu(w1 x) * (w3 x)) is linear in each w3 row  fold_gate
    conv kernel -> conv out_proj columns                 out_proj (C * conv(B * x)), linear in each kernel  fold_kernel
    C rows of in_proj -> conv out_proj columns           the same, linear in each row of C                  fold_c
    B rows against x rows of in_proj                     the product B * x stays                            fold_product
    v rows -> attention's out_proj columns               attention averages values, per KV head             fold_values

A fold may not change what the caches hold: the contract is that they are PyTorch's. The conv state is B * x: fold_norm,
fold_gate, fold_kernel and fold_c leave it, and so does fold_product, which (like any scaling of rows alone) gains
nothing in rounding and is there for completeness. Scaling B * x against the kernel is exact for logits, too, but
changes the state, and reaches only the columns that fold_kernel reaches already: it is left out. fold_values scales the
values in the cache, so that files of one checkpoint could not share a cache, and a check against PyTorch would have to
know: it is proven here and not used by `build`.

`lfm2export.equalized` folds powers of two by fold_norm, fold_gate and fold_kernel, where columns are out of scale.
Calibration folds nothing more, because after GPTQ and the descent it does not show in what the model says. On the
shipped model, each place with that of the exponents 0, 1/4, 1/2 and 3/4 whose error on held-out inputs is least after
both (`python -m benchmarks.quality.variants`; 24 chunks of held-out text, weights alone, scales tuned afterwards, KLD
paired by chunk):

                                                                                    blocks of 32     blocks of 128
    error of outputs, mean over places      norm -> in_proj | q, k, v               99.9 %           100.0 %
    (of that without a fold)                norm -> w1, w3                          100.0 %          100.0 %
                                            kernel -> out_proj                      79 %             89 %
                                              of it layer 0                         42 %             70 %
                                            w3 -> w2                                98 %             99.6 %
    KLD of that without folds               all of these                            100.1 +- 1.7 %   98.8 +- 1.5 %
                                            kernel -> out_proj and w3 -> w2         100.4 +- 1.8 %
                                            all, scales rounded to powers of two    102.4 +- 1.2 %   100.6 +- 1.4 %

Folds into norms win nothing even for their own matrices, and what layer 0's kernel wins is too small a part of the
whole.

Each function returns new float32 arrays. Letters: H hidden, F FFN width, N output features, K KV heads, D head_dim, L
conv_L_cache, G query heads per KV head.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lfm2export.errors import TensorError

Array = NDArray[np.float32]

#: A scale and its inverse stay in here: beyond, float16 files lose the gains that they are moved into.
LARGEST = 32.0


def fold_norm(gain: Array, weights: Sequence[Array], scale: Array) -> tuple[Array, list[Array]]:
    """gain [H], every matrix [N, H] that reads the norm, scale [H] -> gain / scale, columns * scale.

    W (g * n) = (W diag(s)) ((g / s) * n). All readers share the norm, so all get the same scale.
    """
    scale = _checked(scale, gain.shape)
    return gain / scale, [weight * scale for weight in weights]


def fold_gate(w3: Array, w2: Array, scale: Array) -> tuple[Array, Array]:
    """w3 [F, H], w2 [H, F], scale [F] -> w3 rows / scale, w2 columns * scale.

    w2 (silu(w1 x) * (w3 x)): entry f of the product is silu(w1_f x) (w3_f x), linear in row f of w3. Rows of w1 stay,
    for silu(a / s) is not silu(a) / s.
    """
    scale = _checked(scale, (w3.shape[0],))
    return w3 / scale[:, None], w2 * scale


def fold_kernel(kernel: Array, bias: Array | None, out_proj: Array, scale: Array) -> tuple[Array, Array | None, Array]:
    """kernel [H, 1, L], its bias [H] or None, out_proj [N, H], scale [H] -> kernel and bias / scale, columns * scale.

    The convolution is depthwise, so entry h of C * (conv(B * x) + b) is linear in (kernel_h, b_h). The state, B * x, is
    what goes into the convolution and stays.
    """
    scale = _checked(scale, (kernel.shape[0],))
    return kernel / scale[:, None, None], None if bias is None else bias / scale, out_proj * scale


def fold_c(in_proj: Array, bias: Array | None, out_proj: Array, scale: Array) -> tuple[Array, Array | None, Array]:
    """in_proj [3H, H] (rows of B, C, x), its bias [3H] or None, out_proj [N, H], scale [H] -> C rows / scale, columns *
    scale. C is a factor of what out_proj reads."""
    width = in_proj.shape[0] // 3
    scale = _checked(scale, (width,))
    rows: Array = np.concatenate([np.ones_like(scale), scale, np.ones_like(scale)])
    return in_proj / rows[:, None], None if bias is None else bias / rows, out_proj * scale


def fold_product(in_proj: Array, bias: Array | None, scale: Array) -> tuple[Array, Array | None]:
    """in_proj [3H, H], its bias [3H] or None, scale [H] -> B rows / scale, x rows * scale: B * x stays."""
    width = in_proj.shape[0] // 3
    scale = _checked(scale, (width,))
    rows = np.concatenate([1 / scale, np.ones_like(scale), scale])
    return in_proj * rows[:, None], None if bias is None else bias * rows


def fold_values(v_proj: Array, out_proj: Array, scale: Array) -> tuple[Array, Array]:
    """v_proj [K * D, H], out_proj [N, K * G * D], scale [K, D] -> v rows / scale, columns * scale.

    A head's output is a weighted mean of its KV head's values, entry by entry; the G query heads of a KV head share its
    scale. The values in the cache are divided by it as well: see above.
    """
    heads, size = scale.shape
    scale = _checked(scale, (heads, size))
    if v_proj.shape[0] != heads * size or out_proj.shape[1] % (heads * size):
        raise TensorError(f"v_proj {v_proj.shape} and out_proj {out_proj.shape} do not fit a scale of {scale.shape}")
    group = out_proj.shape[1] // (heads * size)
    columns = np.repeat(scale[:, None, :], group, axis=1).reshape(-1)  # query head = KV head * G + number in the group
    return v_proj / scale.reshape(-1)[:, None], out_proj * columns


def activation_scale(magnitude: Array, weight: Array, exponent: float) -> Array:
    """The scale of a column by what meets it: (mean |x_k| / mean |w_k|) ** exponent, [columns], of geometric mean 1.

    magnitude [columns]: mean absolute input. weight [columns]: mean absolute weight over the rows. Exponent 0 folds
    nothing; 1 makes inputs and weights trade places, as AWQ and SmoothQuant (Xiao et al., 2022) do at their extremes. A
    column that no input meets, or that is zero, is left alone. The scale stays within LARGEST and its inverse.
    """
    alive = (magnitude > 0) & (weight > 0)
    logarithm = np.zeros(len(magnitude))
    logarithm[alive] = exponent * np.log(magnitude[alive].astype(np.float64) / weight[alive])
    if alive.any():
        logarithm[alive] -= logarithm[alive].mean()
    scale: Array = np.exp(np.clip(logarithm, -np.log(LARGEST), np.log(LARGEST))).astype(np.float32)
    return scale


def _checked(scale: Array, shape: tuple[int, ...]) -> Array:
    if scale.shape != shape or not np.isfinite(scale).all() or not (scale > 0).all():
        raise TensorError(f"a fold's scale has shape {scale.shape}, expected {shape} with finite numbers above 0")
    return scale.astype(np.float32)
