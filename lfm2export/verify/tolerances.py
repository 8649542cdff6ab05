"""The limits, a row per dtype, each from what clean files were measured to give.

How: every dtype of the shipped model and of 17 random tiny models (untied, biased, odd widths ...) was verified, and q4
of random weights in the shapes of 350M and 2.6B; the table holds the worst clean figure times 2.5 to 10, rounded.
Random weights are the worst case: they pass rounding on, where trained ones damp it. Clean shares of the magnitude:

                                     shipped    tiny       350M       2.6B       limit
    exact copy, logits and caches    2.0e-6     2.4e-6     1.3e-5     4.2e-5     5e-6 a layer
    fp16 as shipped, own weights     2.0e-3     3.0e-3                           1e-2
    8-bit activations, own weights   2.4e-2     8.4e-2     1.2e-1     1.9e-1     0.5
    8-bit activations, routes        6.9e-3     3.0e-2     5.9e-2     1.1e-1     0.3

Measure again with `python -m lfm2export.verify.clean` (see there).
"""

from __future__ import annotations

from dataclasses import replace

from lfm2export.verify.figures import StepsMeasure, Tolerances
from lfm2export.verify.steps import logits_scale

#: float32 against float32, per layer: the order of summation, which every layer passes on.
EXACT_PER_LAYER = 5e-6
FEWEST_LAYERS = 4

#: Over text and over a few steps the same weights lose up to this many times the KLD; clean: 1.3.
KLD_FACTOR = 3.0

#: Two logits that both move by the largest shift.
GAP_FACTOR = 2.0

#: A product of rounded activations against numpy's model, as a share of its token's largest result: sums are of
#: integers and exact below 2**24; clean: 3e-7.
ROUNDING = 2e-6

#: int8 keys and values: an attention's result against numpy's over the same codes, as a share of its largest (clean:
#: 1.5e-6); a scale against the one that is measured again on the same text (clean: 0, on another machine rounding);
#: and keys and values of the first attention layer against PyTorch on the file's own weights, as a share of their
#: largest magnitude (clean: 5e-3): half a code is .5 % of it, and a value that no text had is limited.
ATTENTION, SCALES, CODES = 3e-5, 1e-2, 0.05

#: Of every dtype, `exact_*` and all of fp32's differences are filled in by depth.
TOLERANCES: dict[str, Tolerances] = {
    "fp32": Tolerances(0.0, 0.0, None, 0.0, 0.0, file_kld=1e-8, text_kld=1e-8, near_tie=1e-3),
    "fp16": Tolerances(0.0, 0.0, 1e-2, 5e-3, 5e-3, file_kld=1e-4, text_kld=1e-4, near_tie=0.1),
    "q8": Tolerances(0.0, 0.0, 0.5, 0.3, 0.3, file_kld=0.05, text_kld=0.05, near_tie=1.0),
    "q4": Tolerances(0.0, 0.0, 0.5, 0.3, 0.3, file_kld=0.05, text_kld=0.05, near_tie=1.0),
    "q4f16": Tolerances(0.0, 0.0, 0.5, 0.3, 0.3, file_kld=0.05, text_kld=0.05, near_tie=1.0),
}

#: Mean KLD of a file whose own weights cannot be told; 4 bits on random weights reach 0.8, on trained ones 0.02.
BLIND_KLD = {"fp32": 1e-8, "fp16": 1e-4, "q8": 0.1, "q4": 0.5, "q4f16": 0.5}


def tolerances(dtype: str, layers: int) -> Tolerances:
    """The row of `dtype` for a model of that depth."""
    exact = EXACT_PER_LAYER * max(layers, FEWEST_LAYERS)
    row = replace(TOLERANCES[dtype], exact_logits=exact, exact_caches=exact)
    return row if row.own_logits is not None else replace(row, route_logits=exact, route_caches=exact)


def kld_limit(dtype: str, floor: float, steps: StepsMeasure | None) -> float:
    """The greatest mean KLD to the source that the file's rounding explains, in nats; `floor` from the table."""
    if TOLERANCES[dtype].own_logits is None:
        return floor
    if steps is None or steps.own_kld is None:
        return BLIND_KLD[dtype]
    return floor + KLD_FACTOR * steps.own_kld


def tie_limit(limits: Tolerances, steps: StepsMeasure | None) -> float:
    """The greatest gap of a greedy difference that the file's rounding explains, in logits."""
    if steps is None:
        return limits.near_tie
    shift = steps.own_shift if steps.own_shift is not None else 0.0
    if limits.own_logits is None:
        shift = limits.exact_logits * max((logits_scale(point.logits) for point in steps.points), default=0.0)
    return limits.near_tie + GAP_FACTOR * shift
