"""Speed of an artifact in Transformers.js. Request and answers are those of `lfm2export.bench.worker`.

The request's own: runtime, node or browser, and device. Each context is run once before it counts: Chromium goes on
compiling for the first seconds, at half the speed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lfm2export.bench.javascript import find_runtime, measure_file
from lfm2export.errors import Lfm2ExportError
from lfm2export.progress import silent
from lfm2export.spec import parse_spec, read_config

WARM_UPS = 1


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """`request`: folder, dtype, threads, contexts from short to long, decoded, runtime, device."""
    folder = Path(request["folder"])
    runtime = find_runtime(request["runtime"], request["device"], folder)
    vocabulary = parse_spec(read_config(folder)).vocab_size
    asked = {name: request[name] for name in ("dtype", "threads", "contexts", "decoded")}
    answer = measure_file(runtime, folder, {**asked, "repeats": WARM_UPS + 1, "vocabulary": vocabulary}, silent)
    return {**answer, "runs": answer["runs"][WARM_UPS :: WARM_UPS + 1]}


def main() -> None:
    try:
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    except Lfm2ExportError as error:
        print(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    main()
