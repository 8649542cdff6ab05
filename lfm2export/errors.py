"""The errors a user can meet, each with a message of one line: the fact, what was got and expected, what to do next.

The command line turns every :class:`Lfm2ExportError` into that line and exit code 2, but for a :class:`FaultError`,
which no user can mend: exit code 70. A parity failure is no error: it is a verdict, and exit code 1.
"""

from __future__ import annotations


class Lfm2ExportError(Exception):
    """Base of everything this package raises on purpose."""


class FaultError(Lfm2ExportError):
    """This package is at fault, or a library is another release than the one it was made for."""


class SourceError(Lfm2ExportError):
    """The checkpoint cannot be used: a file is missing, damaged, or of another architecture."""


class ConfigError(SourceError):
    """config.json misses a field, contradicts itself, or asks for something the tracer has not been proven on."""


class TensorError(SourceError):
    """A tensor is missing, unexpected, misshaped, of a wrong dtype, or holds NaN or Inf."""


class TokenizerError(SourceError):
    """The tokenizer is missing or does not fit the vocabulary."""


class HubError(SourceError):
    """The hub could not be reached, or does not have what was asked for."""


class OutputError(Lfm2ExportError):
    """The output folder cannot be written: it exists, lies inside the source, is read-only, or the disk is full."""


class BusyError(OutputError):
    """Another command is at work in the folder."""


class GraphError(FaultError):
    """The traced graph is not what a pass or the contract expects: a fusion fired too rarely, an input is missing."""


class ArtifactError(Lfm2ExportError):
    """A folder that should hold an LFM2 ONNX artifact does not, or its files contradict each other."""


class StepError(Lfm2ExportError):
    """A generation step was asked for that the graph cannot compute exactly."""


class PromptError(Lfm2ExportError):
    """A prompt, tool list or conversation given by the user cannot be used."""
