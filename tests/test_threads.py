"""Threads: any number may call one layer, results never depend on them, and nothing waits for ever."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import fastlstm
from fastlstm import _core

CELLS = ["LSTM", "GRU", "RNN", "GatedRNN"]


@pytest.fixture(autouse=True)
def as_it_was():
    before = fastlstm.get_num_threads()
    yield
    _core.force_split(None)
    _core.set_spin_us(20)
    fastlstm.set_num_threads(before)


def run_all(targets):
    """Runs them at once; the first exception of any is raised here."""
    barrier, wrong = threading.Barrier(len(targets)), []

    def run(target):
        try:
            barrier.wait(30)
            target()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=run, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread hangs"
    if wrong:
        raise wrong[0]


def flat(result):
    output, state = result
    return [output, *(state if isinstance(state, tuple) else (state,))]


def numbers(steps=12, batch=7, inputs=20, seed=0):
    return np.random.default_rng(seed).normal(size=(steps, batch, inputs)).astype("f4")


@pytest.mark.parametrize("split", [None, "none", "batch", "units"])
@pytest.mark.parametrize("name", CELLS)
def test_eight_threads_on_one_layer(name, split):
    layer = getattr(fastlstm, name)(20, 150, 2, seed=1)
    inputs = [numbers(seed=k) for k in range(8)]
    fastlstm.set_num_threads(1)
    wanted = [[a.tobytes() for a in flat(layer(x))] for x in inputs]
    fastlstm.set_num_threads(3)
    _core.force_split(split)

    def call(k):
        for _ in range(10):
            assert [a.tobytes() for a in flat(layer(inputs[k]))] == wanted[k]
            assert split is None or _core.last_split() == split

    run_all([lambda k=k: call(k) for k in range(8)])


@pytest.mark.parametrize("split", ["none", "batch", "units"])
def test_weights_that_change_meanwhile_are_never_torn(split):
    layers = [fastlstm.LSTM(20, 130, 2, seed=s) for s in (1, 2)]
    sets = [layer.state_dict() for layer in layers]
    x = numbers()
    fastlstm.set_num_threads(2)
    wanted = {layer(x)[0].tobytes() for layer in layers}
    assert len(wanted) == 2
    _core.force_split(split)
    layer, seen, done = layers[0], set(), threading.Event()

    def call():
        try:
            for _ in range(60):
                bits = layer(x)[0].tobytes()
                assert bits in wanted
                seen.add(bits)
        finally:
            done.set()

    def change():
        k = 0
        while not done.is_set():
            k += 1
            layer.load_state_dict(sets[k % 2])

    run_all([call, call, change])
    assert seen == wanted


def test_a_long_call_lets_other_threads_run():
    """The GIL is released: another Python thread counts on while a call lasts."""
    layer = fastlstm.LSTM(256, 512, seed=1)
    x = numbers(2000, 4, 256)
    fastlstm.set_num_threads(1)  # a core is left where there are two
    begun, ended, counted = threading.Event(), threading.Event(), []
    interval = sys.getswitchinterval()

    def count():
        begun.wait(30)
        n = 0
        while not ended.is_set():
            n += 1
            time.sleep(0)  # gives the GIL away itself
        counted.append(n)

    thread = threading.Thread(target=count)
    thread.start()
    sys.setswitchinterval(1000)  # nobody is made to give the GIL away: the call must do so itself
    try:
        begun.set()
        layer(x)
        ended.set()
    finally:
        sys.setswitchinterval(interval)
        ended.set()
    thread.join(30)
    assert counted and counted[0] > 100


def test_a_short_call_keeps_the_gil():
    """Otherwise it might wait for milliseconds to get it back."""
    layer = fastlstm.RNN(4, 8, seed=1)
    stream, x = layer.stream(1), numbers(1, 1, 4)[0]
    out = stream.step(x)
    counted, done = [0], threading.Event()

    def count():
        while not done.is_set():
            counted[0] += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=count)
    try:
        sys.setswitchinterval(1000)  # before the thread waits for the first time, or it might ask once more
        thread.start()
        before = counted[0]
        for _ in range(200):
            stream.step(x, out=out)
            layer(x[:, None])
        assert counted[0] == before
    finally:
        sys.setswitchinterval(interval)
        done.set()
        thread.join(30)


def test_concurrent_steps_of_one_stream_are_refused():
    """One stream is for one thread at a time: a second one raises, and changes nothing."""
    layer = fastlstm.LSTM(256, 700, seed=1)
    stream, x = layer.stream(2), numbers(1, 2, 256)[0]
    ran, refused = [], []

    def step():
        for _ in range(300):
            try:
                stream.step(x)
                ran.append(1)
            except RuntimeError as error:
                assert "stream" in str(error)
                refused.append(1)

    fastlstm.set_num_threads(1)
    run_all([step] * 4)
    assert len(ran) + len(refused) == 1200 and ran
    if os.process_cpu_count() > 1 if hasattr(os, "process_cpu_count") else len(os.sched_getaffinity(0)) > 1:
        assert refused
    twin = layer.stream(2)
    for _ in ran:
        twin.step(x)
    for a, b in zip(stream.state, twin.state, strict=True):
        assert a.tobytes() == b.tobytes()


def test_streams_in_many_threads():
    layer = fastlstm.GRU(20, 64, 2, seed=1)
    inputs = [numbers(50, 3, seed=k) for k in range(8)]
    wanted = [layer(x)[0] for x in inputs]

    def run(k):
        stream = layer.stream(3)
        for x, y in zip(inputs[k], wanted[k], strict=True):
            assert stream.step(x).tobytes() == y.tobytes()

    run_all([lambda k=k: run(k) for k in range(8)])


# --- how many -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 7, 256])
def test_any_number_gives_the_same(n):
    layer, x = fastlstm.LSTM(20, 150, seed=1), numbers(6, 3)
    fastlstm.set_num_threads(1)
    wanted = layer(x)[0].tobytes()
    fastlstm.set_num_threads(n)
    assert fastlstm.get_num_threads() == n
    for split in ("batch", "units") if n < 100 else ("batch",):
        for spin in (0, 20, 1000):
            _core.set_spin_us(spin)
            _core.force_split(split)
            assert layer(x)[0].tobytes() == wanted and _core.last_split() == split


@pytest.mark.parametrize("n", [0, -1, 257, 10**30, 1.5, "2", None, True])
def test_a_wrong_number_is_refused(n):
    before = fastlstm.get_num_threads()
    with pytest.raises((TypeError, ValueError), match=r"\bn\b"):
        fastlstm.set_num_threads(n)
    assert fastlstm.get_num_threads() == before


def child(code, cores=None, **environment):
    """What the code prints in a fresh process."""
    environment = {k: v for k, v in os.environ.items() if k != "FASTLSTM_NUM_THREADS"} | environment
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120,
        preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip


ASK = "import fastlstm; print(fastlstm.get_num_threads())"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity to set on this system")
def test_affinity_is_respected():
    mine = os.sched_getaffinity(0)
    assert child(ASK, {min(mine)}).stdout.strip() == "1"
    assert 1 <= int(child(ASK, mine).stdout) <= len(mine)


def test_the_environment_variable():
    for n in ("1", "3", "256"):
        assert child(ASK, FASTLSTM_NUM_THREADS=n).stdout.strip() == n
    assert int(child(ASK, FASTLSTM_NUM_THREADS="").stdout) >= 1
    for n in ("0", "-2", "257", "two", "2x", "1.5", "99999999999999999999"):
        done = child(ASK, FASTLSTM_NUM_THREADS=n)
        assert done.returncode != 0 and "FASTLSTM_NUM_THREADS" in done.stderr, n


def test_an_unknown_path_is_refused():
    for path in ("sse9", "AVX2 ", "neon" if "avx2" in _core.isas() else "avx2"):
        done = child(ASK, FASTLSTM_ISA=path)
        assert done.returncode != 0 and "FASTLSTM_ISA" in done.stderr and path in done.stderr


def test_small_calls_stay_in_the_calling_thread():
    fastlstm.set_num_threads(2)
    layer = fastlstm.LSTM(8, 8, seed=1)
    layer(numbers(1, 1, 8))
    assert _core.last_split() == "none"
    fastlstm.LSTM(64, 256, seed=1)(numbers(50, 64, 64))
    assert _core.last_split() == "batch"
    fastlstm.LSTM(64, 512, seed=1)(numbers(20, 1, 64))
    assert _core.last_split() == "units"


# --- fork ---------------------------------------------------------------------------------------------------


def in_the_child(layer, x, split, results):
    _core.force_split(split)
    results.put([layer(x)[0].tobytes() for _ in range(5)])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("split", ["batch", "units"])
def test_fork_after_a_threaded_call(split):
    fastlstm.set_num_threads(3)
    _core.force_split(split)
    layer, x = fastlstm.LSTM(20, 150, seed=1), numbers()
    wanted = layer(x)[0].tobytes()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=in_the_child, args=(layer, x, split, results)) for _ in range(3)]
    for process in children:
        process.start()
    try:
        assert layer(x)[0].tobytes() == wanted
        for _ in children:
            assert results.get(timeout=60) == [wanted] * 5
        for process in children:
            process.join(30)
            assert process.exitcode == 0
    finally:
        for process in children:
            process.kill()
