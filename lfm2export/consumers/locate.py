"""Where the consumers are installed, and what to do where one is not. `setup.sh` beside this file installs them all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lfm2export.errors import Lfm2ExportError
from lfm2export.untrusted.escape import one_line

HERE = Path(__file__).parent
JS = HERE / "js"
TOOLS = HERE / ".tools"

#: How everything that is missing gets here.
SETUP = f"run {HERE / 'setup.sh'}"

BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
MACOS_BROWSERS = (
    Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"),
    Path("/Applications/Chromium.app/Contents/MacOS/Chromium"),
)


@dataclass(frozen=True)
class Missing:
    """A consumer that is not here; `reason` says what to do."""

    reason: str


def places(artifact: Path) -> dict[str, str]:
    """What stands, in a document that others read, for the folders of this machine that messages name."""
    home = str(Path.home())
    found = {str(artifact.resolve()): artifact.resolve().name, str(HERE.parent): HERE.parent.name}
    return found | ({home: "~"} if home != "/" else {})


def node() -> Path | Missing:
    """Node with the packages of js/package.json."""
    found = shutil.which("node")
    if found is None:
        return Missing(f"Node 20 or newer is not installed; install nodejs and npm, then {SETUP}")
    if not (JS / "node_modules" / "@huggingface" / "transformers").is_dir():
        return Missing(f"@huggingface/transformers is not installed; {SETUP}")
    return Path(found)


def browser() -> Path | Missing:
    """Chromium or Chrome: the environment variable CHROMIUM, what PATH has, or an application of macOS."""
    named = os.environ.get("CHROMIUM")
    if named:
        return Path(named) if Path(named).exists() else Missing(f"CHROMIUM is {named}, which does not exist")
    for name in BROWSERS:
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    present = next((path for path in MACOS_BROWSERS if path.exists()), None)
    return present if present is not None else Missing(f"neither Chromium nor Chrome is installed; {SETUP}")


def genai() -> Path | Missing:
    """Python of the environment that has onnxruntime-genai; it is one of its own, so that it never meets ours."""
    python = TOOLS / "genai" / "bin" / "python"
    return python if python.exists() else Missing(f"onnxruntime-genai is not installed; {SETUP}")


def openvino() -> Path | Missing:
    """Python of the environment that has OpenVINO, one of its own likewise."""
    python = TOOLS / "openvino" / "bin" / "python"
    return python if python.exists() else Missing(f"OpenVINO is not installed; {SETUP}")


def oldest_onnxruntime() -> Path | Missing:
    """Python of an environment with the oldest onnxruntime that runs every file; all else in it is this one's."""
    python = TOOLS / "onnxruntime-oldest" / "bin" / "python"
    return python if python.exists() else Missing(f"the oldest onnxruntime is not installed; {SETUP}")


def vulkan_environment() -> dict[str, str]:
    """Variables that let Node's WebGPU find the software Vulkan of setup.sh; none where it is not, or not wanted.

    A machine with a GPU of its own sets LFM2EXPORT_VULKAN=system.
    """
    root = TOOLS / "lavapipe"
    icd = root / "lvp_icd.json"
    if os.environ.get("LFM2EXPORT_VULKAN") == "system" or not icd.is_file():
        return {}
    folders = [str(folder) for folder in sorted(root.glob("root/**/lib/*-linux-gnu")) if folder.is_dir()]
    known = os.environ.get("LD_LIBRARY_PATH")
    return {
        "VK_DRIVER_FILES": str(icd),
        "VK_ICD_FILENAMES": str(icd),
        "LD_LIBRARY_PATH": ":".join([*folders, *([known] if known else [])]),
    }


def package_version(name: str) -> str | None:
    """Version of an installed npm package."""
    path = JS / "node_modules" / name / "package.json"
    if not path.is_file():
        return None
    version: str = json.loads(path.read_text(encoding="utf-8"))["version"]
    return version


def node_version(path: Path) -> str:
    """What `path` says of itself.

    Raises:
        Lfm2ExportError: it does not run.
    """
    try:
        ran = subprocess.run([str(path), "--version"], capture_output=True, text=True, check=True, errors="replace")
    except (OSError, subprocess.SubprocessError) as error:
        raise Lfm2ExportError(f"{path} --version does not run; put a Node.js that does first on PATH") from error
    return one_line(ran.stdout.strip())
