"""`verify_artifact` on clean artifacts, ours and others', and its refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from lfm2export.contract import MODEL_FILES, LogitsMode
from lfm2export.errors import ArtifactError, Lfm2ExportError, PromptError
from lfm2export.recipes import RECIPES
from lfm2export.verify.clean import clean_figures
from lfm2export.verify.document import FILE, encode, read_parity, write_parity
from lfm2export.verify.figures import CheckName, Verdict
from lfm2export.verify.results import SCHEMA_VERSION, Verification
from lfm2export.verify.run import verify_artifact

PROMPTS = ["What is the capital of France?", "How many days are there in a week?"]

Artifact = Callable[[LogitsMode], Path]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred tokens, so that one chunk is scored."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The river runs down from the hills to the sea. The wind turns north in the morning.\n" * 20)
    return path


@pytest.fixture(scope="module")
def whole(tiny_source: Path, tiny_artifact: Artifact, text_file: Path) -> Verification:
    """The full form on all five files of the tiny model."""
    return verify_artifact(tiny_artifact("last"), reference=tiny_source, text=text_file, steps=8, prompts=PROMPTS)


def verdicts(result: Verification, dtype: str) -> dict[CheckName, Verdict]:
    file = next(file for file in result.files if file.dtype == dtype)
    return {check.name: check.verdict for check in file.checks}


def test_every_dtype_of_a_clean_artifact_passes(whole: Verification) -> None:
    assert whole.passed, [failure.message for file in whole.files for failure in file.failures]
    assert [file.dtype for file in whole.files] == list(RECIPES)
    for file in whole.files:
        others = {CheckName.CACHES} | ({CheckName.ROUNDING} if file.dtype != "q8" else set())
        names = set(CheckName) - others - ({CheckName.ARITHMETIC} if file.dtype == "fp32" else set())
        assert {check.name for check in file.checks} == names
        assert all(check.verdict is Verdict.PASSED for check in file.checks)


def test_clean_figures_keep_their_distance_from_the_limits(whole: Verification) -> None:
    for file in whole.files:
        for name, (figure, limit) in clean_figures(file).items():
            assert figure < limit / 2, (file.dtype, name)


def test_every_step_and_every_cache_is_measured(whole: Verification) -> None:
    for file in whole.files:
        assert file.steps is not None
        assert [(p.prompt, p.step) for p in file.steps.points] == [(i, s) for i in range(2) for s in range(9)]
        assert len(file.steps.caches) == 6
        assert all(len(cache.max_abs) == len(file.steps.points) for cache in file.steps.caches)
    q4 = next(file for file in whole.files if file.dtype == "q4")
    assert q4.steps is not None and q4.steps.own_kld is not None
    assert q4.arithmetic is not None and q4.arithmetic.mean_kld is not None
    assert (
        q4.arithmetic.mean_kld < 1e-9 < q4.steps.own_kld
    )  # proven to rounding, and different from the source all the same


def test_text_is_scored_by_prefill_and_by_decode(whole: Verification) -> None:
    assert whole.text is not None and whole.text.name == "text.txt"
    for file in whole.files:
        assert file.text is not None
        assert [text.route for text in file.text] == ["prefill", "decode"]
        for text in file.text:
            assert text.positions == whole.text.scored
            assert text.reference_perplexity == pytest.approx(file.text[0].reference_perplexity)
    fp32 = whole.files[0].text
    assert fp32 is not None and fp32[0].perplexity == pytest.approx(fp32[0].reference_perplexity, rel=1e-4)


def test_what_weights_lose_is_told_from_what_rounding_of_activations_loses(whole: Verification) -> None:
    """Both over the same chunks: a file's KLD is that of its weights and what is added, chunk by chunk."""
    for file in whole.files:
        if file.dtype == "fp32":
            assert file.weights_text is None and file.activations_kld is None
            continue
        assert file.text is not None and file.weights_text is not None and file.activations_kld is not None
        shipped, alone = file.text[0], file.weights_text
        assert alone.positions == shipped.positions and alone.chunks == shipped.chunks
        added = [mine - other for mine, other in zip(shipped.chunk_kld, alone.chunk_kld, strict=True)]
        assert file.activations_kld.mean == pytest.approx(np.mean(added))
        assert alone.kld.mean is not None and alone.kld.mean > 0
    found = {file.dtype: file for file in whole.files}
    q8, q4 = found["q8"], found["q4"]
    assert q8.weights_text is not None and q8.text is not None and q4.weights_text is not None
    assert q8.weights_text.kld.mean < 0.7 * q8.text[0].kld.mean  # type: ignore[operator]
    assert q8.weights_text.kld.mean < 0.3 * q4.weights_text.kld.mean  # type: ignore[operator]


def test_the_document_says_everything_and_comes_back(whole: Verification, tmp_path: Path) -> None:
    path = write_parity(whole, tmp_path)
    assert path.name == FILE
    document = json.loads(path.read_text())
    assert encode(read_parity(tmp_path)) == document
    assert document["verdict"] == "passed"
    assert document["schema_version"] == SCHEMA_VERSION
    assert document == encode(whole)


def test_a_damaged_or_foreign_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        read_parity(tmp_path)
    (tmp_path / FILE).write_text('{"schema_version": 99}')
    with pytest.raises(ArtifactError, match=f"schema 99, expected {SCHEMA_VERSION}"):
        read_parity(tmp_path)
    (tmp_path / FILE).write_text(f'{{"schema_version": {SCHEMA_VERSION}}}')
    with pytest.raises(ArtifactError, match="is damaged"):
        read_parity(tmp_path)


def foreign(artifact: Path, to: Path, dtypes: tuple[str, ...]) -> Path:
    """The same files under names of nobody's, without build.json."""
    (to / "onnx").mkdir(parents=True)
    shutil.copy(artifact / "config.json", to)
    shutil.copy(artifact / "tokenizer.json", to)
    shutil.copy(artifact / "tokenizer_config.json", to)
    for dtype in dtypes:
        name = MODEL_FILES[dtype]
        model = onnx.load(str(artifact / "onnx" / name), load_external_data=False)
        inputs = {value.name for value in model.graph.input}
        weights = [tensor for tensor in model.graph.initializer if tensor.name not in inputs]
        renamed = {tensor.name: f"w{number}" for number, tensor in enumerate(weights)}
        for tensor in weights:
            tensor.name = renamed[tensor.name]
        for node in model.graph.node:
            for number, value in enumerate(node.input):
                node.input[number] = renamed.get(value, value)
        (to / "onnx" / name).write_bytes(model.SerializeToString())
        shutil.copy(artifact / "onnx" / f"{name}_data", to / "onnx")
    return to


def test_a_folder_of_anyone_is_verified(tiny_source: Path, tiny_artifact: Artifact, tmp_path: Path) -> None:
    folder = foreign(tiny_artifact("all"), tmp_path / "theirs", ("fp32", "fp16", "q8"))
    with pytest.raises(ArtifactError, match=r"no build\.json .* --reference"):
        verify_artifact(folder)
    result = verify_artifact(folder, reference=tiny_source, quick=True, steps=4)
    assert result.passed
    assert result.reference.matches is None
    fp16, q8 = verdicts(result, "fp16"), verdicts(result, "q8")
    assert fp16[CheckName.WEIGHTS] is Verdict.NOT_MEASURED
    assert fp16[CheckName.ARITHMETIC] is Verdict.PASSED  # against PyTorch on the source rounded to float16
    assert q8[CheckName.ARITHMETIC] is q8[CheckName.ROUNDING] is Verdict.NOT_MEASURED
    assert fp16[CheckName.NORMS] is q8[CheckName.NORMS] is Verdict.NOT_MEASURED
    assert q8[CheckName.PADDING] is Verdict.PASSED


def test_without_a_tokenizer_token_numbers_do(tiny_source: Path, tiny_artifact: Artifact, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_source, tmp_path / "source")
    (source / "tokenizer.json").unlink()
    folder = foreign(tiny_artifact("last"), tmp_path / "theirs", ("fp32",))
    (folder / "tokenizer.json").unlink()
    result = verify_artifact(folder, reference=source, steps=4)
    assert result.passed and result.text is None
    assert verdicts(result, "fp32")[CheckName.TEXT] is Verdict.NOT_MEASURED
    assert result.prompts[0].text is None
    with pytest.raises(PromptError, match=r"no tokenizer\.json"):
        verify_artifact(folder, reference=source, prompts=PROMPTS)


def test_a_streamed_reference_gives_the_same_verdicts(tiny_source: Path, spoilable: Path) -> None:
    memory, stream = (
        verify_artifact(spoilable, reference=tiny_source, quick=True, steps=4, reference_mode=mode)
        for mode in ("memory", "stream")
    )
    assert memory.reference.mode == "memory" and stream.reference.mode == "stream"
    assert memory.passed and stream.passed
    assert stream.prompts[0].answer_from == "fp32"
    assert stream.prompts[0].answer == memory.prompts[0].answer  # the fp32 file writes what the reference would


def test_two_artifacts_are_compared_chunk_by_chunk(
    tiny_source: Path, tiny_artifact: Artifact, spoilable: Path, text_file: Path
) -> None:
    result = verify_artifact(
        spoilable, reference=tiny_source, dtypes=["q4"], steps=2, text=text_file, against=tiny_artifact("all")
    )
    compared = result.files[0].against
    assert compared is not None and [entry.route for entry in compared] == ["prefill", "decode"]
    assert all(entry.dtype == "q4" and entry.kld.mean == pytest.approx(0, abs=1e-6) for entry in compared)


def test_another_model_is_no_reference(spoilable: Path, tmp_path: Path) -> None:
    from tiny import write_tiny

    other = write_tiny(tmp_path / "other", rope_theta=10000.0)
    with pytest.raises(ArtifactError, match=r"rope_theta 1000000\.0, the reference has 10000\.0"):
        verify_artifact(spoilable, reference=other)


def test_other_weights_fail_and_the_first_tensor_is_named(spoilable: Path, tmp_path: Path) -> None:
    from tiny import write_tiny

    other = write_tiny(tmp_path / "other", seed=1)
    result = verify_artifact(spoilable, reference=other, dtypes=["fp32"], quick=True, steps=2)
    assert result.verdict is Verdict.FAILED and result.reference.matches is False
    assert result.files[0].failures[0].check is CheckName.WEIGHTS


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, Lfm2ExportError, "steps is 0, expected at least 1"),
        ({"quick": True, "long": True}, Lfm2ExportError, "quick form measures neither"),
        ({"quick": True, "against": Path("x")}, Lfm2ExportError, "quick form scores no text"),
        ({"prompts": []}, PromptError, "no prompt to verify with"),
        ({"text": Path("missing.txt")}, PromptError, r"missing\.txt "),
        ({"dtypes": ["fp16"]}, ArtifactError, "has no onnx/model_fp16.onnx"),
        ({"steps": 5000}, PromptError, "expected 1 to"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    spoilable: Path, tiny_source: Path, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        verify_artifact(spoilable, reference=tiny_source, **options)  # type: ignore[arg-type]


def test_without_a_reference_the_folder_name_is_said(spoilable: Path) -> None:
    with pytest.raises(ArtifactError, match=r"made from a folder called 'source', .* --reference"):
        verify_artifact(spoilable)
