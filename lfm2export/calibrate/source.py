"""The text of a calibration, as the user names it: the one that ships, a file, or what the model itself says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lfm2export.calibrate.sampled import openings, self_text
from lfm2export.calibrate.text import CalibrationText, file_text, shipped_text
from lfm2export.checkpoint import Checkpoint
from lfm2export.generation.settings import read_generation
from lfm2export.progress import Progress
from lfm2export.recipes import Calibration
from lfm2export.reference import load_reference
from lfm2export.text.token_ids import folder_token_ids
from lfm2export.text.tokenizer import ChatTokenizer


def open_text(checkpoint: Checkpoint, calibration: Calibration) -> Callable[[Progress], CalibrationText]:
    """What gives the sequences that `calibration` asks for, in the tokens of `checkpoint`. All that can fail before the
    model is run fails here; a text is read here, and what the model itself says is sampled by the call.

    Raises:
        PromptError: the file cannot be used, the tokenizer does not belong to the model, or, for text of the model's
            own, puts no token before a text.
        TokenizerError: there is no tokenizer that can be read.
    """
    tokenizer = ChatTokenizer(checkpoint.folder)
    if calibration.text == "self":
        generation = read_generation(checkpoint.folder)
        bos = folder_token_ids(checkpoint.folder, checkpoint.config, generation, checkpoint.spec.vocab_size).bos
        openings(tokenizer, bos)
        return lambda progress: self_text(
            load_reference(checkpoint.folder), tokenizer, calibration.tokens, bos=bos, progress=progress
        )
    if calibration.text is None:
        text = shipped_text(tokenizer, checkpoint.spec, calibration.tokens)
    else:
        text = file_text(Path(calibration.text), tokenizer, checkpoint.spec, calibration.tokens)
    return lambda progress: text
