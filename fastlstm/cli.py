"""The command `fastlstm`, also `python -m fastlstm`: demo, bench, info."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from . import __version__, show_config

USAGE_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141  # the exit codes of a shell: 128 + SIGINT, 128 + SIGPIPE


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, _one_line(f"{self.prog}: {message} (see {self.prog} --help)"))


def _one_line(message: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in message) + "\n"


def _number(kind: Callable[[str], float], low: float, high: float, wanted: str) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"wanted {wanted}, got {text!r}")
        return value

    return convert


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fastlstm",
        description="Recurrent networks on the CPU: LSTM, GRU, RNN and gated RNN.",
    )
    parser.add_argument("--version", action="version", version=f"fastlstm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="a small character model reads a text, writes on, and is held against NumPy",
        description="A character model that comes with fastlstm (one LSTM layer, trained on the Python "
        "standard library) reads a text in one forward pass, shows how much each character surprises it, "
        "writes on step by step, and holds numbers and speed against the NumPy reference.",
        epilog="No colours where NO_COLOR is set or the output is no terminal. "
        "Exit code 1 if the numbers are wrong, 2 if the text cannot be read.",
    )
    demo.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="a text in UTF-8, - for standard input (default: the module textwrap, which was not trained on)",
    )
    demo.add_argument("--all", action="store_true", help="show the whole text, not a stretch of it")
    demo.add_argument("--prompt", metavar="TEXT", help="write on from TEXT, not from the end of the file")
    demo.add_argument(
        "--length",
        type=_number(int, 0, 100_000, "an integer in 0..100000"),
        default=300,
        metavar="N",
        help="characters to write (300)",
    )
    demo.add_argument(
        "--temperature",
        type=_number(float, 0, 1e6, "a number in 0..1e6"),
        default=0.6,
        metavar="X",
        help="0 writes what is likeliest, 1 draws from the model, more is wilder (0.6)",
    )
    demo.add_argument(
        "--seed",
        type=_number(int, 0, 2**63, "an integer in 0..2^63"),
        default=0,
        metavar="N",
        help="of the drawing (0)",
    )
    demo.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="colours (auto)")
    demo.add_argument(
        "--no-color", dest="color", action="store_const", const="never", help="the same as --color never"
    )
    demo.set_defaults(run=_demo)

    # Its options are its own: main hands them on unread, --help too.
    commands.add_parser("bench", help="measure against NumPy and every installed peer", add_help=False)

    info = commands.add_parser(
        "info",
        help="versions, CPU features, path in use, threads",
        description="Versions, CPU features, the path in use and the threads: what a bug report should say.",
    )
    info.add_argument("--json", action="store_true", help="the same as JSON")
    info.set_defaults(run=_info)
    return parser


def _demo(options: argparse.Namespace) -> int:
    from . import _demo

    try:
        return _demo.run(
            options.file,
            show_all=options.all,
            prompt=options.prompt,
            length=options.length,
            temperature=options.temperature,
            seed=options.seed,
            color=options.color,
        )
    except _demo.UserError as error:
        return _fail(f"fastlstm demo: {error}")


def _info(options: argparse.Namespace) -> int:
    import platform
    import textwrap

    config = show_config("dicts")
    if options.json:
        print(json.dumps(config, indent=2))
        return 0

    def variable(name: str) -> str:
        return f"{name}={os.environ[name]}" if name in os.environ else f"{name} is not set"

    paths = ", ".join(config["cpu_paths"])
    for name, value in (
        ("fastlstm", config["fastlstm"]),
        ("Python", f"{config['python']} ({platform.python_implementation()}, {platform.platform()})"),
        ("NumPy", config["numpy"]),
        ("compiler", config["compiler"]),
        ("CPU", f"{config['machine']}: {' '.join(config['cpu_features']) or 'no features detected'}"),
        ("path", f"{config['cpu_path']}, of {paths} ({variable('FASTLSTM_ISA')})"),
        ("threads", f"at most {config['num_threads']} ({variable('FASTLSTM_NUM_THREADS')})"),
    ):
        lines = textwrap.wrap(value, 66, break_on_hyphens=False) or [""]
        print(f"{name:<10}" + f"\n{'':<10}".join(lines))
    return 0


def _fail(message: str) -> int:
    print(_one_line(message), end="", file=sys.stderr)
    return USAGE_ERROR


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default the process's own; returns the exit code.

    0: done; 1: a check failed; 2: bad usage or input, with one line on standard error; 130: interrupted;
    141: the reader of the output went away.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["bench"]:
            from ._bench import main as bench

            code = bench(arguments[1:])
        else:
            options = _parser().parse_args(arguments)
            code = options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()  # what goes wrong with it goes wrong here, not at exit
        return int(code or 0)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        return BROKEN_PIPE
    except OSError as error:  # a file that cannot be read, a full disk
        where = f"{error.filename}: " if error.filename is not None else ""
        code = _fail(f"fastlstm: {where}{error.strerror or error}")
        _forget_output()
        return code


def _forget_output() -> None:
    """Let the interpreter flush what is left, at exit, to nowhere."""
    try:
        sys.stdout.flush()
    except (OSError, AttributeError):
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
