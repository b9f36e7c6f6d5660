"""Python processes in which the packages of this project cannot be imported, as where they are not installed."""

import os
import subprocess
import sys
from pathlib import Path

BLOCK_PACKAGES = "import sys; sys.modules['modeling_music_tx'] = sys.modules['tokenization'] = None"


def run_clean(
    code: str, folder: Path, environment: dict[str, str] | None = None, /, **names
) -> subprocess.CompletedProcess:
    """Run code in a new process.

    Args:
        code: Python. It starts where neither the checkout nor the installed packages can be imported.
        folder: The working directory.
        environment: Environment variables; by default those of this process, with an empty cache and no network.
        **names: Variables that the code may use, whose `repr` is Python.
    """
    if environment is None:
        environment = os.environ | {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    lines = [BLOCK_PACKAGES, *(f"{name} = {value!r}" for name, value in names.items()), code]
    command = [sys.executable, "-P", "-c", "\n".join(lines)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
