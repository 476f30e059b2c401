"""A program run once on every path of this CPU that promises the same bits."""

import os
import subprocess
import sys

from fastlstm import _core


def output_on_each_path(code: str) -> dict[str, str]:
    """What `python -c code` prints, by path."""
    found = {}
    for path in _core.isas():
        if path == "portable" and "fma" not in _core.cpu_features():
            continue
        environment = {**os.environ, "FASTLSTM_ISA": path}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        found[path] = done.stdout
    return found
