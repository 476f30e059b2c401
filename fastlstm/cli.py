"""The command `fastlstm`, also `python -m fastlstm`: demo, train, generate, verify, convert, inspect, bench,
info."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from . import __version__, _check, show_config
from ._train import CHANGEABLE, Diverged, Settings, UserError

CHECK_FAILED, USAGE_ERROR = 1, 2
INTERRUPTED, BROKEN_PIPE = 130, 141  # the exit codes of a shell: 128 + SIGINT, 128 + SIGPIPE
TRAINING = Settings._field_defaults  # the options of `fastlstm train` that decide the outcome


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


def _integer(low: int, high: int) -> Callable[[str], float]:
    return _number(int, low, high, f"an integer in {low}..{_shown(high)}")


def _shown(bound: int) -> str:
    """A large power of two, or one less, as such: nobody reads its digits."""
    power = (bound + 1).bit_length() - 1
    rest = bound - (1 << power)
    return f"2^{power}{rest or ''}" if bound > 2**16 and rest in (0, -1) else str(bound)


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
        type=_integer(0, 100_000),
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
        type=_integer(0, 2**63),
        default=0,
        metavar="N",
        help="of the drawing (0)",
    )
    demo.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="colours (auto)")
    demo.add_argument(
        "--no-color", dest="color", action="store_const", const="never", help="the same as --color never"
    )
    demo.set_defaults(run=_demo)

    _add_train(commands)
    _add_generate(commands)

    _add_verify(commands)
    _add_convert(commands)
    _add_inspect(commands)

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


def _add_train(commands: Any) -> None:
    command = commands.add_parser(
        "train",
        help="a language model of your texts",
        description="Train a character or byte model on texts, one after the other. The last tenth is held "
        "out: one part of it chooses the best weights, the other says how good they are, beside an n-gram "
        "model of the same text. A run that was interrupted or killed goes on with --resume, and ends with "
        "the same bits as one that was not.",
        epilog="Exit code 1 if the loss is no number any more, 2 for bad usage or input, 130 after Ctrl-C, "
        "with a checkpoint.",
    )
    command.add_argument(
        "texts", nargs="+", metavar="TEXT", help="a file, UTF-8 unless --bytes; - for standard input"
    )
    command.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="MODEL",
        help="the file to write; one that is there already is replaced when the run ends",
    )
    command.add_argument(
        "--bytes", action="store_const", const=True, help="learn bytes, of any file, rather than characters"
    )
    rate, tiny, huge = "a number above 0", 1e-300, 1e300

    def add(name: str, convert: Callable[[str], float], metavar: str, help: str) -> None:
        default = TRAINING[name]
        command.add_argument(
            f"--{name.replace('_', '-')}", type=convert, metavar=metavar, help=f"{help} ({default:g})"
        )

    command.add_argument(
        "--cell",
        choices=("lstm", "gru", "rnn", "gated_rnn"),
        help=f"the recurrent layer ({TRAINING['cell']})",
    )
    add("layers", _integer(1, 1024), "N", "recurrent layers")
    add("width", _integer(1, 2**20), "N", "units of each")
    add("embedding", _integer(1, 2**20), "N", "numbers that stand for a symbol")
    add("steps", _integer(1, 2**40), "N", "updates of the weights")
    add("batch", _integer(1, 2**20), "N", "places of the text that are read side by side")
    add("bptt", _integer(1, 2**20), "N", "symbols between two updates")
    add("lr", _number(float, tiny, huge, rate), "X", "the highest learning rate")
    add("warmup", _integer(0, 2**40), "N", "steps until it is reached")
    add("clip", _number(float, tiny, huge, rate), "X", "the largest norm of the gradients")
    add("weight_decay", _number(float, 0, huge, "a number of at least 0"), "X", "AdamW's")
    add("dropout", _number(float, 0, 0.99, "a number in 0..0.99"), "P", "share of outputs left out")
    add("seed", _integer(0, 2**63 - 1), "N", "of everything random")
    command.add_argument(
        "--threads", type=_integer(1, _check.MOST_THREADS), metavar="N", help="at most (the cores there are)"
    )
    command.add_argument(
        "--checkpoint-every",
        type=_integer(1, 2**40),
        default=100,
        metavar="N",
        help="steps between two writings of MODEL.checkpoint (100)",
    )
    free = [f"--{name.replace('_', '-')}" for name in TRAINING if name in CHANGEABLE]
    command.add_argument(
        "--resume",
        action="store_true",
        help="go on from MODEL.checkpoint, if it is there, with its options, of which "
        f"{', '.join(free[:-1])} and {free[-1]} may be given anew",
    )
    command.add_argument("--plot", metavar="FILE", help="draw the loss curve (needs matplotlib)")
    command.set_defaults(run=_train)


def _add_generate(commands: Any) -> None:
    command = commands.add_parser(
        "generate",
        help="text from a model that `fastlstm train` made",
        description="Write on from a prompt, symbol by symbol.",
    )
    command.add_argument("model", metavar="MODEL", help="a file that `fastlstm train` wrote")
    command.add_argument("--prompt", metavar="TEXT", help="what to go on from (the beginning of a line)")
    command.add_argument(
        "--length",
        type=_integer(0, 2**40),
        default=500,
        metavar="N",
        help="symbols to write (500)",
    )
    command.add_argument(
        "--temperature",
        type=_number(float, 0, 1e6, "a number in 0..1e6"),
        default=0.8,
        metavar="X",
        help="0 writes what is likeliest, 1 draws from the model, more is wilder (0.8)",
    )
    command.add_argument(
        "--top-k",
        type=_integer(1, 2**31),
        metavar="N",
        help="draw from the N likeliest only",
    )
    command.add_argument(
        "--top-p",
        type=_number(float, 1e-300, 1, "a number above 0, at most 1"),
        metavar="P",
        help="draw from the likeliest that together have probability P only",
    )
    command.add_argument(
        "--seed",
        type=_integer(0, 2**63 - 1),
        default=0,
        metavar="N",
        help="of the drawing (0)",
    )
    command.set_defaults(run=_generate)


def _add_verify(commands: Any) -> None:
    command = commands.add_parser(
        "verify",
        help="a model in float32, bfloat16 and int8: errors and speed",
        description="Runs a model in every precision over data and holds it against float64: largest and "
        "mean error, signal-to-noise ratio, agreement of the top choice where the last module gives logits, "
        "bits per symbol of a text, and the speed of one step and of a whole call.",
        epilog="Exit code 2 if the model or the data cannot be read.",
    )
    command.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a file that fastlstm.load reads (the bundled language model)",
    )
    command.add_argument(
        "data",
        nargs="?",
        metavar="DATA",
        help="a .npy file of numbers [T, I] or [T, B, I] or of tokens [T] or [T, B], or for a model of "
        "`fastlstm train` a text (random input; of the bundled model, a text that it has not seen)",
    )
    command.add_argument(
        "--seed", type=_integer(0, 2**63 - 1), default=0, metavar="N", help="of random input (0)"
    )
    command.add_argument("--json", action="store_true", help="the same as JSON")
    command.set_defaults(run=_verify)


SUFFIXES = "*.safetensors, *.pt (PyTorch), *.keras or *.h5 (Keras), *.onnx"


def _add_convert(commands: Any) -> None:
    command = commands.add_parser(
        "convert",
        help="a model file of one format into another",
        description=f"Reads a model and writes it in another format; suffixes tell which: {SUFFIXES}. What a "
        "format cannot hold is refused by name. Nothing in a file is run.",
        epilog="Exit code 2 if the file cannot be read, or the other format cannot hold it.",
    )
    command.add_argument("source", metavar="IN")
    command.add_argument("target", metavar="OUT")
    _add_open_options(command)
    command.set_defaults(run=_convert)


def _add_inspect(commands: Any) -> None:
    command = commands.add_parser(
        "inspect",
        help="what a model file holds",
        description="Prints the layers of a model file, their options, each parameter with its shape, size "
        f"and where it came from: {SUFFIXES}. Nothing in a file is run.",
        epilog="Exit code 2 if the file cannot be read.",
    )
    command.add_argument("file", metavar="FILE")
    _add_open_options(command)
    command.add_argument("--json", action="store_true", help="the same as JSON")
    command.set_defaults(run=_inspect)


def _add_open_options(command: Any) -> None:
    """What a bare file of weights leaves open."""
    command.add_argument(
        "--nonlinearity", choices=("tanh", "relu"), help="of a bare RNN, whose file does not tell it"
    )
    command.add_argument(
        "--reset",
        choices=("after", "before"),
        help="whether a bare GRU's reset gate is applied after the product (PyTorch) or before it",
    )


def _left_open(options: argparse.Namespace) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if options.nonlinearity is not None:
        given["nonlinearity"] = options.nonlinearity
    if options.reset is not None:
        given["reset_after"] = options.reset == "after"
    return given


def _convert(options: argparse.Namespace) -> int:
    from . import _convert

    _convert.convert(options.source, options.target, _left_open(options), sys.stdout)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from . import _convert

    _convert.inspect(options.file, _left_open(options), options.json, sys.stdout)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from . import _verify

    _verify.verify(options.model, options.data, seed=options.seed, as_json=options.json, out=sys.stdout)
    return 0


def _train(options: argparse.Namespace) -> int:
    from . import _train

    _train.train(
        options.texts,
        options.output,
        {name: getattr(options, name) for name in TRAINING if getattr(options, name) is not None},
        resume=options.resume,
        checkpoint_every=options.checkpoint_every,
        threads=options.threads,
        plot=options.plot,
        out=sys.stdout,
    )
    return 0


def _generate(options: argparse.Namespace) -> int:
    from . import _train

    _train.generate(
        options.model,
        options.prompt,
        options.length,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        out=sys.stdout,
    )
    return 0


def _demo(options: argparse.Namespace) -> int:
    from . import _demo

    return _demo.run(
        options.file,
        show_all=options.all,
        prompt=options.prompt,
        length=options.length,
        temperature=options.temperature,
        seed=options.seed,
        color=options.color,
    )


def _info(options: argparse.Namespace) -> int:
    import platform
    import textwrap

    config = show_config("dicts")
    if options.json:
        print(json.dumps(config, indent=2))
        return 0

    def variable(name: str) -> str:
        return f"{name}={os.environ[name]}" if name in os.environ else f"{name} is not set"

    paths, small = (", ".join(config[name]) for name in ("cpu_paths", "int8_paths"))
    for name, value in (
        ("fastlstm", config["fastlstm"]),
        ("Python", f"{config['python']} ({platform.python_implementation()}, {platform.platform()})"),
        ("NumPy", config["numpy"]),
        ("compiler", config["compiler"]),
        ("CPU", f"{config['machine']}: {' '.join(config['cpu_features']) or 'no features detected'}"),
        ("path", f"{config['cpu_path']}, of {paths} ({variable('FASTLSTM_ISA')})"),
        ("int8 path", f"{config['int8_path']}, of {small}"),
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
    name = "fastlstm"
    try:
        if sys.stdout is None:
            raise UserError("standard output is closed")
        if arguments[:1] == ["bench"]:
            from ._bench import main as bench

            name = "fastlstm bench"
            code = bench(arguments[1:])
        else:
            options = _parser().parse_args(arguments)
            name = f"fastlstm {options.command}"
            code = options.run(options)
        sys.stdout.flush()  # what goes wrong with it goes wrong here, not at exit
        return int(code or 0)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        return BROKEN_PIPE
    except UserError as error:
        _fail(f"{name}: {error}")
        return CHECK_FAILED if isinstance(error, Diverged) else USAGE_ERROR
    except MemoryError as error:
        return _fail(f"{name}: not enough memory: {error}".removesuffix(": "))
    except OSError as error:  # a file that cannot be read, a full disk
        where = f"{error.filename}: " if error.filename is not None else ""
        code = _fail(f"{name}: {where}{error.strerror or error}")
        _forget_output()
        return code


def _forget_output() -> None:
    """Let the interpreter flush what is left, at exit, to nowhere."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
