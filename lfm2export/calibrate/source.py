"""The text of a calibration, as the user names it: the one that ships, a file, or what the model itself says."""

from __future__ import annotations

from pathlib import Path

from lfm2export.calibrate.sampled import self_text
from lfm2export.calibrate.text import CalibrationText, file_text, shipped_text
from lfm2export.checkpoint import Checkpoint
from lfm2export.progress import Progress, silent
from lfm2export.recipes import Calibration
from lfm2export.reference import load_reference
from lfm2export.text.tokenizer import ChatTokenizer


def calibration_text(checkpoint: Checkpoint, calibration: Calibration, progress: Progress = silent) -> CalibrationText:
    """The sequences that `calibration` asks for, in the tokens of `checkpoint`.

    Raises:
        PromptError: the file cannot be used, or the tokenizer does not belong to the model.
        TokenizerError: there is no tokenizer that can be read.
    """
    tokenizer = ChatTokenizer(checkpoint.folder)
    if calibration.text is None:
        return shipped_text(tokenizer, checkpoint.spec, calibration.tokens)
    if calibration.text == "self":
        return self_text(load_reference(checkpoint.folder), tokenizer, calibration.tokens, progress=progress)
    return file_text(Path(calibration.text), tokenizer, checkpoint.spec, calibration.tokens)
