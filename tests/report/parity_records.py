"""Records as verify makes them, of invented figures: five files, two prompts, three faults. For tests only."""

from __future__ import annotations

import math
from dataclasses import replace

from lfm2export.measures import LogitsMeasure, Mean
from lfm2export.verify.figures import (
    Against,
    CacheSeries,
    CachesMeasure,
    CheckName,
    Difference,
    Form,
    GreedyMeasure,
    RoundingMeasure,
    RouteMeasure,
    StepPoint,
    StepsMeasure,
    TextMeasures,
    Tolerances,
    Verdict,
    WeightMeasure,
)
from lfm2export.verify.results import (
    SCHEMA_VERSION,
    Check,
    Failure,
    FileResult,
    PromptFacts,
    ReferenceFacts,
    TextFacts,
    Verification,
)

#: What a tokenizer may decode to, and a report must not take for markup.
NASTY = "</td><script>alert(1)</script> | `x` *y* [z](http://a) @me\n\x1b\t"

LAYERS = ("conv", "conv", "full_attention", "conv", "full_attention", "conv")
SCALE = {"fp32": 1e-9, "fp16": 1e-6, "q8": 1e-4, "q4": 1e-2, "q4f16": 1.1e-2}
BYTES = {"fp32": 29_300_000, "fp16": 14_700_000, "q8": 8_600_000, "q4": 5_300_000, "q4f16": 5_200_000}
TOLERANCES = Tolerances(
    exact_logits=1e-3,
    exact_caches=1e-3,
    own_logits=None,
    route_logits=1e-4,
    route_caches=1e-4,
    file_kld=0.05,
    text_kld=0.05,
    near_tie=0.5,
)


def point(dtype: str, prompt: int, step: int) -> StepPoint:
    wave = 1 + 0.8 * math.sin(step * (prompt + 1.3)) + 0.3 * prompt
    kld = 0.0 if dtype == "fp32" and step == 3 else SCALE[dtype] * wave
    equal = not (dtype.startswith("q4") and (step * 7 + prompt) % 11 == 0)
    return StepPoint(prompt, step, 12 + step, LogitsMeasure(kld * 30, kld, 0.9999, kld, equal, 0 if equal else 1, 0.4))


def caches(dtype: str, factor: float, count: int) -> tuple[CacheSeries, ...]:
    found = []
    for layer, kind in enumerate(LAYERS):
        for part in ("conv",) if kind == "conv" else ("key", "value"):
            name = f"present_conv.{layer}" if part == "conv" else f"present.{layer}.{part}"
            errors = tuple(
                factor * (1 + layer) * (1 + 0.1 * math.cos(n)) * (2 if part == "key" else 1) for n in range(count)
            )
            found.append(CacheSeries(name, layer, part, errors, (3.0,) * count, 3.0))
    return tuple(found)


def steps(dtype: str, form: Form, count: int = 16) -> StepsMeasure:
    points = tuple(point(dtype, prompt, step) for prompt in range(2) for step in range(count))
    factor = 1e-6 if form is Form.EXACT else math.sqrt(SCALE[dtype]) / 10
    klds = [found.logits.kld for found in points if found.logits.kld is not None]
    top = sum(found.logits.top1_equal for found in points) / len(points)
    weights = "file" if form is Form.EXACT else "source"
    held = caches(dtype, factor, len(points))
    return StepsMeasure(form, weights, points, held, factor * 20, factor * 13, sum(klds) / len(klds), top)


def text(dtype: str, route: str) -> TextMeasures:
    kld = SCALE[dtype] * (1 if route == "prefill" else 1.05)
    return TextMeasures(
        route, 4, 1024, Mean(kld, kld * 0.07, 4), 1 - kld * 4, 9.0, 9.0 * math.exp(kld), (kld,) * 4, (2.2,) * 4, 3.2
    )


def paired(dtype: str) -> tuple[Against, ...] | None:
    if dtype != "q4":
        return None
    better, same = Mean(-0.002, 0.0003, 4), Mean(-0.0001, None, 1)
    return (Against("their <artifact>", "q4", "prefill", text("q8", "prefill"), better, same),)


def greedy(dtype: str) -> tuple[GreedyMeasure, ...]:
    first = GreedyMeasure(0, (5, 6, 7), 3, " Paris.", None)
    if not dtype.startswith("q4"):
        return (first, replace(first, prompt=1))
    tie = dtype == "q4f16"
    parted = Difference(7, 44, 45, 0.03, 0.03 if tie else 1.2, tie, " the " + NASTY, NASTY, " boats")
    return (first, GreedyMeasure(1, tuple(range(16)), 7, "text", parted))


def check(name: CheckName, verdict: Verdict = Verdict.PASSED, *failures: Failure) -> Check:
    return Check(name, verdict, f"what {name} found", failures, 1.5)


def file(dtype: str) -> FileResult:
    checks = [check(name) for name in CheckName]
    checks[6] = Check(CheckName.LONG, Verdict.NOT_MEASURED, "only with --long", (), 0.0)
    exact, shipped = steps(dtype, Form.EXACT), steps(dtype, Form.SHIPPED)
    route = RouteMeasure(
        check=CheckName.CHUNKS,
        form=Form.SHIPPED,
        route="3 chunks",
        against="whole",
        tokens=40,
        max_abs_logits=2e-6,
        max_abs_caches=None,
        worst_cache=None,
        limit_logits=1e-4,
        limit_caches=1e-4,
        first=None,
        verdict=Verdict.PASSED,
    )
    padding = replace(route, check=CheckName.PADDING, route="left padding", against="the row alone", max_abs_caches=0.0)
    weight = WeightMeasure("model.layers.0.w1", ("w1",), (512, 256), "4 bit", 32, False, 0.07, 0.02, 0, 0, 0, None)
    return FileResult(
        dtype=dtype,
        file=f"onnx/model_{dtype}.onnx",
        bytes=BYTES[dtype],
        bits_per_weight=BYTES[dtype] * 8 / 7_300_000,
        logits_mode="last",
        tolerances=TOLERANCES if dtype == "fp32" else replace(TOLERANCES, own_logits=0.1),
        checks=tuple(checks),
        weights=(weight,),
        arithmetic=exact,
        caches=CachesMeasure(158_208, 0, None, 1.4e-6, "If", 0.0, None, 0.0084, None) if dtype == "q4" else None,
        rounding=RoundingMeasure(33, 4_884, 1.1e-7, "w1.int8, token 3, channel 5") if dtype == "q8" else None,
        steps=shipped,
        norms=None,
        routes=(route, padding),
        greedy=greedy(dtype),
        text=(text(dtype, "prefill"), text(dtype, "decode")),
        weights_text=None if dtype == "fp32" else text(dtype, "prefill, weights alone"),
        activations_kld=None if dtype == "fp32" else Mean(SCALE[dtype] / 20, SCALE[dtype] / 100, 4),
        against=paired(dtype),
        seconds=20.0,
    )


def verification(*dtypes: str) -> Verification:
    """All is well."""
    return Verification(
        schema_version=SCHEMA_VERSION,
        tool_version="0.0",
        versions={"torch": "2.13.0", "onnxruntime": "1.32.0"},
        machine={"system": "Linux x86_64", "cores": "2"},
        folder="LFM2-test-ONNX",
        parameters=7_300_000,
        layer_types=LAYERS,
        quick=False,
        steps=16,
        reference=ReferenceFacts("LFM2-test", "given", "memory", True, None, None),
        prompts=(
            PromptFacts("capital", "What is the capital of France?", (1, 2, 3), (5, 6, 7), "reference"),
            PromptFacts("river <b>", None, (1, 2), tuple(range(16)), "reference"),
        ),
        text=TextFacts("held-out text", 4, 512, 2048, 1024),
        files=tuple(file(dtype) for dtype in dtypes or SCALE),
        seconds=101.0,
    )


def failing() -> Verification:
    """q4 fails twice; fp16 has values that are not finite."""
    good = verification()
    q4, fp16 = (next(f for f in good.files if f.dtype == dtype) for dtype in ("q4", "fp16"))
    where = Failure(CheckName.ARITHMETIC, f"layer 2 differs: {NASTY}", 0, 0, "present.2.key", 2, 0.017, 1e-3)
    scale = Failure(
        CheckName.WEIGHTS, "block 7 of model.layers.0.w1 is not its source's", tensor="model.layers.0.w1", layer=0
    )
    bad = replace(
        q4,
        checks=(
            check(CheckName.WEIGHTS, Verdict.FAILED, scale),
            check(CheckName.ARITHMETIC, Verdict.FAILED, where),
            *q4.checks[2:],
        ),
    )
    assert fp16.steps is not None
    lost = replace(fp16.steps.points[4], logits=LogitsMeasure(math.inf, None, None, None, False, None, 0.4))
    infinite = replace(
        fp16.steps, points=(*fp16.steps.points[:4], lost, *fp16.steps.points[5:]), max_abs_logits=math.inf
    )
    changed = {"q4": bad, "fp16": replace(fp16, steps=infinite)}
    return replace(good, files=tuple(changed.get(f.dtype, f) for f in good.files))


def unmeasured() -> Verification:
    """Nothing was measured but bytes."""
    good = verification("q4")
    checks = tuple(Check(name, Verdict.NOT_MEASURED, "", (), 0.0) for name in CheckName)
    empty = replace(
        good.files[0], bits_per_weight=None, checks=checks, weights=None, arithmetic=None, rounding=None, caches=None,
        steps=None, norms=None,
        routes=(), greedy=None, text=None, weights_text=None, activations_kld=None, against=None,
    )  # fmt: skip
    return replace(good, files=(empty,), text=None, prompts=())
