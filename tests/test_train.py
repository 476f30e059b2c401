"""`fastlstm train` and `fastlstm generate`: the same bits after any interruption; what goes wrong is said."""

from __future__ import annotations

import argparse
import errno
import inspect
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm import _files, _train, cli

SMALL = ["--width", "7", "--embedding", "5", "--batch", "3", "--bptt", "11", "--steps", "40"]
TEXT = inspect.getsource(argparse)[:6000]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def train(text, output, *more, code=0):
    """In this process; returns the output file's bytes."""
    assert cli.main(["train", str(text), "-o", str(output), *SMALL, *more]) == code
    return output.read_bytes() if code == 0 else None


def start(text, output, *more):
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "fastlstm", "train", str(text), "-o", str(output), *SMALL, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )


def one_line(text):
    return text.count("\n") == 1 and text.endswith("\n") and "Traceback" not in text


# --- what comes out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "gated_rnn"])
def test_train_and_generate(cell, text, tmp_path, capsys):
    output = tmp_path / "model.safetensors"
    train(text, output, "--cell", cell, "--layers", "2", "--dropout", "0.1", "--weight-decay", "0.01")
    said = capsys.readouterr().out
    assert "bits per character" in said and "n-gram" in said and "step 40/40" in said and "left" in said
    assert max(map(len, said.replace(str(tmp_path), "").splitlines())) <= 80
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "text.txt"]
    for _ in range(2):
        assert cli.main(["generate", str(output), "--prompt", "def ", "--length", "50", "--seed", "3"]) == 0
    once, twice = capsys.readouterr().out.split("def ")[1:][:2]
    assert once == twice and len(once.removesuffix("\n")) == 50 and set(once) <= set(TEXT)


def test_the_figures_are_right(text, tmp_path, capsys):
    """What it says of the test part is what one pass over the whole held-out text says, word for word."""
    output = tmp_path / "model.safetensors"
    train(text, output, "--lr", "0.03")
    said = capsys.readouterr().out
    model, about = _train.read_model(str(output))
    read = _train.read_text([str(text)], False)
    first = read.train + read.validation
    begin = first - _train.WARM_UP
    logits, _ = model(read.codes[begin - 1 : -1, None])
    chances = fastlstm.log_softmax(logits[:, 0].astype(float))[np.arange(len(logits)), read.codes[begin:]]
    wanted = -chances[_train.WARM_UP :].mean() / math.log(2)
    assert about["bits"]["test"] == pytest.approx(wanted, rel=1e-4)
    assert f"{about['bits']['test']:.4f} bits" in said
    assert about["bits"]["validation"] < math.log2(read.symbols)  # it has learnt something


def test_bits_do_not_depend_on_the_readers(text):
    """Long stretches are shared by several readers; each symbol counts once, with enough before it."""
    read = _train.read_text([str(text)], False)
    model = _train.build(_train.Settings(width=7, embedding=5), read.symbols)
    codes = np.tile(read.codes, 3)
    logits, _ = model(codes[: 9000 - 1, None])
    chances = fastlstm.log_softmax(logits[:, 0].astype(float))[np.arange(8999), codes[1:9000]]
    for start, stop in ((2000, 9000), (1, 9000), (8999, 9000), (3000, 4001)):
        wanted = -chances[start - 1 : stop - 1].mean() / math.log(2)
        tiled = read._replace(codes=codes)
        assert _train.bits(model, tiled, start, stop) == pytest.approx(wanted, rel=1e-4)


def test_every_symbol_is_read_once_a_pass(text):
    read = _train.read_text([str(text)], False)
    codes = np.arange(len(read.codes))  # each place is its own symbol
    read = read._replace(codes=codes)
    s = _train.Settings(batch=3, bptt=11, seed=5)
    steps = (read.train - 1) // 33
    seen, last = [], None
    for step in range(2 * steps):
        window, begins = _train.window(read, s, step)
        assert window.shape == (12, 3) and begins == (step % steps == 0)
        assert np.array_equal(window[1:], (window[:-1] + 1) % read.train)
        if not begins:
            assert np.array_equal(window[0], last)  # goes on where it ended
        last = window[-1]
        seen.append(window[1:])
    first, second = (np.concatenate(seen[k : k + steps]).ravel() for k in (0, steps))
    assert len(set(first)) == len(first) and len(first) > read.train - 2 * 33
    assert seen[0][0, 0] != seen[steps][0, 0]  # another pass begins elsewhere
    assert first.max() < read.train and second.max() < read.train  # never what is held out


def test_a_pass_begins_with_no_state_and_a_step_with_the_one_before(text, tmp_path, monkeypatch):
    read = _train.read_text([str(text)], False)._replace(train=300)
    run = _train.Run(_train.Settings(width=7, embedding=5, batch=3, bptt=11, steps=20), read)
    model, seen = run.model, []

    class Watched:
        def record(self, codes, state, *, dropout_seed):
            tape = model.record(codes, state, dropout_seed=dropout_seed)
            seen.append((state, tape.state))
            return tape

        def __call__(self, *arguments):
            return model(*arguments)

        def state_dict(self):
            return model.state_dict()

    run.model = Watched()
    _train.learn(run, str(tmp_path / "m.checkpoint"), 100, _train.Progress(run, sys.stdout))
    a_pass = 299 // 33
    for step, (given, _) in enumerate(seen):
        assert given is (None if step % a_pass == 0 else seen[step - 1][1])
    assert len(seen) == 20 > 2 * a_pass


def test_bytes_of_anything(tmp_path, capsysbinary):
    data = tmp_path / "data.bin"
    data.write_bytes(np.random.default_rng(0).integers(0, 256, 2000, np.uint8).tobytes())
    output = tmp_path / "model.safetensors"
    train(data, output, "--bytes")
    assert b"bits per byte" in capsysbinary.readouterr().out
    assert cli.main(["generate", str(output), "--prompt", "é", "--length", "20"]) == 0
    assert capsysbinary.readouterr().out.startswith("é".encode())


def test_many_texts_are_one(tmp_path, capsys):
    whole, parts = tmp_path / "whole", [tmp_path / "a", tmp_path / "b"]
    whole.write_text(TEXT)
    parts[0].write_text(TEXT[:1000])
    parts[1].write_text(TEXT[1000:])
    one = _train.read_text([str(whole)], False)
    two = _train.read_text([str(p) for p in parts], False)
    assert np.array_equal(one.codes, two.codes) and one.alphabet == two.alphabet
    assert one.digest != two.digest


def test_standard_input_is_a_text(text, tmp_path, monkeypatch, capsys):
    wanted = train(text, tmp_path / "a")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert train("-", tmp_path / "b") == wanted
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert "standard input is no UTF-8" in refused(capsys, "-", "-o", tmp_path / "c")
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input is closed" in refused(capsys, "-", "-o", tmp_path / "c")


def test_a_model_worse_than_equal_odds_is_called_so(text, tmp_path, capsys):
    wild = ["--lr", "300", "--warmup", "0", "--steps", "3", "--cell", "rnn"]
    train(text, tmp_path / "m", *wild)
    said = capsys.readouterr().out
    assert f"worse than equal odds for all symbols, {math.log2(len(set(TEXT))):.4f}" in said
    assert max(map(len, said.replace(str(tmp_path), "").splitlines())) <= 80
    train(text, tmp_path / "m")
    assert "worse than" not in capsys.readouterr().out
    assert [_train.figure(v) for v in (1.23456, 99.9, 123456.0)] == ["1.235", "99.900", "1.235e+05"]


def test_a_picture_of_the_loss(text, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for name in ("loss.png", "loss.svg"):
        train(text, tmp_path / "m", "--plot", str(tmp_path / name))
        assert (tmp_path / name).stat().st_size > 2000


def test_a_bar_on_a_terminal(text, tmp_path):
    """With tqdm; and lines without it."""
    pytest.importorskip("tqdm")
    pty = pytest.importorskip("pty")
    for hide in (False, True):
        code = "import sys; from fastlstm import cli; sys.exit(cli.main(sys.argv[1:]))"
        if hide:
            code = "import sys; sys.modules['tqdm'] = None; " + code
        main_end, other_end = pty.openpty()
        arguments = ["train", str(text), "-o", str(tmp_path / "m"), *SMALL]
        done = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=other_end, stderr=other_end)
        os.close(other_end)
        shown = b""
        while True:
            try:
                part = os.read(main_end, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        os.close(main_end)
        assert done.wait(60) == 0
        assert (b" 40/40 [" in shown and b" steps/s" in shown) != hide
        assert (b"step 40/40" in shown) == hide and b"bits per character" in shown


# --- interruptions ----------------------------------------------------------------------------------------


def test_the_same_bits_with_any_threads_and_checkpoints(text, tmp_path, capsys):
    before = fastlstm.get_num_threads()
    try:
        one = train(text, tmp_path / "a", "--threads", "1", "--checkpoint-every", "1")
        assert one == train(text, tmp_path / "b", "--threads", "3", "--checkpoint-every", "1000")
    finally:
        fastlstm.set_num_threads(before)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_killed_again_and_again_it_ends_with_the_same_bits(cell, text, tmp_path, capsys):
    options = ["--cell", cell, "--layers", "2", "--dropout", "0.2", "--steps", "60", "--warmup", "10"]
    wanted = train(text, tmp_path / "whole", *options)
    output = tmp_path / "killed"
    checkpoint = Path(f"{output}.checkpoint")
    kills, seen = 0, -1
    for attempt in range(40):
        run = start(text, output, *options, "--resume", "--checkpoint-every", "3")
        while run.poll() is None and kills < 6:  # until it has saved something new; then at any moment
            step = saved_step(checkpoint)
            if step > seen:
                time.sleep(0.003 * attempt)
                run.kill()
                kills, seen = kills + (step > 0), step
                break
            time.sleep(0.001)
        said = run.communicate()[0]
        assert "Traceback" not in said
        assert run.returncode in (0, -signal.SIGKILL), said
        if run.returncode == 0:
            break
    assert kills >= 3 and "--resume" not in said
    assert output.read_bytes() == wanted
    assert not checkpoint.exists()


def test_a_checkpoint_holds_everything(text, tmp_path):
    path = str(tmp_path / "checkpoint")
    read = _train.read_text([str(text)], False)
    settings = _train.Settings(width=7, embedding=5, batch=3, bptt=11, steps=100)
    run = _train.Run(settings, read)
    original, run.settings = run.settings, settings._replace(steps=13)  # in the middle of things
    _train.learn(run, path, 100, _train.Progress(run, sys.stdout))
    run.settings = original
    run.best_bits, run.best = 1 / 3, {name: v + 1 for name, v in run.best.items()}  # not the newest
    run.recent = [0.1, 2 / 3]
    run.save(path)
    arrays, facts, read_settings = _train.read_checkpoint(path)
    other = _train.Run(read_settings, read)
    other.load(arrays, facts)
    assert read_settings == settings

    def everything(run):
        parts = (run.model.state_dict(), run.optimizer.state_dict(), run.best)
        arrays = [{name: np.asarray(v).tobytes() for name, v in part.items()} for part in parts]
        state = [v.tobytes() for part in run.state for v in part]
        return arrays, state, run.step, run.saved, run.best_bits, run.recent, run.curve

    assert everything(other) == everything(run) and len(run.curve) == 3


def saved_step(checkpoint):
    """Of a checkpoint, which is whole at every moment; -1 if there is none."""
    try:
        _, facts, _ = _train.read_checkpoint(str(checkpoint))
    except FileNotFoundError:
        return -1
    return facts["step"]


@pytest.mark.parametrize("nth", [1, 2, 5])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_while_it_writes(moment, nth, text, tmp_path, monkeypatch, capsys):
    """Between the new checkpoint and its taking the old one's place, and just after."""
    wanted = train(text, tmp_path / "whole", "--checkpoint-every", "4")
    writings, replace = 0, os.replace

    class Killed(BaseException):
        pass

    def killed(source, target):
        nonlocal writings
        writings += 1
        if writings == nth and moment == "before":
            raise Killed
        replace(source, target)
        if writings == nth:
            raise Killed

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        train(text, tmp_path / "m", "--checkpoint-every", "4")
    monkeypatch.undo()
    assert not (tmp_path / "m").exists()
    assert train(text, tmp_path / "m", "--resume") == wanted


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_ends_cleanly_with_a_checkpoint(text, tmp_path, capsys):
    options = ["--steps", "300"]
    wanted = train(text, tmp_path / "whole", *options)
    output = tmp_path / "m"
    run = start(text, output, *options, "--checkpoint-every", "1000")
    for line in run.stdout:
        if line.startswith("step"):
            break
    run.send_signal(signal.SIGINT)
    said = run.communicate()[0]
    assert run.returncode == 130 and "Traceback" not in said and "--resume" in said
    assert 0 < saved_step(Path(f"{output}.checkpoint")) < 300
    assert not output.exists()
    assert train(text, output, *options, "--resume") == wanted


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_twice(text, tmp_path, monkeypatch, capsys):
    """At once it is as good as once; later it stops at once, and says what is left."""
    for patience, step in ((100.0, 12), (-1.0, 10)):
        output = tmp_path / f"m{step}"
        monkeypatch.setattr(_train, "PATIENCE", patience)
        interrupt_at(monkeypatch, 13, times=2)
        train(text, output, "--checkpoint-every", "10", code=130)
        said = capsys.readouterr().out
        assert said.count("stopping after this step") == 1
        assert f"stopped; {output}.checkpoint holds step {step}, --resume goes on" in said
        assert saved_step(f"{output}.checkpoint") == step
        monkeypatch.undo()


def test_ctrl_c_in_the_last_step(text, tmp_path, monkeypatch, capsys):
    interrupt_at(monkeypatch, 40)
    train(text, tmp_path / "m", code=130)
    assert saved_step(tmp_path / "m.checkpoint") >= 39 and not (tmp_path / "m").exists()


def test_resume_needs_no_option_again_and_takes_some_new_ones(text, tmp_path, monkeypatch, capsys):
    output = tmp_path / "m"
    interrupt_at(monkeypatch, 13)
    train(text, output, code=130)
    monkeypatch.undo()
    capsys.readouterr()
    for option, value in (("--width", "8"), ("--seed", "1"), ("--batch", "2"), ("--cell", "gru")):
        assert cli.main(["train", str(text), "-o", str(output), "--resume", option, value]) == 2
        err = capsys.readouterr().err
        assert one_line(err) and option in err and value in err
    err = refused(capsys, text, "-o", output, "--resume", "--bytes")
    assert "--bytes cannot change in a run" in err and "began without it" in err
    err = refused(capsys, text, "-o", output, "--resume", "--steps", "5")
    assert "--steps 5: the run is at step 12 already" in err and saved_step(f"{output}.checkpoint") == 12
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    listed = " ".join(capsys.readouterr().out.split())
    assert (
        "of which --steps, --lr, --warmup, --clip, --weight-decay and --dropout may be given anew" in listed
    )
    changed = ["--resume", "--lr", "0.001", "--steps", "20", "--dropout", "0.2", "--weight-decay", "0.1"]
    assert cli.main(["train", str(text), "-o", str(output), *changed]) == 0
    said = capsys.readouterr().out
    assert f"--lr 0.001 from here on, {_train.Settings().lr} until now" in said and "step 20/20" in said
    settings = _train.read_model(str(output))[1]["settings"]
    assert (settings["width"], settings["dropout"], settings["weight_decay"]) == (7, 0.2, 0.1)


def interrupt_at(monkeypatch, step, times=1):
    """As if Ctrl-C were pressed in that step."""
    original = fastlstm.clip_grad_norm
    calls = 0

    def clip(*arguments):
        nonlocal calls
        calls += 1
        for _ in range(times if calls == step else 0):
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(fastlstm, "clip_grad_norm", clip)


# --- what goes wrong --------------------------------------------------------------------------------------


def refused(capsys, *arguments, code=2):
    assert cli.main(["train", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    assert one_line(err) and err.startswith("fastlstm train: ")
    return err


def test_texts_that_will_not_do(tmp_path, capsys):
    output = tmp_path / "m"
    empty, short, binary = (tmp_path / name for name in ("empty", "short", "binary"))
    empty.write_bytes(b"")
    short.write_text("abc" * 100)
    binary.write_bytes(b"ab\xff" * 1000)
    assert "empty" in refused(capsys, empty, "-o", output)
    assert "every file is empty" in refused(capsys, empty, empty, "-o", output)
    err = refused(capsys, short, "-o", output)
    assert "too short" in err and "--batch 32" in err and "300 characters" in err
    assert "give more text, or a smaller --batch or --bptt" in err
    single = tmp_path / "single"
    single.write_text("a")
    assert "too short: 1 character, " in refused(capsys, single, "-o", output)
    single.unlink()
    assert "--bytes" in refused(capsys, binary, "-o", output)
    assert "missing" in refused(capsys, tmp_path / "missing", "-o", output)
    assert "Is a directory" in refused(capsys, tmp_path, "-o", output)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("length", range(1, 8))
def test_the_shortest_texts(length, tmp_path, capsys):
    """Down to two symbols to learn from and one for each of validation and test."""
    text = tmp_path / "text"
    text.write_text("abababab"[:length])
    code = 0 if length >= 4 else 2
    output = tmp_path / "m"
    assert cli.main(["train", str(text), "-o", str(output), *SMALL, "--batch", "1", "--bptt", "1"]) == code
    assert output.exists() == (code == 0)


def test_targets_that_will_not_do(text, tmp_path, capsys):
    assert "no folder" in refused(capsys, text, "-o", tmp_path / "none" / "m")
    assert "no folder" in refused(capsys, text, "-o", text / "m")
    assert "is a folder" in refused(capsys, text, "-o", tmp_path)
    assert "--plot" in refused(capsys, text, "-o", tmp_path / "m", "--plot", tmp_path / "none" / "x.png")
    assert "-o: wanted the name of a file, got ''" in refused(capsys, text, "-o", "")
    assert "--plot: wanted the name of a file" in refused(capsys, text, "-o", tmp_path / "m", "--plot", "")
    assert "is a device" in refused(capsys, text, "-o", os.devnull)
    if os.name == "posix" and os.geteuid() != 0:
        tmp_path.chmod(0o500)
        assert "cannot be written" in refused(capsys, text, "-o", tmp_path / "m")
        tmp_path.chmod(0o700)
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


def test_texts_are_never_overwritten(text, tmp_path, capsys):
    link, checkpoint = tmp_path / "link", tmp_path / "m.checkpoint"
    link.symlink_to(text)
    assert "-o " in refused(capsys, text, "-o", link)
    assert f"-o {text} is one of the texts" in refused(capsys, link, "-o", text)
    checkpoint.write_text(TEXT)
    err = refused(capsys, text, checkpoint, "-o", tmp_path / "m", "--resume")
    assert "its checkpoint" in err and "is one of the texts" in err
    assert "is one of the texts" in refused(capsys, f"{checkpoint}.lock", "-o", tmp_path / "m")
    assert text.read_text() == checkpoint.read_text() == TEXT and not (tmp_path / "m").exists()


@pytest.mark.skipif(os.name != "posix", reason="files of POSIX")
def test_nor_is_a_text_on_standard_input(text, monkeypatch):
    saved = os.dup(0)
    try:
        with text.open() as file:
            os.dup2(file.fileno(), 0)
        with pytest.raises(_train.UserError, match="is one of the texts"):
            _train._check_targets(["-"], str(text), f"{text}.checkpoint", None)
    finally:
        os.dup2(saved, 0)
        os.close(saved)


def test_a_picture_replaces_neither_text_nor_model(text, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for output, plot, said in (
        ("m.png", "m.png", "where the model is written"),
        ("m.png", "./m.png", "where the model is written"),
        ("m.png", "link.png", "where the model is written"),
        ("m", "checkpoint.png", "where its checkpoint is written"),
        ("m", "text.png", "is one of the texts"),
    ):
        (tmp_path / "text.png").write_text(TEXT)
        for link, target in (("link.png", "m.png"), ("checkpoint.png", "m.checkpoint")):
            (tmp_path / link).unlink(missing_ok=True)
            (tmp_path / link).symlink_to(tmp_path / target)
        plot = f"{tmp_path}/{plot}"
        err = refused(capsys, tmp_path / "text.png", "-o", tmp_path / output, "--plot", plot)
        assert f"--plot {plot}" in err and said in err


def test_plot_without_matplotlib_or_with_an_unknown_kind(text, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    for kind in ("docx", "pgf"):  # the other one needs LaTeX, which would show only at the end
        err = refused(capsys, text, "-o", tmp_path / "m", "--plot", tmp_path / f"x.{kind}")
        assert "--plot" in err and "png" in err
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    err = refused(capsys, text, "-o", tmp_path / "m", "--plot", tmp_path / "x.png")
    assert "--plot needs matplotlib" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--width", "0"], ["--layers", "0"], ["--steps", "0"], ["--batch", "-1"], ["--bptt", "0.5"],
        ["--lr", "0"], ["--lr", "nan"], ["--clip", "0"], ["--dropout", "1"], ["--cell", "elman"],
        ["--threads", "0"], ["--threads", "257"], ["--checkpoint-every", "0"], ["--seed", "-1"],
        ["--weight-decay", "-1"],
    ],
)  # fmt: skip
def test_options_that_will_not_do(arguments, text, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["train", str(text), "-o", str(tmp_path / "m"), *arguments])
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and one_line(err) and arguments[0] in err


def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(text, tmp_path, monkeypatch, capsys):
    output = tmp_path / "m"
    wanted = train(text, tmp_path / "whole")
    capsys.readouterr()
    original, calls = fastlstm.cross_entropy, 0

    def poisoned(logits, targets, **options):
        nonlocal calls
        calls += logits.shape[:2] == (11, 3)  # of a step, not of a validation
        loss, gradient = original(logits, targets, **options)
        return (math.nan if calls == 10 and not options else loss), gradient

    monkeypatch.setattr(fastlstm, "cross_entropy", poisoned)
    err = refused(capsys, text, "-o", output, *SMALL, "--checkpoint-every", "4", code=1)
    assert "step 10" in err and "nan" in err and "still holds step 8" in err
    assert "try again with --resume --lr 0.001" in err
    monkeypatch.undo()
    assert not output.exists() and saved_step(f"{output}.checkpoint") == 8
    kept = Path(f"{output}.checkpoint").read_bytes()
    assert train(text, output, "--resume") == wanted
    Path(f"{output}.checkpoint").write_bytes(kept)
    train(text, output, "--resume", "--lr", "0.001")  # as advised


def test_a_learning_rate_out_of_all_measure(text, tmp_path, capsys):
    """The beginning alone is not kept: the same command with a smaller rate shall do."""
    wild = ["--lr", "1e38", "--warmup", "0", "--checkpoint-every", "1"]
    err = refused(capsys, text, "-o", tmp_path / "m", *SMALL, *wild, code=1)
    assert "try again with a smaller --lr, say --lr 0.01" in err
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]
    train(text, tmp_path / "m", *wild, "--lr", "0.01")


def test_weights_are_kept_only_if_a_step_can_be_taken_from_them(text, tmp_path, capsys):
    wild = ["--lr", "1e38", "--warmup", "20", "--checkpoint-every", "1"]
    err = refused(capsys, text, "-o", tmp_path / "m", *SMALL, *wild, code=1)
    assert "still holds step" in err
    arrays, _, _ = _train.read_checkpoint(str(tmp_path / "m.checkpoint"))
    assert all(np.isfinite(v).all() for v in arrays.values())


def full_disk(monkeypatch, after):
    """As if there were no room any more after so many writings."""
    original, writings = os.fsync, 0

    def fsync(file):
        nonlocal writings
        writings += 1
        if writings > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(file)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk(text, tmp_path, monkeypatch, capsys):
    output = tmp_path / "m"
    every = ["-o", output, *SMALL, "--checkpoint-every", "4"]
    full_disk(monkeypatch, after=0)
    err = refused(capsys, text, *every)
    assert err == f"fastlstm train: {output}.checkpoint: {os.strerror(errno.ENOSPC)}\n"
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]
    monkeypatch.undo()
    full_disk(monkeypatch, after=3)
    err = refused(capsys, text, *every)
    assert f"{output}.checkpoint: " in err and "it still holds step 8, --resume goes on" in err
    monkeypatch.undo()
    full_disk(monkeypatch, after=8)
    assert refused(capsys, text, *every, "--resume").startswith(f"fastlstm train: {output}: ")
    monkeypatch.undo()
    train(text, output, "--resume")


def test_runs_that_are_there_already(text, tmp_path, monkeypatch, capsys):
    output = tmp_path / "m"
    interrupt_at(monkeypatch, 13)
    train(text, output, code=130)
    monkeypatch.undo()
    capsys.readouterr()
    assert "--resume" in refused(capsys, text, "-o", output, *SMALL)
    other = tmp_path / "other"
    other.write_text(TEXT + "x")
    assert "text is not the one" in refused(capsys, other, "-o", output, "--resume")
    train(text, output, "--resume")
    capsys.readouterr()
    assert "that run has ended" in refused(capsys, text, "-o", output, *SMALL, "--resume")
    train(text, output)  # afresh
    lines = capsys.readouterr().out.splitlines()
    warned = lines.index(f"{output} is there already: it will be replaced when the run ends")
    assert warned < next(k for k, line in enumerate(lines) if line.startswith("step "))


def test_two_runs_at_once(text, tmp_path, monkeypatch, capsys):
    """The second is refused, and the first goes on; what a killed run leaves is in nobody's way."""
    pytest.importorskip("fcntl")
    (tmp_path / "m.checkpoint.lock").write_bytes(b"")
    original, errors = _train.learn, []

    def learn(*arguments):
        errors.append(refused(capsys, text, "-o", tmp_path / "m", "--resume"))
        original(*arguments)

    monkeypatch.setattr(_train, "learn", learn)
    train(text, tmp_path / "m")
    assert "another run is writing" in errors[0] and "m.checkpoint" in errors[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "text.txt"]


def test_checkpoints_that_are_damaged(text, tmp_path, monkeypatch, capsys):
    output, checkpoint = tmp_path / "m", tmp_path / "m.checkpoint"
    interrupt_at(monkeypatch, 13)
    train(text, output, code=130)
    monkeypatch.undo()
    capsys.readouterr()
    good = checkpoint.read_bytes()
    arrays, metadata = _files.read_tensors(str(checkpoint))
    facts = json.loads(metadata[_train.CHECKPOINT_KEY])

    def written(arrays, facts):
        text = json.dumps(facts)
        metadata = {_train.CHECKPOINT_KEY: text, _train.DIGEST_KEY: _train.digest(text, arrays)}
        _files.write_tensors(str(checkpoint), arrays, metadata)

    def flipped(at):
        data = bytearray(good)
        data[at] ^= 1
        checkpoint.write_bytes(data)

    for damage in (
        lambda: checkpoint.write_bytes(good[:-5]),
        lambda: checkpoint.write_bytes(b""),
        lambda: checkpoint.write_text(TEXT),
        lambda: _files.write_tensors(str(checkpoint), arrays, {}),
        lambda: written(arrays, []),
        lambda: flipped(-1),
        lambda: flipped(good.index(b"step") + 9),
        lambda: _files.write_tensors(str(checkpoint), arrays, metadata | {_train.DIGEST_KEY: ""}),
        lambda: written(arrays, {k: v for k, v in facts.items() if k != "step"}),
        lambda: written(arrays, facts | {"settings": {"width": 0}}),
        lambda: written(arrays, facts | {"settings": {"what": 1}}),
        lambda: written(arrays, facts | {"optimizer": {}}),
        lambda: written({k: v for k, v in arrays.items() if "weight_hh" not in k}, facts),
    ):
        damage()
        err = refused(capsys, text, "-o", output, "--resume")
        assert f"{checkpoint} is damaged" in err and err.endswith("; remove it to begin anew\n")
        assert "Error" not in err
    written(arrays, facts | {"version": 99})
    assert "has version 99 of fastlstm train, wanted 1" in refused(capsys, text, "-o", output, "--resume")
    checkpoint.write_bytes(good)
    train(text, output, "--resume")


def test_models_that_will_not_do(text, tmp_path, capsys):
    output = tmp_path / "m"
    train(text, output)
    bare, nameless, pickle = (tmp_path / name for name in ("bare", "nameless", "pickle"))
    fastlstm.LSTM(3, 4).save(bare)
    _files.write_tensors(str(nameless), fastlstm.GRU(3, 4).state_dict(), {})
    pickle.write_bytes(b"PK\x03\x04" + bytes(100))
    checkpoint = tmp_path / "other.checkpoint"
    _train.Run(_train.Settings(width=7), _train.read_text([str(text)], False)).save(str(checkpoint))
    capsys.readouterr()
    for arguments, blamed in (
        ([tmp_path / "missing"], "missing"),
        ([text], f"{text} is no safetensors file\n"),
        ([bare], "was not written by fastlstm train"),
        ([nameless], "was not written by fastlstm train"),
        ([pickle], "a PyTorch pickle: write the state_dict with safetensors.torch.save_file"),
        ([checkpoint], "is the checkpoint of a run that has not ended: fastlstm train --resume"),
        ([output, "--prompt", "Ω"], "'Ω'"),
        ([output, "--prompt", os.fsdecode(b"a\xff")], "--prompt is no UTF-8"),
    ):
        assert cli.main(["generate", *map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert not out and one_line(err) and blamed in err
    for arguments in (["--length", "-1"], ["--temperature", "-1"], ["--top-k", "0"], ["--top-p", "0"]):
        with pytest.raises(SystemExit):
            cli.main(["generate", str(output), *arguments])
        assert arguments[0] in capsys.readouterr().err


# --- files ------------------------------------------------------------------------------------------------


def test_files_of_tensors_are_the_same_and_safetensors(tmp_path):
    from safetensors.numpy import load_file

    rng = np.random.default_rng(0)
    arrays = {
        "b": rng.normal(size=(3, 5)).astype(np.float32), "a": rng.normal(size=7), "c": np.zeros((0, 2)),
        "big-endian": np.arange(3, dtype=">f4"), "strided": np.arange(12.0).reshape(3, 4).T,
    }  # fmt: skip
    path = tmp_path / "x"
    metadata = {"one": "é\n", "two": "2"}
    _files.write_tensors(str(path), arrays, metadata)
    loaded, said = _files.read_tensors(str(path))
    assert said == metadata and list(loaded) == sorted(arrays)
    assert all(np.array_equal(loaded[name], v) for name, v in arrays.items())
    assert load_file(path).keys() == arrays.keys()
    written = path.read_bytes()
    _files.write_tensors(str(path), dict(reversed(arrays.items())), metadata)
    assert path.read_bytes() == written


def test_many_symbols_are_judged_in_small_stretches(monkeypatch):
    """Memory stays bounded; the figure is the same but for the order of its sum."""
    model = fastlstm.Sequential(fastlstm.Embedding(50, 4), fastlstm.GRU(4, 8), fastlstm.Linear(8, 50))
    codes = np.random.default_rng(0).integers(0, 50, 5000)
    text = _train.Text(codes, 50, "", "", 1000, 3500)
    wanted = _train.bits(model, text, 1000, 4500)
    shapes = []
    inner = fastlstm.cross_entropy

    def seen(logits, *given, **options):
        shapes.append(logits.size)
        return inner(logits, *given, **options)

    monkeypatch.setattr(fastlstm, "cross_entropy", seen)
    monkeypatch.setattr(_train, "LOGITS", 1000)
    assert _train.bits(model, text, 1000, 4500) == pytest.approx(wanted, rel=1e-12)
    assert max(shapes) <= 1000 and len(shapes) > 100
