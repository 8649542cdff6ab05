"""The process in which strangers' programs run: what takes too much is ended, and it does not outlive its owner."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lfm2export.text import sandbox
from lfm2export.text.sandbox import Sandbox, SandboxError, render

FOREVER = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def test_one_process_renders_all_turns_and_another_after_it_was_ended() -> None:
    box = Sandbox(256)

    def ask(template: str) -> str:
        return str(box.ask(0.3, op="render", template=template, variables={"x": "é\u2028\n"})["text"])

    assert ask("{{ x }}") == "é\u2028\n"
    first = box._process
    assert ask("{{ x }}{{ x }}") == "é\u2028\n" * 2 and box._process is first
    begin = time.monotonic()
    with pytest.raises(SandboxError, match=r"more than 0\.3 s"):
        ask(FOREVER)
    assert time.monotonic() - begin < 3
    assert first is not None and first.poll() is not None
    assert ask("still {{ x }}") == "still é\u2028\n"
    second = box._process
    box.close()
    assert second is not None and second.poll() is not None
    box.close()


def test_memory_is_limited_and_the_process_survives_it() -> None:
    with pytest.raises(SandboxError, match="more than 512 MB"):
        render("{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}", {})
    process = sandbox._rendering._process
    assert render("{{ 1 + 1 }}", {}) == "2"
    assert sandbox._rendering._process is process


def test_a_refusal_is_told_from_a_fault() -> None:
    with pytest.raises(SandboxError, match=r"^no$") as refused:
        render("{{ raise_exception('no') }}", {})
    with pytest.raises(SandboxError, match="ZeroDivisionError") as failed:
        render("{{ 1/0 }}", {})
    assert (refused.value.refused, failed.value.refused) == (True, False)
    with pytest.raises(SandboxError) as long:
        render("{{ raise_exception('x' * 100000) }}", {})
    assert len(str(long.value)) <= 300


def test_what_json_cannot_hold_is_said() -> None:
    with pytest.raises(SandboxError, match="what JSON cannot"):
        render("x", {"messages": [b"bytes"]})


def test_nothing_of_the_current_folder_is_imported(tmp_path: Path) -> None:
    (tmp_path / "jinja2.py").write_text("raise SystemExit('imported')")
    code = "from lfm2export.text.sandbox import render; print(render('{{ 6 * 7 }}', {}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert (ran.stdout, ran.stderr) == ("42\n", "")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("template", ["{{ 1 }}", FOREVER])
def test_it_does_not_outlive_an_owner_that_is_killed(template: str) -> None:
    """Idle it sees the end of its input; at work, its own limit ends it."""
    code = textwrap.dedent(f"""
        import os, signal, threading
        from lfm2export.text import sandbox
        sandbox.render("x", {{}})
        print(sandbox._rendering._process.pid, flush=True)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
        sandbox.render({template!r}, {{}})
        signal.pause()
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    pid = int(ran.stdout)
    until = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < until, "the worker is still there"
        time.sleep(0.05)
