"""All checks of one model file, in stages that hold one large thing at a time: the reference on the file's own weights,
then the exact copy, then the file as shipped, then its copy for text.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from lfm2export import measures
from lfm2export.equalized import Equalized
from lfm2export.errors import StepError
from lfm2export.kv_scales import KvScales
from lfm2export.progress import Progress
from lfm2export.reference.available import give_back
from lfm2export.reference.weights import Override, SourceWeights
from lfm2export.runtime import OnnxModel
from lfm2export.text.tokenizer import ChatTokenizer
from lfm2export.verify import judge, routes, variants
from lfm2export.verify.expected import Expected, ExpectedChunk, ExpectedLong, Own, expect_faint, expect_own
from lfm2export.verify.faint import faint_copy
from lfm2export.verify.figures import CheckName, Form, TextMeasures, Tolerances
from lfm2export.verify.folds import broken_fold, held_source
from lfm2export.verify.greedy import greedy_answers, measure_greedy
from lfm2export.verify.int8 import PRODUCT, Int8Product, int8_products, measure_rounding, recorded_copy
from lfm2export.verify.int8 import recorded_names as names_of_products
from lfm2export.verify.kv_cache import (
    Int8Attention,
    compare_scales,
    has_int8_caches,
    int8_attentions,
    measure_caches,
    recorded_names,
    recording_copy,
    worst_shares,
)
from lfm2export.verify.nibbles import split_bytes
from lfm2export.verify.over_text import PREFILL, compared, text_measures, weights_alone
from lfm2export.verify.results import Check, FileResult
from lfm2export.verify.source import Source
from lfm2export.verify.steps import measure_steps
from lfm2export.verify.stored import StoredWeights, read_stored
from lfm2export.verify.tolerances import ROUNDING, kld_limit, tie_limit, tolerances
from lfm2export.verify.weights import measure_weights

if TYPE_CHECKING:
    from lfm2export.reference.stream import StreamReference
    from lfm2export.verify.expected import Reference


UNKNOWN_CACHES = "how its attention reads int8 keys and values is unknown"


@dataclass(frozen=True)
class Plan:
    """What every file is measured on, and what the reference gives there.

    author: who wrote the answers in `expected`: "reference", or the dtype of a file. long, text: None where they are
    left out. expected_long: None where no file is its own exact copy. greedy: tokens of a free-running answer.
    kv_scales: of int8 keys and values, measured again; None where no file has them, or there is no text for it.
    """

    folder: Path
    source: Source
    reference: Reference
    tokenizer: ChatTokenizer | None
    expected: Sequence[Expected]
    author: str
    expected_long: ExpectedLong | None
    long: tuple[int, ...] | None
    text_name: str
    text: Sequence[ExpectedChunk] | None
    why_no_text: str
    greedy: int
    eos_ids: Collection[int]
    threads: int | None
    kv_scales: KvScales | None = None


@dataclass
class Gathered:
    """What has been found so far of one file."""

    checks: dict[CheckName, Check] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    routes: list[Any] = field(default_factory=list)
    spent: dict[CheckName, float] = field(default_factory=dict)

    def measure(self, name: CheckName, compute: Callable[[], Check | None]) -> None:
        """Run one check, or part of one; a file that does not compute has failed it."""
        begin = time.perf_counter()
        try:
            check = compute()
        except StepError as error:
            check = judge.broken(name, error, 0.0)
        self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - begin
        known = self.checks.get(name)
        if check is not None and (known is None or not known.failures):
            self.checks[name] = check


class FileChecks:
    """One file under one plan."""

    def __init__(self, plan: Plan, dtype: str, path: Path, progress: Progress) -> None:
        self.plan, self.dtype, self.path = plan, dtype, path
        self.model = variants.open_graph(path, plan.folder)
        self.exact = variants.is_exact(self.model)
        self.spec = plan.source.checkpoint.spec
        self.limits: Tolerances = tolerances(dtype, self.spec.num_hidden_layers)
        self.names = [entry.prompt.name for entry in plan.expected]
        self.attentions = int8_attentions(self.model.graph, self.spec)
        self.known_caches = len(self.attentions) == len(self.spec.attention_layers) or not has_int8_caches(self.model)
        self.found = Gathered()
        self.progress: Progress = lambda stage, done, total, unit: progress(f"{dtype}: {stage}", done, total, unit)

    def run(self, against: dict[str, list[TextMeasures]] | None = None, other: str = "") -> FileResult:
        """Every check. `against`: another artifact's text measures by dtype, and `other` its name."""
        begin = time.perf_counter()
        stored = read_stored(self.model, self.path.parent, self.spec)
        self.found.measure(CheckName.WEIGHTS, lambda: self._weights(stored))
        logits_mode = self._sessions(None if self.exact else self._own(stored), stored)
        give_back()
        if self.plan.text is not None:
            self.found.measure(CheckName.TEXT, self._text)
        else:
            self.found.checks[CheckName.TEXT] = judge.not_measured(CheckName.TEXT, self.plan.why_no_text)
        order = [name for name in CheckName if name in self.found.checks]
        checks = [replace(self.found.checks[name], seconds=self.found.spent.get(name, 0.0)) for name in order]
        size, data = _sizes(self.path, self.model)
        figures = self.found.figures
        return FileResult(
            dtype=self.dtype,
            file=self.path.name,
            bytes=size + data,
            bits_per_weight=8 * data / self.spec.num_parameters if data else None,
            logits_mode=logits_mode,
            tolerances=self.limits,
            checks=tuple(checks),
            weights=figures.get("weights"),
            arithmetic=figures.get("arithmetic"),
            rounding=figures.get("rounding"),
            caches=figures.get("caches"),
            steps=figures.get("steps"),
            norms=figures.get("norms"),
            routes=tuple(self.found.routes),
            greedy=figures.get("greedy"),
            text=figures.get("text"),
            weights_text=figures.get("weights_text"),
            activations_kld=figures.get("activations_kld"),
            against=compared(figures.get("text"), against, self.dtype, other),
            seconds=time.perf_counter() - begin,
        )

    def _weights(self, stored: StoredWeights) -> Check:
        if not stored.weights:
            return judge.not_measured(CheckName.WEIGHTS, "the names of the file's weights do not say what they are of")
        source = held_source(stored, self.plan.source.checkpoint, self.plan.threads or os.cpu_count() or 1)
        broken, scaled = None, 0
        if isinstance(source, Equalized):
            broken, scaled = broken_fold(source.row_scales, source.column_scales, self.spec), source.scaled
        found = measure_weights(stored, source, self.progress, self.plan.threads)
        self.found.figures["weights"] = found
        return judge.judge_weights(found, stored.missing, 0.0, scaled=scaled, broken=broken)

    def _own(self, stored: StoredWeights) -> Own | None:
        """What PyTorch gives on the file's own weights, where they are known."""
        half = not stored.weights and self.dtype == "fp16"
        if not self.known_caches:
            self.found.checks[CheckName.ARITHMETIC] = judge.not_measured(CheckName.ARITHMETIC, UNKNOWN_CACHES)
            return None
        if stored.missing and not half:
            why = f"which weights of the file are {stored.missing[0]} is unknown, so there is nothing to compare with"
            self.found.checks[CheckName.ARITHMETIC] = judge.not_measured(CheckName.ARITHMETIC, why)
            return None
        override = None if half else stored.override
        # Streamed, every prompt with its answer at once: one pass over weights that are never whole in memory.
        reference = self._streamed(override, half)
        prompts, answers = zip(*((entry.prompt, entry.answer) for entry in self.plan.expected), strict=True)
        return expect_own(reference, prompts, answers, self.plan.long, self.progress)

    def _sessions(self, own: Own | None, stored: StoredWeights) -> str:
        """The exact copy, if the file is not its own, its faint copy, then the file as shipped; its logits mode."""
        prompts, faint = (own.prompts, own.faint) if own is not None else (None, None)
        graph = variants.exact_copy(self.model)
        if not self.exact and self.known_caches:
            give_back()
            exact = self._open_exact(graph)
            if prompts is not None:
                self.found.measure(CheckName.ARITHMETIC, lambda: self._arithmetic(exact, prompts))
            self._routes(exact, Form.EXACT, own.long if own is not None else None)
            del exact, own  # with the caches of a long prompt
            give_back()
        self.found.measure(CheckName.NORMS, lambda: self._norms(graph, faint, stored))
        give_back()
        self._rounding(stored)
        self._caches(prompts)
        model = self._open(None, {}, "all")
        self.found.measure(CheckName.FILE, lambda: self._file(model, prompts))
        self._routes(model, Form.SHIPPED, self.plan.expected_long if self.exact else None)
        self.found.measure(CheckName.GREEDY, lambda: self._greedy(model))
        return model.logits_mode

    def _arithmetic(self, exact: OnnxModel, own: Sequence[Expected]) -> Check:
        found = measure_steps(exact, own, Form.EXACT, "file", progress=self.progress)
        self.found.figures["arithmetic"] = found
        return judge.judge_arithmetic(found, self.names, self.limits, 0.0)

    def _streamed(self, override: Override | None = None, half: bool = False) -> StreamReference:
        from lfm2export.reference.stream import StreamReference

        return StreamReference(SourceWeights(self.plan.source.checkpoint, override, half))

    def _norms(self, exact: onnx.ModelProto, wanted: Expected | None, stored: StoredWeights) -> Check:
        faint = faint_copy(exact, stored, self.spec) if self.known_caches else None
        if faint is not None and self.exact:
            first = self.plan.expected[0]
            wanted = expect_faint(self._streamed(), first.prompt, first.answer, self.progress)
        if faint is None or wanted is None:
            return judge.not_measured(CheckName.NORMS, "which products of the file feed the residual stream is unknown")
        weights = "source" if self.exact else "file"
        found = measure_steps(self._open_exact(faint), [wanted], Form.EXACT, weights)
        self.found.figures["norms"] = found
        return judge.judge_norms(found, self.names, self.limits, 0.0)

    def _rounding(self, stored: StoredWeights) -> None:
        """Of a file that rounds activations in its graph."""
        count = sum(node.op_type == PRODUCT for node in self.model.graph.node)
        products = int8_products(self.model.graph)
        if count and (len(products) < count or stored.missing):
            why = "how its products round their activations, or which weights they multiply, is unknown"
            self.found.checks[CheckName.ROUNDING] = judge.not_measured(CheckName.ROUNDING, why)
        elif count:
            self.found.measure(CheckName.ROUNDING, lambda: self._rounded(products))
            give_back()

    def _rounded(self, products: Sequence[Int8Product]) -> Check:
        rows = routes.uneven_rows([entry.prompt for entry in self.plan.expected])
        names = names_of_products(products)
        model = self._open(recorded_copy(self.model, names).SerializeToString(), {}, "all", names)
        tokens, mask = routes.padded(rows, "LR")
        values = model.record(tokens, model.new_state(len(rows)), mask)
        found = measure_rounding(self.model, self.path.parent, products, values)
        self.found.figures["rounding"] = found
        return judge.judge_rounding(found, ROUNDING, 0.0)

    def _caches(self, own: Sequence[Expected] | None) -> None:
        """Of a file whose keys and values are int8."""
        if not self.known_caches:
            self.found.checks[CheckName.CACHES] = judge.not_measured(CheckName.CACHES, UNKNOWN_CACHES)
        elif self.attentions:
            self.found.measure(CheckName.CACHES, lambda: self._int8_caches(self.attentions, own))
            give_back()

    def _int8_caches(self, attentions: Sequence[Int8Attention], own: Sequence[Expected] | None) -> Check:
        first = self.plan.expected[0]
        rows = routes.padded(routes.uneven_rows([entry.prompt for entry in self.plan.expected]), "LR")
        model = self._open(recording_copy(self.model, attentions), {}, "all", recorded_names(attentions))
        found = measure_caches(model, attentions, [*first.prompt.tokens, *first.answer], rows)
        if self.plan.kv_scales is not None:
            found = replace(found, **compare_scales(model, self.plan.kv_scales))
        del model
        if own is not None:
            exact = self._open_exact(variants.exact_copy(self.model, int8_caches=True))
            steps = measure_steps(exact, own, Form.EXACT, "file", progress=self.progress)
            found = replace(found, **worst_shares(steps))
        self.found.figures["caches"] = found
        return judge.judge_caches(found, 0.0)

    def _file(self, model: OnnxModel, own: Sequence[Expected] | None) -> Check:
        found = measure_steps(model, self.plan.expected, Form.SHIPPED, "source", own, progress=self.progress)
        self.found.figures["steps"] = found
        most_kld = kld_limit(self.dtype, self.limits.file_kld, found)
        return judge.judge_file(found, self.names, self.limits, most_kld, 0.0)

    def _routes(self, model: OnnxModel, form: Form, long: ExpectedLong | None) -> None:
        """Chunks, padding, turns, drafts, long; each check holds the routes of both forms."""
        exact = form is Form.EXACT or self.exact
        limits = self.limits
        given = (limits.exact_logits, limits.exact_caches) if exact else (limits.route_logits, limits.route_caches)
        feed = routes.Routes(model, form, *given, self.progress)
        first, second = self.plan.expected[0], self.plan.expected[1 % len(self.plan.expected)]
        quick = self.plan.long is None
        tokens = [*first.prompt.tokens, *first.answer][: routes.FEW if quick else None]
        rows = routes.uneven_rows([entry.prompt for entry in self.plan.expected])
        answer = first.answer[: routes.ANSWER if quick else None]
        self._route(CheckName.CHUNKS, lambda: feed.chunks(tokens))
        self._route(CheckName.PADDING, lambda: feed.padding(rows, quick))
        self._route(CheckName.TURNS, lambda: [feed.turns(first.prompt.tokens, answer, second.prompt.tokens)])
        if model.max_drafts:
            self._route(CheckName.DRAFTS, lambda: feed.drafts(tokens))
        else:
            why = "the file gives the last token's logits alone, so nothing is fed on trial"
            self.found.checks[CheckName.DRAFTS] = judge.not_measured(CheckName.DRAFTS, why)
        whole = self.plan.long
        if long is not None:
            self._route(CheckName.LONG, lambda: [feed.long_reference(long)])
        if whole is not None and form is Form.SHIPPED:
            self._route(CheckName.LONG, lambda: [feed.long_chunks(whole)])
        if whole is None:
            self.found.checks[CheckName.LONG] = judge.not_measured(CheckName.LONG, "left out of the quick form")

    def _route(self, name: CheckName, feed: Callable[[], list[Any]]) -> None:
        def compute() -> Check:
            self.found.routes += feed()
            return judge.judge_routes(name, [route for route in self.found.routes if route.check is name], 0.0)

        self.found.measure(name, compute)

    def _greedy(self, model: OnnxModel) -> Check:
        prompts = [entry.prompt for entry in self.plan.expected]
        answers = greedy_answers(model, prompts, self.plan.greedy, self.plan.eos_ids, self.progress)
        found = measure_greedy(
            self.plan.reference,
            self.plan.expected,
            answers,
            tie_limit(self.limits, self.found.figures.get("steps")),
            self.plan.tokenizer,
            self.plan.author == "reference",
            self.progress,
        )
        self.found.figures["greedy"] = found
        return judge.judge_greedy(found, self.names, 0.0)

    def _text(self) -> Check:
        assert self.plan.text is not None
        plan, figures = self.plan, self.found.figures
        found = text_measures(self.plan.text, plan.folder, self.path, plan.threads, self.progress)
        figures["text"] = tuple(found)
        if not self.exact and self.known_caches and found[0].route == PREFILL:
            give_back()
            alone = weights_alone(self.plan.text, plan.folder, self.path, self.model, plan.threads, self.progress)
            figures["weights_text"] = alone
            figures["activations_kld"] = measures.paired(alone.chunk_kld, found[0].chunk_kld) if alone else None
        return judge.judge_text(
            found, kld_limit(self.dtype, self.limits.text_kld, self.found.figures.get("steps")), 0.0
        )

    def _open_exact(self, exact: onnx.ModelProto) -> OnnxModel:
        copy = onnx.ModelProto()
        copy.CopyFrom(exact)
        given = split_bytes(copy.graph, self.path.parent)
        return self._open(copy.SerializeToString(), given, "none")

    def _open(
        self, graph: bytes | None, given: Mapping[str, Any], optimization: Any, recorded: Sequence[str] = ()
    ) -> OnnxModel:
        return OnnxModel(
            self.plan.folder,
            self.dtype,
            file=self.path,
            graph=graph,
            given=given,
            recorded=recorded,
            threads=self.plan.threads,
            optimization=optimization,
        )


def _sizes(path: Path, model: onnx.ModelProto) -> tuple[int, int]:
    """Bytes of the graph file, and of its data files."""
    entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    names = {entry.value for entry in entries if entry.key == "location"}
    data = [path.parent / name for name in names]
    return path.stat().st_size, int(np.sum([file.stat().st_size for file in data if file.is_file()], dtype=np.int64))
