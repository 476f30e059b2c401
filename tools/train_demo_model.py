"""Train the character model that `fastlstm demo` ships: python tools/train_demo_model.py [options]

The text is the source of the running Python's own standard library, without tests, without tables of data
and without the one module that the demo reads by default. Every character but printable ASCII and line feeds
becomes one and the same, which in the demo stands for all that the model does not know. The rest is
`fastlstm train` with OPTIONS; options given here come after those and override them (--steps, -o, --resume).
The seed, the Python version and fastlstm fix the outcome, whatever the number of threads.
"""

from __future__ import annotations

import random
import re
import sys
import sysconfig
import tempfile
import tokenize
from pathlib import Path

from fastlstm import _demo, cli

TARGET = Path(__file__).parent.parent / "fastlstm" / "data" / "charlm.safetensors"
# Tests repeat themselves, tables are neither prose nor program, and installed packages are not the library.
LEFT_OUT = {"dist-packages", "encodings", "idle_test", "pydoc_data", "site-packages", "test", "tests"}
# Some half an hour of one core, to 1.65 bits per character of the tenth that is held out. Tried: a fifth of
# the steps, 1.86; half the --bptt with --lr 0.015, which was worse.
OPTIONS = ["--width=136", "--embedding=32", "--batch=16", "--bptt=128", "--steps=100000"]


def corpus() -> str:
    """The library's source in random order, as the last tenth of it is held out."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(p for p in root.rglob("*.py") if not LEFT_OUT & set(p.relative_to(root).parts))
    random.Random(0).shuffle(paths)
    texts = []
    for path in paths:
        if path != _demo.held_out_path() and not path.name.startswith("_sysconfigdata"):
            with tokenize.open(path) as file:  # in the encoding that it declares
                texts.append(_demo.normalise(file.read()))
    return re.sub(r"[^\n -~]", _demo.OTHER, "\n".join(texts))


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "modules.txt"
        text.write_bytes(corpus().encode())
        command = ["train", str(text), "-o", str(TARGET), *OPTIONS, *sys.argv[1:]]
        print("fastlstm " + " ".join(command), flush=True)
        return cli.main(command)


if __name__ == "__main__":
    sys.exit(main())
