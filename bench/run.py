"""`python bench/run.py [options]`: the benchmark program from the source tree. `--help` lists its options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fastlstm.cli import main  # noqa: E402

sys.exit(main(["bench", *sys.argv[1:]]))
