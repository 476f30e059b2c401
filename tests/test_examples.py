"""The examples run, on their real data, and their baselines are what they say."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="no examples beside the tests")


@pytest.fixture(scope="module")
def sunspots():
    spec = importlib.util.spec_from_file_location("sunspots", EXAMPLES / "sunspots.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sunspots_runs(tmp_path):
    pytest.importorskip("statsmodels", reason="statsmodels has the series")
    drawn = importlib.util.find_spec("matplotlib") is not None
    picture = tmp_path / "sunspots.svg"
    plot = ["--plot", str(picture)] if drawn else []
    command = [sys.executable, str(EXAMPLES / "sunspots.py"), "--steps", "30", "--networks", "2", *plot]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    for name in ("persistence", "mean", r"linear AR\(\d+\)", "LSTM"):
        figures = re.search(rf"^{name} +([\d.]+) +([\d.]+) +([\d.]+)$", done.stdout, flags=re.M)
        assert figures and all(1 < float(v) < 100 for v in figures.groups()), name
    assert picture.exists() == drawn


def test_sunspots_refuses_before_it_trains(sunspots, tmp_path, monkeypatch, capsys):
    cases = [(["--seed", "-1"], "--seed must be"), (["--steps", "0"], "--steps")]
    if importlib.util.find_spec("matplotlib") is not None:
        cases += [
            (["--plot", str(tmp_path / "x.docx")], "ends in one of"),
            (["--plot", str(tmp_path / "x")], "ends in one of"),
            (["--plot", ""], "ends in one of"),
            (["--plot", str(tmp_path / "none" / "x.png")], "No such file"),
        ]
    monkeypatch.setattr(sunspots, "load", lambda: pytest.fail("it went on"))
    for arguments, said in cases:
        monkeypatch.setattr(sys, "argv", ["sunspots.py", *arguments])
        with pytest.raises(SystemExit) as exit_:
            sunspots.main()
        assert exit_.value.code == 2 and said in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    monkeypatch.setattr(sys, "argv", ["sunspots.py", "--plot", str(tmp_path / "x.png")])
    with pytest.raises(SystemExit):
        sunspots.main()
    assert "--plot needs matplotlib" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_sunspots_without_statsmodels_says_so():
    code = f"import sys, runpy; sys.modules['statsmodels.datasets'] = sys.modules['statsmodels'] = None; \
sys.argv = ['x']; runpy.run_path({str(EXAMPLES / 'sunspots.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 1 and "needs statsmodels" in done.stderr and "Traceback" not in done.stderr


def test_linear_autoregression_finds_its_weights(sunspots):
    rng = np.random.default_rng(0)
    series = [0.5, -0.2]
    for _ in range(200):
        series.append(0.3 + 0.6 * series[-1] - 0.5 * series[-2] + 1e-3 * rng.normal())
    array = np.array(series)
    learn = np.arange(len(array)) < 150
    forecast = sunspots.autoregression(array, learn, 2)
    assert np.isnan(forecast[:2]).all()
    assert sunspots.rmse(forecast[150:], array[150:]) < 2e-3
    rows = sunspots.lagged(np.arange(5.0), 2)
    assert np.array_equal(rows[2:], [[1, 1, 0], [1, 2, 1], [1, 3, 2]])


def test_forecasts_never_see_what_they_forecast(sunspots):
    """Changing a year changes no forecast up to it."""
    rng = np.random.default_rng(1)
    series = rng.normal(size=150)
    changed = series.copy()
    changed[120] += 5
    learn = np.arange(150) < 100
    choose = (np.arange(150) >= 100) & (np.arange(150) < 110)
    for forecast in (
        lambda x: sunspots.autoregression(x, learn, 3)[3:],
        lambda x: sunspots.train_network(x, learn, choose, 3, 5, 0)[0][2:],
    ):
        before, after = forecast(series), forecast(changed)
        assert np.array_equal(before[:118], after[:118]) and not np.array_equal(before[118:], after[118:])
