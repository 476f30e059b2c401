"""The command line: exit codes, one line for every error, nothing but text on standard output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm import _bench, _check, _core, _demo, cli


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastlstm", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def one_line(text: str) -> bool:
    return text.count("\n") == 1 and text.endswith("\n") and len(text) > 10 and "Traceback" not in text


def test_info_says_what_is_in_use(tmp_path: Path) -> None:
    done = command("info", cwd=tmp_path, FASTLSTM_NUM_THREADS="3")
    assert (done.returncode, done.stderr) == (0, "")
    said = {line[:10].strip(): line[10:] for line in done.stdout.splitlines() if line[0] != " "}
    config = fastlstm.show_config("dicts")
    assert list(said) == ["fastlstm", "Python", "NumPy", "compiler", "CPU", "path", "int8 path", "threads"]
    assert said["fastlstm"] == fastlstm.__version__ and said["NumPy"] == np.__version__
    assert said["path"].startswith(config["cpu_path"])
    assert said["threads"] == "at most 3 (FASTLSTM_NUM_THREADS=3)"
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_info_follows_the_forced_path(tmp_path: Path) -> None:
    done = command("info", "--json", cwd=tmp_path, FASTLSTM_ISA="portable")
    assert done.returncode == 0
    assert json.loads(done.stdout)["cpu_path"] == "portable"
    assert json.loads(done.stdout).keys() == fastlstm.show_config("dicts").keys()


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["info", "--help"], ["--version"]])
def test_help_needs_no_traceback(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert exit_.value.code == 0 and "fastlstm" in out and not err
    if arguments == ["--help"]:
        assert all(name in out for name in ("demo", "bench", "info"))


@pytest.mark.parametrize(
    ("arguments", "blamed"),
    [
        ([], "COMMAND"),
        (["frob"], "frob"),
        (["demo", "--frob"], "--frob"),
        (["demo", "a", "b"], "b"),
        (["demo", "--length", "-1"], "--length"),
        (["demo", "--length", "1.5"], "--length"),
        (["demo", "--temperature", "nan"], "--temperature"),
        (["demo", "--temperature", "-0.1"], "--temperature"),
        (["demo", "--temperature", "inf"], "--temperature"),
        (["demo", "--seed", "x\n\033[31m"], "--seed"),
        (["demo", "--color", "red"], "--color"),
        (["info", "more"], "more"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    arguments: list[str], blamed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert exit_.value.code == 2 and not out
    assert one_line(err) and blamed in err and "--help" in err and "\033" not in err


@pytest.mark.parametrize(
    ("content", "blamed"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"\x7fELF\0\0\1", "NUL"),
        ("utf-16".encode("utf-16"), "NUL"),
        (bytes(range(1, 256)), "is no UTF-8 text (byte 127)"),
        (b"latin gr\xfc\xdfe, quite so", "is no UTF-8 text (byte 8)"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    content: bytes | None, blamed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some\033[1mtext"
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["demo", str(path)]) == 2
    out, err = capsys.readouterr()
    assert not out and one_line(err) and blamed in err and "text" in err and "\033" not in err
    assert err.startswith("fastlstm demo: ")


@pytest.mark.parametrize(("prompt", "blamed"), [("naïve", "'ï'"), (os.fsdecode(b"a\xff"), "is no UTF-8")])
def test_prompts_that_the_demo_cannot_read(
    prompt: str, blamed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "--prompt", prompt]) == 2
    out, err = capsys.readouterr()
    assert not out and one_line(err) and "--prompt" in err and blamed in err


@pytest.mark.parametrize("command", ["info", "demo", "generate m", "train t -o m", "bench --quick"])
def test_a_closed_output_is_an_error(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(command.split()) == 2
    assert capsys.readouterr().err == "fastlstm: standard output is closed\n"


def test_too_little_memory_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object, **options: object) -> int:
        raise MemoryError("Unable to allocate 32.0 TiB")

    monkeypatch.setattr(_demo, "run", run)
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr().err == "fastlstm demo: not enough memory: Unable to allocate 32.0 TiB\n"


def test_bounds_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    for option, bounds in (("--width", "1..2^20"), ("--steps", "1..2^40"), ("--seed", "0..2^63-1")):
        with pytest.raises(SystemExit):
            cli.main(["train", "t", "-o", "m", option, "-5"])
        assert f"an integer in {bounds}," in capsys.readouterr().err


def test_the_most_threads_are_those_of_the_core() -> None:
    before = fastlstm.get_num_threads()
    try:
        _core.set_num_threads(_check.MOST_THREADS)
        with pytest.raises(ValueError, match=f"1 to {_check.MOST_THREADS}"):
            _core.set_num_threads(_check.MOST_THREADS + 1)
    finally:
        fastlstm.set_num_threads(before)


def test_errors_of_the_process(tmp_path: Path) -> None:
    for arguments in (["demo", "missing"], ["demo", "."], ["demo", "--length", "many"]):
        done = command(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "") and one_line(done.stderr), arguments


def test_bench_gets_its_arguments_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def bench(argv: list[str]) -> int:
        seen.append(argv)
        return 3

    monkeypatch.setattr(_bench, "main", bench)
    assert cli.main(["bench", "--help", "--quick", "x"]) == 3
    assert seen == [["--help", "--quick", "x"]]


def test_interrupted_quietly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*args: object, **options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(_demo, "run", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "fastlstm", "info"],
            cwd=tmp_path,
            stdout=closed,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fastlstm", "info"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=60,
        )
    assert done.returncode == 2 and one_line(done.stderr)
