"""The chat page opened in a browser, as a visitor would; what js/visit.mjs tells of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from lfm2export.consumers.locate import JS

PHONE = {"width": 390, "height": 844}
QUESTION = "What is the capital of France?"


def visit_page(scratch: Path, **fields: Any) -> dict[str, Any]:
    """Send the request `fields` (js/visit.mjs says what may be in it); `scratch` takes it and the answer."""
    request, answer = scratch / "request.json", scratch / "answer.json"
    answer.unlink(missing_ok=True)
    given = {"greedy": True, "messages": [QUESTION], "viewport": PHONE, **fields}
    request.write_text(json.dumps(given), encoding="utf-8")
    ran = subprocess.run(
        ["node", str(JS / "visit.mjs"), str(request), str(answer)], capture_output=True, text=True, timeout=600
    )
    assert answer.exists(), ran.stderr
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found
