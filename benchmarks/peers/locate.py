"""Where the peers are installed, and what to do where one is not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from lfm2export.errors import Lfm2ExportError

Peer = Literal["genai", "llama"]

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "benchmarks" / ".peers"

#: Name of the environment variable that points to an environment elsewhere.
VARIABLES: dict[Peer, str] = {"genai": "LFM2EXPORT_PEER_GENAI", "llama": "LFM2EXPORT_PEER_LLAMA"}


class PeerError(Lfm2ExportError):
    """A peer is not installed, or its program failed."""


def python_of(peer: Peer) -> Path:
    """The Python of the peer's own environment.

    Raises:
        PeerError: there is none; the message says what to run.
    """
    named = os.environ.get(VARIABLES[peer])
    folder = Path(named) if named else FOLDER / peer
    python = folder / "bin" / "python"
    if not python.exists():
        raise PeerError(
            f"{peer} is not installed in {folder}; run benchmarks/peers/setup.sh {peer}, "
            f"or set {VARIABLES[peer]} to an environment that has it"
        )
    return python


def environment() -> dict[str, str]:
    """Variables for a peer's process: the repository's modules can be imported, and nothing is fetched from a hub."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
