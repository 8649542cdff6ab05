"""One built artifact for all tests of the command line, and the option that writes their snapshots anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import Ran, run
from kept_text import Snapshots


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--refresh-snapshots", action="store_true", help="Write tests/cli/snapshots anew.")


@pytest.fixture
def snapshots(request: pytest.FixtureRequest) -> Snapshots:
    return Snapshots(refresh=bool(request.config.getoption("--refresh-snapshots", default=False)))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """The folder that a plain `build` of the shipped model left, verified, and what that printed."""
    place = tmp_path_factory.mktemp("built")
    return place / "LFM2-tiny-ONNX", run("build", cwd=place)


@pytest.fixture
def artifact(built: tuple[Path, Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The built folder under the relative name `artifact`; nothing may be written to it."""
    monkeypatch.chdir(tmp_path)
    Path("artifact").symlink_to(built[0], target_is_directory=True)
    yield Path("artifact")
