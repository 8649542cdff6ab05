"""Measures one file in a process of its own: `python -m lfm2export.bench.worker REQUEST`, REQUEST being JSON.

Answers are lines of JSON on stdout: {"progress": n} after each run, then {"loaded": ..., "loop": ..., "runs": [...]},
or {"error": message} for what the user can mend.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lfm2export.bench.measure import Engine
from lfm2export.errors import Lfm2ExportError


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """`request`: folder, dtype, threads, contexts from short to long, repeats, decoded."""
    engine = Engine(Path(request["folder"]), request["dtype"], request["threads"])
    runs = []
    for context in request["contexts"]:
        for _ in range(request["repeats"]):
            runs.append(asdict(engine.run(context, request["decoded"])))
            _tell({"progress": len(runs)})
    return {"loaded": asdict(engine.loaded), "loop": "buffered" if engine.buffered else "copied", "runs": runs}


def _tell(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    try:
        _tell(measure(json.loads(sys.argv[1])))
    except Lfm2ExportError as error:
        _tell({"error": str(error)})


if __name__ == "__main__":
    main()
