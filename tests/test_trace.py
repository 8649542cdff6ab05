"""The unfused trace computes the contract: equal to transformers step by step, and padded rows equal to rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from lfm2export import contract
from lfm2export.contract import LogitsMode
from lfm2export.errors import GraphError
from lfm2export.passes.last_token import give_default
from lfm2export.pipeline import check_contract
from lfm2export.spec import CONV, FULL_ATTENTION, ModelSpec
from lfm2export.trace import MODEL_PREFIX, _attach_recipes
from lfm2export.weights import RECIPE, Recipe
from passes.graphs import Checkpoint, checkpoint, session
from passes.traces import ODD, SPEC, feeds, traced

pytestmark = pytest.mark.usefixtures("one_thread")

#: Logits and caches reach 27 here; measured 9.6e-6 at most, which is five units in the last place of such numbers.
TOLERANCE = 2e-5

#: name -> (spec, logits). Traced once for all tests of a run.
VARIANTS: dict[str, tuple[ModelSpec, LogitsMode]] = {
    "plain": (SPEC, "last"),
    "untied, biases, L_cache 4, head_dim 16, all logits": (ODD, "all"),
}

Step = tuple[np.ndarray, list[np.ndarray]]


@cache
def source(spec: ModelSpec) -> Checkpoint:
    found = checkpoint(spec.source_tensors())
    return Checkpoint({name: 2 * values if "proj" in name else values for name, values in found.tensors.items()})


@cache
def running(name: str) -> onnxruntime.InferenceSession:
    spec, logits = VARIANTS[name]
    model = traced(spec, logits)
    give_default(model)
    return session(model, source(spec))


@cache
def theirs(spec: ModelSpec) -> Any:
    """transformers' own model with the same weights."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    config = Lfm2Config(
        **{name: value for name, value in vars(spec).items() if name not in ("rope_theta", "layer_types")},
        layer_types=list(spec.layer_types),
        num_hidden_layers=spec.num_hidden_layers,
        block_auto_adjust_ff_dim=False,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        attn_implementation="eager",
    )
    model = Lfm2ForCausalLM(config).eval()
    state = {name: torch.from_numpy(values) for name, values in source(spec).tensors.items()}
    if spec.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model


def reference(spec: ModelSpec, chunks: Sequence[Sequence[int]]) -> list[Step]:
    """Logits [1, S, V] and every cache of one row alone, after each chunk, by transformers."""
    from transformers import DynamicCache

    model = theirs(spec)
    held = DynamicCache(config=model.config)
    found = []
    for chunk in chunks:
        with torch.no_grad():
            logits = model(torch.tensor([list(chunk)]), cache=held, use_cache=True).logits.numpy()
        caches = []
        for cache_ in contract.caches(spec, "float32"):
            layer = held.layers[cache_.layer]
            value = layer.conv_states[0] if cache_.kind == "conv" else getattr(layer, cache_.kind + "s")
            caches.append(value.numpy().copy())
        found.append((logits, caches))
    return found


def assert_close(got: np.ndarray, expected: np.ndarray, what: object) -> None:
    np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=0, err_msg=str(what))


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_steps_equal_transformers(name: str) -> None:
    """A prompt shorter than L, single tokens, then a chunk of several with a past."""
    spec, mode = VARIANTS[name]
    chunks = [[3, 17], [5], [39], [0], [8, 21, 30, 2], [11]]
    past, length = None, 0
    for chunk, (expected, caches) in zip(chunks, reference(spec, chunks), strict=True):
        length += len(chunk)
        logits, *past = running(name).run(None, feeds(spec, [chunk], np.ones((1, length), np.int64), past))
        assert logits.shape == (1, 1 if mode == "last" else len(chunk), spec.vocab_size)
        assert_close(logits, expected[:, -logits.shape[1] :], length)
        for held, got, wanted in zip(contract.caches(spec, "float32"), past, caches, strict=True):
            assert np.ptp(wanted) > 0.1 and wanted.shape == got.shape
            assert_close(got, wanted, (length, held.present.name))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", VARIANTS)
def test_uneven_rows_equal_the_same_rows_alone(name: str, side: str) -> None:
    """Rows of 5, 1 and 3 tokens, padded; then four single steps, of which one row sits out the second."""
    spec, mode = VARIANTS[name]
    prompts = [[3, 17, 5, 39, 8], [21], [30, 2, 11]]
    answers = [[4, 9, 13, 22], [7, 1, 6, 38], [25, 33, 14, 10]]
    width = max(map(len, prompts))
    pad = 35  # a token like others: nothing may depend on it
    tokens = [p + [pad] * (width - len(p)) if side == "right" else [pad] * (width - len(p)) + p for p in prompts]
    real = [[1] * len(p) + [0] * (width - len(p)) for p in prompts]
    mask = np.array(real if side == "right" else [row[::-1] for row in real])
    rest = [[answers[row][step] for row in range(3)] for step in range(4)]

    alone = []  # what each row is given, without its pads and the step that it sits out
    for row in range(3):
        chunks = [prompts[row], *([answers[row][step]] for step in range(4) if not (row == 1 and step == 1))]
        alone.append(iter(reference(spec, chunks)))
    past = None
    for step in range(-1, 4):
        if step >= 0:
            tokens = [[token] for token in rest[step]]
            out = np.array([[1], [0 if step == 1 else 1], [1]])
            mask = np.concatenate([mask, out], axis=1)
        logits, *past = running(name).run(None, feeds(spec, tokens, mask, past))
        for row in range(3):
            new = mask[row, -len(tokens[row]) :].astype(bool)
            if not new.any():
                continue
            expected, caches = next(alone[row])
            got = logits[row, new] if mode == "all" else logits[row]
            assert_close(got, expected[0, -len(got) :], (step, row))
            for held, value, wanted in zip(contract.caches(spec, "float32"), past, caches, strict=True):
                own = value[row] if held.kind == "conv" else value[row, :, : mask[row].sum()]
                assert_close(own, wanted[0], (step, row, held.present.name))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_row_that_sits_out_keeps_its_caches(name: str) -> None:
    spec, _ = VARIANTS[name]
    _, *past = running(name).run(None, feeds(spec, [[3, 17], [5, 8]], np.ones((2, 2), np.int64), None))
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    _, *present = running(name).run(None, feeds(spec, [[9], [9]], mask, past))
    for held, before, after in zip(contract.caches(spec, "float32"), past, present, strict=True):
        assert np.array_equal(after[1] if held.kind == "conv" else after[1, :, :2], before[1]), held.present.name


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_are_recipes_without_values(name: str) -> None:
    spec, mode = VARIANTS[name]
    model = traced(spec, mode)
    found = {}
    for key, value in model.graph.initializers.items():
        assert value.name == key
        if RECIPE in value.meta:
            assert value.const_value is None
            found[key] = value.meta[RECIPE]
        else:
            assert value.const_value is not None and value.const_value.nbytes <= 4 * spec.head_dim, key
    assert found == {name: Recipe((name,), shape) for name, shape in spec.source_tensors().items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_contract_holds_from_the_start(name: str) -> None:
    spec, mode = VARIANTS[name]
    model = traced(spec, mode)
    check_contract(model, spec, "fp32", mode)
    assert model.ir_version == contract.IR_VERSION == 10
    assert model.opset_imports[""] == contract.OPSET == 21
    with pytest.raises(GraphError, match=r"fp32: (\d inputs|input is .*logits_from_end.*), the contract says"):
        check_contract(model, spec, "fp32", "all" if mode == "last" else "last")
    with pytest.raises(GraphError, match=r"fp16: input is .*FLOAT.*, the contract says .*FLOAT16"):
        check_contract(model, spec, "fp16", mode)
    with pytest.raises(GraphError, match="the contract says"):
        check_contract(model, replace(spec, layer_types=(CONV, FULL_ATTENTION, CONV)), "fp32", mode)


def test_inverse_frequencies_are_transformers_own() -> None:
    model = traced(*VARIANTS["plain"])
    (value,) = (value for name, value in model.graph.initializers.items() if "inv_freq" in name)
    assert value.const_value is not None
    expected = 1.0 / (SPEC.rope_theta ** (np.arange(0, SPEC.head_dim, 2, dtype=np.float64) / SPEC.head_dim))
    np.testing.assert_allclose(value.const_value.numpy(), expected, rtol=2e-7, atol=0)


def test_an_initializer_that_no_checkpoint_holds_is_refused() -> None:
    model = traced(SPEC)
    for value in list(model.graph.initializers.values()):
        if RECIPE in value.meta:
            value.name = MODEL_PREFIX + str(value.name)  # as the exporter left it
    other = replace(SPEC, intermediate_size=64)
    with pytest.raises(GraphError, match=r"initializer model\.layers\.0\.\S+ \[.*48.*\] that no LFM2 checkpoint holds"):
        _attach_recipes(model, other, np.ones(4, np.float32))
