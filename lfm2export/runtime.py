"""An LFM2 ONNX file behind `step(tokens, state) -> logits, state`; only this module imports onnxruntime.

Two loops over one session. :class:`OnnxModel` hands caches back and forth as arrays, as the model card's loop does; it
is the reference. :class:`BufferedModel` keeps one preallocated buffer per key and value cache, bound as both past and
present (GroupQueryAttention then writes in place, and takes the past length from the mask), and two alternating conv
states. Its logits equal the copying loop's bit for bit; at 4,096 tokens of context it decodes twice as fast.

Any folder of this layout works, whoever made it: only config.json and the file's own inputs and outputs are read.
Letters: B batch, S new tokens, P past, T = P + S, H hidden, K KV heads, D head_dim, L conv_L_cache, V vocab.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from lfm2export import contract
from lfm2export.artifact import find_model, resolve_data
from lfm2export.contract import MODEL_FILES, LogitsMode
from lfm2export.errors import ArtifactError, StepError
from lfm2export.kv_scales import Scales, dequantized, read_scales
from lfm2export.rollback import check_speculation, conv_state_after, from_end
from lfm2export.spec import ModelSpec, parse_spec, read_config
from lfm2export.steps import Logits, Mask, Tokens, row_lengths, step_inputs
from lfm2export.untrusted.onnx_file import parse_model, read_model

#: Capacity of a fresh growing buffer, in tokens.
FIRST_CAPACITY = 256

#: Fatal, the last of onnxruntime's levels. Its errors come as exceptions too; what it would print has strangers' names
#: in it, as they are.
SILENT = 4
ort.set_default_logger_severity(SILENT)

#: What :func:`fastest` feeds: tokens that every vocabulary has.
PROBE = np.array([[1, 2, 3]])

R = TypeVar("R")
Optimization = Literal["all", "basic", "none"]

_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

#: Where a session made of bytes finds its external data.
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
#: Weights packed by every thread of the session (onnxruntime 1.31; older ones ignore it). 350M opens in .7 of the time.
#: No more anonymous memory is needed; pages of the file stay mapped until all is packed.
_PACK_IN_PARALLEL = "session.prepack.enable_parallel"

_NUMPY_TYPES = {
    "tensor(int64)": "int64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
}


@dataclass(frozen=True)
class CopyState:
    """State of the copying loop. `mask` [B, T] has a 0 for every pad; `caches` are in contract order."""

    mask: Mask
    caches: tuple[NDArray[Any], ...]

    @property
    def lengths(self) -> Mask:
        """Tokens held per row, pads not counted, [B]; also the next position of each row."""
        return row_lengths(self.mask)


class OnnxModel:
    """One ONNX file with the caches passed by value. A state is never changed by a step: an old one may be used again.

    Args:
        folder: the artifact: config.json, and the model files in onnx/.
        dtype: fp32, fp16, q8, q4 or q4f16; None takes the first that is there of `artifact.PREFERENCE`.
        file: an ONNX file to use instead of the folder's own, such as an altered copy.
        graph: the bytes of an altered graph to run in place of the file's; its weights are in the file's data.
        given: values of initializers that such a graph has and the file's data has not.
        recorded: outputs that such a graph gives beyond the contract's; :meth:`record` reads them.
        threads: intra-op threads; None leaves the choice to the runtime.
        optimization: the runtime's graph optimizations: "all", "basic" or "none". Not "none" for q4 and q8: where the
            Cast of their scales is not folded, MatMulNBits at accuracy_level 4 gives zeros (measured with 1.32).
        providers: execution providers by name.

    Raises:
        ArtifactError: no such file, a file that does not load, or inputs and outputs that are not the contract's.
        ConfigError, SourceError: config.json is missing or is not LFM2's.
    """

    def __init__(
        self,
        folder: Path | str,
        dtype: str | None = None,
        *,
        file: Path | None = None,
        graph: bytes | None = None,
        given: Mapping[str, NDArray[Any]] | None = None,
        recorded: Sequence[str] = (),
        threads: int | None = None,
        optimization: Optimization = "all",
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        folder = Path(folder)
        self.path = file if file is not None else find_model(folder, dtype)
        self.dtype = next((name for name, known in MODEL_FILES.items() if known == self.path.name), None)
        if optimization == "none" and graph is None and self.dtype in ("q4", "q8"):
            raise ArtifactError(f"{self.path.name} computes zeros without constant folding; use basic optimization")
        self.spec: ModelSpec = parse_spec(read_config(folder))
        self.given = [_Buffer(value) for value in (given or {}).values()]
        self.session = _open_session(
            self.path, folder, graph, dict(zip(given or {}, self.given, strict=True)), threads, optimization, providers
        )
        self.logits_mode: LogitsMode = _logits_mode(self.session)
        overridable = {value.name for value in self.session.get_overridable_initializers()}
        every = self.logits_mode == "all" or contract.LOGITS_FROM_END in overridable
        self.max_drafts = self.spec.conv_L_cache - 1 if every else 0
        held = {value.type for value in self.session.get_inputs()}
        self.cache_dtype: contract.CacheDtype = "float16" if "tensor(float16)" in held else "float32"
        self.kv_cache: contract.KvCache = "int8" if "tensor(int8)" in held else "native"
        self.contract = contract.contract(self.spec, self.cache_dtype, self.logits_mode, self.kv_cache)
        self.recorded = tuple(recorded)
        self._graph = graph
        faults = interface_faults(self.session, self.contract, self.recorded)
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise ArtifactError(
                f"{self.path}: {faults[0]}{more}; this is no LFM2 export of the layout that config.json says"
            )

    def new_state(self, batch: int = 1) -> CopyState:
        """The state before the first token of `batch` rows."""
        caches = tuple(np.zeros(_shape(cache.past, batch, 0), cache.past.dtype) for cache in self.contract.caches)
        return CopyState(np.zeros((batch, 0), np.int64), caches)

    def step(self, tokens: Tokens, state: CopyState, attention_mask: Mask | None = None) -> tuple[Logits, CopyState]:
        """Feed `tokens` [B, S]; returns logits [B, 1, V] (or [B, S, V] from a file with all logits) and the next state.

        `attention_mask` [B, S] covers the new tokens only: 0 marks a pad, left or right, which is allowed only in the
        first step of a state.

        Raises:
            StepError: an empty row, a pad after the first step, several tokens with a past and several rows, a token
                outside the vocabulary, or more tokens than max_position_embeddings.
        """
        feeds, mask = self._feeds(tokens, state, attention_mask)
        names = [output.name for output in self.contract.outputs]
        logits, *caches = self.run(lambda: self.session.run(names, feeds))
        return logits, CopyState(mask, tuple(caches))

    def speculate(self, tokens: Tokens, state: CopyState) -> tuple[Logits, Callable[[int], CopyState]]:
        """Feed `tokens` [1, S] of which the end may be wrong: logits [1, S, V], and a function to be called once with
        how many of them stay, 1 to S, which gives the state after those.

        S is at most `max_drafts` + 1, as wide as a conv state: past and present together then hold all between them.

        Raises:
            StepError: several rows, more tokens than that, or what :meth:`step` raises.
        """
        check_speculation(tokens, self.max_drafts)
        feeds, mask = self._feeds(tokens, state, None)
        if self.logits_mode == "last":
            feeds[contract.LOGITS_FROM_END] = from_end(tokens.shape[1])
        names = [output.name for output in self.contract.outputs]
        logits, *caches = self.run(lambda: self.session.run(names, feeds))

        def keep(count: int) -> CopyState:
            dropped = tokens.shape[1] - count
            kept = []
            for cache, past, present in zip(self.contract.caches, state.caches, caches, strict=True):
                if cache.kind == "conv":
                    kept.append(conv_state_after(past, present, tokens.shape[1], count))
                else:
                    kept.append(present[:, :, : present.shape[2] - dropped])
            return CopyState(mask[:, : mask.shape[1] - dropped], tuple(kept))

        return logits, keep

    def record(self, tokens: Tokens, state: CopyState, attention_mask: Mask | None = None) -> dict[str, NDArray[Any]]:
        """The `recorded` outputs of the step that :meth:`step` would make, by name; raises as it does."""
        feeds, _ = self._feeds(tokens, state, attention_mask)
        values = self.run(lambda: self.session.run(list(self.recorded), feeds))
        return dict(zip(self.recorded, values, strict=True))

    def _feeds(
        self, tokens: Tokens, state: CopyState, attention_mask: Mask | None
    ) -> tuple[dict[str, NDArray[Any]], Mask]:
        feeds, mask = step_inputs(self.spec, tokens, state.mask, attention_mask)
        for cache, value in zip(self.contract.caches, state.caches, strict=True):
            feeds[cache.past.name] = value
        return feeds, mask

    def run(self, compute: Callable[[], R]) -> R:
        """`compute` of the session, with the runtime's own errors as ours.

        Raises:
            StepError: the runtime fails, such as for want of memory; the message is its reason in one line.
        """
        try:
            return compute()
        except Exception as error:  # onnxruntime's own exception classes share no base below Exception
            raise StepError(f"{self.path.name}: onnxruntime fails at this step ({_one_line(error)})") from error

    def read_caches(self, state: CopyState) -> tuple[NDArray[Any], ...]:
        """Every cache tensor in contract order; keys and values [B, K, P, D] with each row packed to the front.

        int8 codes come times their scales, as float32.

        Raises:
            ArtifactError: the file does not say what its scales are.
        """
        return dequantized(state.caches, self.scales)

    @cached_property
    def scales(self) -> Scales:
        """What codes of each cache are multiplied by, [1, K, 1, D]; no step needs it. Raises as :meth:`read_caches`."""
        if self.kv_cache == "native":
            return (None,) * len(self.contract.caches)
        model = read_model(self.path) if self._graph is None else parse_model(self._graph, self.path)
        return read_scales(model, self.contract.caches)


@dataclass
class BufferedState:
    """State of the buffered loop; a step changes it in place.

    committed: mask [B, T], and which of the two conv sets is current; one tuple, so that an interruption between two
    statements cannot leave half a step. held: the caches, and where they are bound.
    """

    committed: tuple[Mask, int]
    held: _Held = field(repr=False)

    @property
    def mask(self) -> Mask:
        return self.committed[0]

    @property
    def lengths(self) -> Mask:
        """Tokens held per row, pads not counted, [B]; also the next position of each row."""
        return row_lengths(self.mask)


class BufferedModel:
    """The same file with one buffer per key and value cache, bound as past and present.

    Args:
        model: the file; its session is shared.
        max_length: fixed capacity in tokens (pads counted); None grows by doubling, at the price of a copy each time.
    """

    def __init__(self, model: OnnxModel, max_length: int | None = None) -> None:
        self.model = model
        self.spec = model.spec
        self.logits_mode = model.logits_mode
        self.max_drafts = model.max_drafts
        self.max_length = max_length

    def new_state(self, batch: int = 1) -> BufferedState:
        """The state before the first token of `batch` rows."""
        convs = (self._buffers("conv", batch, 0), self._buffers("conv", batch, 0))
        return BufferedState((np.zeros((batch, 0), np.int64), 0), self._held(batch, self.max_length or 0, convs))

    def step(
        self, tokens: Tokens, state: BufferedState, attention_mask: Mask | None = None
    ) -> tuple[Logits, BufferedState]:
        """As :meth:`OnnxModel.step`. The state given is the state returned; an interrupted step leaves it as it was.

        Raises:
            StepError: as there, and when the tokens do not fit a fixed `max_length`.
        """
        rows = 1 if self.logits_mode == "last" else tokens.shape[1]
        logits, mask = self._run(tokens, state, attention_mask, rows)
        state.committed = (mask, 1 - state.committed[1])
        return logits, state

    def speculate(self, tokens: Tokens, state: BufferedState) -> tuple[Logits, Callable[[int], BufferedState]]:
        """As :meth:`OnnxModel.speculate`. Until the count is said, and if it never is, the state is as it was."""
        check_speculation(tokens, self.max_drafts)
        width = tokens.shape[1]
        logits, mask = self._run(tokens, state, None, width)
        current = state.committed[1]

        def keep(count: int) -> BufferedState:
            past, present = (state.held.convs[which] for which in (current, 1 - current))
            for name, buffer in present.items():
                if count < width:
                    buffer.array[...] = conv_state_after(past[name].array, buffer.array, width, count)
            state.committed = (mask[:, : mask.shape[1] - width + count], 1 - current)
            return state

        return logits, keep

    def _run(self, tokens: Tokens, state: BufferedState, attention_mask: Mask | None, rows: int) -> tuple[Logits, Mask]:
        """One step into the buffers, not committed: logits [B, rows, V], and the mask after it."""
        feeds, mask = step_inputs(self.spec, tokens, state.mask, attention_mask)
        batch, total = mask.shape
        self._reserve(state, batch, total)
        current = state.committed[1]
        if self.logits_mode == "last" and self.max_drafts:
            feeds[contract.LOGITS_FROM_END] = from_end(rows)
        logits = np.empty((batch, rows, self.spec.vocab_size), np.float32)
        binding = state.held.bindings[current]
        inputs = {name: _Buffer(array) for name, array in feeds.items()}
        for name, buffer in inputs.items():
            binding.bind_ortvalue_input(name, buffer.value)
        stated = rows == 1 or self.logits_mode == "all"
        if stated:
            binding.bind_ortvalue_output(contract.LOGITS, _Buffer(logits).value)
        else:  # more rows than the file states: the runtime refuses a tensor of ours, and makes its own
            binding.bind_output(contract.LOGITS)
        self.model.run(lambda: self.model.session.run_with_iobinding(binding))
        if not stated:
            logits = binding.get_outputs()[len(self.model.contract.caches)].numpy()  # bound last, after the caches
        return logits, mask

    def read_caches(self, state: BufferedState) -> tuple[NDArray[Any], ...]:
        """Views of every cache tensor in contract order; keys and values [B, K, capacity, D], packed to the front.

        Slots from a row's length on are scratch. The next step changes what a view shows. int8 codes are no views, but
        come times their scales, and raise, as in :meth:`OnnxModel.read_caches`.
        """
        held = state.held.buffers | state.held.convs[state.committed[1]]
        return dequantized(
            tuple(held[cache.past.name].array for cache in self.model.contract.caches), self.model.scales
        )

    def _reserve(self, state: BufferedState, batch: int, total: int) -> None:
        """Give the key and value buffers room for `total` tokens."""
        held = state.held
        if total <= held.capacity:
            return
        if self.max_length is not None:
            raise StepError(f"{total} tokens do not fit a buffer of {self.max_length}; raise max_length")
        grown = self._held(batch, max(FIRST_CAPACITY, 2 * held.capacity, total), held.convs)
        past = state.mask.shape[1]
        for name, buffer in held.buffers.items():
            grown.buffers[name].array[:, :, :past] = buffer.array[:, :, :past]
        state.held = grown

    def _held(self, batch: int, capacity: int, convs: tuple[dict[str, _Buffer], dict[str, _Buffer]]) -> _Held:
        """New key and value buffers beside these conv states, all bound: binding 46 values costs .1 ms a step."""
        buffers = self._buffers("key", batch, capacity) | self._buffers("value", batch, capacity)
        bindings = []
        for current in (0, 1):
            binding = self.model.session.io_binding()
            past, present = buffers | convs[current], buffers | convs[1 - current]
            for cache in self.model.contract.caches:
                binding.bind_ortvalue_input(cache.past.name, past[cache.past.name].value)
                binding.bind_ortvalue_output(cache.present.name, present[cache.past.name].value)
            bindings.append(binding)
        return _Held(capacity, buffers, convs, (bindings[0], bindings[1]))

    def _buffers(self, kind: str, batch: int, capacity: int) -> dict[str, _Buffer]:
        tensors = [cache.past for cache in self.model.contract.caches if cache.kind == kind]
        return {tensor.name: _Buffer(np.zeros(_shape(tensor, batch, capacity), tensor.dtype)) for tensor in tensors}


def fastest(model: OnnxModel) -> BufferedModel | OnnxModel:
    """The buffered loop when this file computes the same on shared buffers, else the copying one.

    Two short steps decide, for a file of another tool may append to its caches, or take the past length from their
    shape.
    """
    buffered = BufferedModel(model, max_length=PROBE.shape[1] + 2)
    state, shared = model.new_state(), buffered.new_state()
    try:
        for tokens in (PROBE, PROBE[:, :1]):
            expected, state = model.step(tokens, state)
            got, shared = buffered.step(tokens, shared)
            if not np.array_equal(got, expected):
                return model
    except StepError:
        return model
    return BufferedModel(model)


class _Buffer:
    """An array and the OrtValue on its memory; onnxruntime does not keep the array alive, this does."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self.value = ort.OrtValue.ortvalue_from_numpy(array)


@dataclass(frozen=True)
class _Held:
    """The caches of one state: key and value buffers of `capacity` tokens by input name, and two sets of conv states.

    bindings: past and present of every cache, by which conv set is current; a step adds the three integer inputs and
    the logits.
    """

    capacity: int
    buffers: dict[str, _Buffer]
    convs: tuple[dict[str, _Buffer], dict[str, _Buffer]]
    bindings: tuple[ort.IOBinding, ort.IOBinding]


def interface_faults(
    session: ort.InferenceSession, wanted: contract.Contract, recorded: Sequence[str] = ()
) -> list[str]:
    """What of the session's inputs and outputs is not as the contract says; empty when all is.

    Outputs of the names `recorded` may come besides.

    A symbol where the contract has an integer passes here, for such a file runs; an integer that differs does not.
    """
    faults: list[str] = []
    for side, found, tensors in (
        ("input", session.get_inputs(), wanted.inputs),
        ("output", session.get_outputs(), wanted.outputs),
    ):
        values = {value.name: value for value in found}
        for tensor in tensors:
            value = values.pop(tensor.name, None)
            if value is None:
                faults.append(f"{side} {tensor.name} is missing")
                continue
            dtype = _NUMPY_TYPES.get(value.type, value.type)
            if dtype != tensor.dtype:
                faults.append(f"{side} {tensor.name} is {dtype}, expected {tensor.dtype}")
            same_rank = len(value.shape) == len(tensor.shape)
            fixed = zip(value.shape, tensor.shape, strict=False)
            if not same_rank or any(isinstance(got, int) and got != size for got, size in fixed):
                faults.append(f"{side} {tensor.name} has shape {list(value.shape)}, expected {list(tensor.shape)}")
        faults.extend(f"{side} {name} is not in the contract" for name in values if name not in recorded)
    return faults


def _open_session(
    path: Path,
    folder: Path,
    graph: bytes | None,
    given: Mapping[str, _Buffer],
    threads: int | None,
    optimization: Optimization,
    providers: Sequence[str],
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    if threads is not None:
        options.intra_op_num_threads = threads
    options.graph_optimization_level = _LEVELS[optimization]
    options.add_session_config_entry(_PACK_IN_PARALLEL, "1")
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; give an ONNX file")
    model, place = resolve_data(path, folder if path.is_relative_to(folder) else path.parent, graph, given)
    if isinstance(model, bytes):
        options.add_session_config_entry(_DATA_FOLDER, str(place))
    if given:
        options.add_external_initializers(list(given), [buffer.value for buffer in given.values()])
    try:
        return ort.InferenceSession(model, options, providers=list(providers))
    except Exception as error:  # onnxruntime's own exception classes share no base below Exception
        raise ArtifactError(
            f"{path} does not load in onnxruntime ({_one_line(error)}); build it again, or fetch it anew"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _logits_mode(session: ort.InferenceSession) -> LogitsMode:
    shapes = {value.name: value.shape for value in session.get_outputs()}
    shape = shapes.get(contract.LOGITS, ())
    return "last" if len(shape) == 3 and shape[1] == 1 else "all"


def _shape(tensor: contract.Tensor, batch: int, past: int) -> tuple[int, ...]:
    sizes = {contract.BATCH: batch, contract.PAST: past}
    return tuple(sizes[size] if isinstance(size, str) else size for size in tensor.shape)
