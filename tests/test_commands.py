"""What the commands say about a folder that is no artifact."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from lfm2export.cli import main


@pytest.mark.parametrize("command", [["generate", "-p", "hi"], ["verify"]])
def test_a_folder_that_is_no_artifact_is_refused_in_one_line(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, message in (("nowhere", "is not a folder; give the folder that a build wrote"), ("empty", "has no")):
        result = CliRunner().invoke(main, [*command, str(tmp_path / name)])
        assert result.exit_code == 2
        assert message in result.output and len(result.output.splitlines()) == 1
