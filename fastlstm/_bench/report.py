"""What a run leaves behind: JSON, Markdown tables, an SVG chart; and on what machine it ran, what code."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from . import peers
from .grid import PRECISIONS, Row
from .merge import NOT_INSTALLED

Result = Mapping[str, Any]

# --- machine and code ---------------------------------------------------------------------------------------


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def load() -> float | None:
    """The load average of the last minute: above the number of threads, something else was running."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def machine() -> dict[str, Any]:
    """The CPU's name, cores (of the machine, and used here), caches and the operating system."""
    models = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (kind := _read(index / "type")) != "Instruction":
            caches[f"L{_read(index / 'level')}{'d' if kind == 'Data' else ''}"] = _read(index / "size")
    return {
        "cpu": models[0].split(":", 1)[1].strip() if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "cores_used": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
        "caches": caches,
        "system": platform.platform(),
        "load_average_before": load(),
    }


def versions(core: Any) -> dict[str, str]:
    return {"python": platform.python_version(), **peers.versions(), "compiler": core.compiler()}


def source(root: Path) -> dict[str, Any]:
    """The commit of the source tree that runs; an installed wheel has its version alone."""
    if not (root / ".git").exists():
        return {"commit": None, "changed": None}

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    return {"commit": git("rev-parse", "HEAD") or None, "changed": changed}


def c_bench(command: str, row: Row) -> float:
    """Median of what five runs of `command I H T` print: nanoseconds a step through the C API."""
    args = [*shlex.split(command), str(row.inputs), str(row.units), str(row.steps)]
    runs = [subprocess.run(args, capture_output=True, text=True, check=True) for _ in range(5)]
    return statistics.median(float(run.stdout.split()[0]) for run in runs)


def write(result: Result, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmark.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "benchmark.md").write_text(markdown(result), encoding="utf-8")
    (out / "benchmark.svg").write_text(chart(result), encoding="utf-8")


# --- text ---------------------------------------------------------------------------------------------------


def line(row: Result) -> str:
    """A row as it is printed while the program runs: what it says, and below it the other engines' times."""
    if "error" in row:
        return f"{row['name']:24} ERROR {row['error']}"
    if "engines" not in row:
        reasons = (f"{name}: {reason}" for name, reason in row.get("cannot", {}).items())
        return f"{row['name']:24} not measured; {'; '.join(reasons)}"
    ratio = f"; {row['speedup']:.2f}× as fast as {row['best_peer']}" if "speedup" in row else ""
    rate = f", {row['gflops']:.1f} GFLOP/s, {row['peak_percent']:.0f} % of peak" if "gflops" in row else ""
    others = {name: e["median_us"] for name, e in row["engines"].items() if name != "fastlstm"}
    times = "  ".join(f"{name} {_time(us)}" for name, us in others.items())
    refused = {name: why for name, why in row.get("cannot", {}).items() if why != NOT_INSTALLED}
    cannot = "".join(f"  {name}: {why};" for name, why in refused.items())
    first = f"{row['name']:24} {_time(row['us']):>6} µs{rate}{ratio}"
    return "\n    ".join(filter(None, (first, times + cannot + _left_out(row))))


def _left_out(row: Result) -> str:
    return "".join(f"; LEFT OUT {text}" for text in row.get("left_out", {}).values())


def _time(us: float) -> str:
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 100 else f"{us:.0f}"


def _headline(result: Result) -> str:
    s = result["settings"]
    cores = "1 core" if s["threads"] == 1 else f"{s['threads']} cores"
    return f"{result['machine']['cpu']}, {cores}, {s['isa']}, float32, {result['date'][:10]}"


TITLES = {
    "lstm": "LSTM",
    "gru": "GRU",
    "rnn": "RNN (tanh)",
    "audio": "LSTM, I = 1, 48,000 steps in one call: nanoseconds a step",
    "ragged": "LSTM, I = H, 32 sequences of random lengths 1..100",
    "odd": "LSTM, odd sizes, I = H, 100 steps, 1 and 32 sequences",
    "train lstm": "Training an LSTM: forward, backward, all gradients",
    "train gru": "Training a GRU",
    "train rnn": "Training an RNN (tanh)",
    "train ragged": "Training an LSTM, I = H, 32 sequences of random lengths 1..1000",
}
SHAPED = ("lstm", "gru", "rnn", "train lstm", "train gru", "train rnn")  # their rows are named by I, H, T, B


def _markdown_row(row: Result, engines: Sequence[str]) -> list[str]:
    name = row["name"].removeprefix(row["table"]).strip()
    if "error" in row:
        return [name, row["error"].replace("|", "/"), *[""] * (len(engines) + 4)]
    scale = 1000 / row["T"] if row["table"] == "audio" else 1
    times = [_time(row["engines"][e]["median_us"] * scale) if e in row["engines"] else "" for e in engines]
    ratio = f"**{row['speedup']:.2f}** ({row['best_peer']})" if "speedup" in row else ""
    roof = f"{row['roof_percent']:.0f} ({row['weights_in']})" if "roof_percent" in row else ""
    notes = {"against_dense": "%.2f × dense", "against_48": "%.2f × H 48", "c_api_ns_per_step": "C: %.0f ns"}
    notes["over_padded"] = "%.2f × as fast as torch padded"
    note = ", ".join(text % row[key] for key, text in notes.items() if key in row)
    note += _left_out(row).replace("|", "/")
    return [name, *times, ratio, f"{row['gflops']:.1f}", f"{row['peak_percent']:.0f}", roof, note]


def markdown(result: Result) -> str:
    """The tables, with what a reader needs to judge them."""
    roof, s = result["roofline"], result["settings"]
    reads = ", ".join(f"{v / 1e9:.0f} GB/s from {k}" for k, v in roof["read_bytes_per_second"].items())
    commit = f"commit {result['source']['commit']}" if result["source"]["commit"] else "an installed wheel"
    out = [
        f"# fastlstm benchmark: {_headline(result)}",
        "",
        f"A core's peak is {roof['peak_flops'] / 1e9:.0f} GFLOP/s; it reads {reads}.",
        f"Measured: {commit}{', with changes' if result['source']['changed'] else ''};",
        ", ".join(f"{name} {version}" for name, version in result["versions"].items()) + ".",
        "",
        f"Microseconds a call: medians of batches in turns, outputs checked first (to {s['tolerance']:g};",
        f"in training outputs and gradients, to {s['training_tolerance']:g} of each array's largest entry).",
        "The speed-up is over the best of torch, onnxruntime and OpenVINO. For one step `fastlstm` is",
        "`Stream.step(x, out=out)`, `fastlstm call` is `layer(x, state)`. GFLOP/s counts the products alone,",
        "three times those of the forward pass in training.",
        "The roof of one sequence is the slower of multiplying and reading the weights from the cache named.",
        "",
        *(f"- {name}: {how}" for name, how in s["how"].items()),
        "",
    ]
    for table, title in TITLES.items():
        rows = [row for row in result["rows"] if row["table"] == table]
        if rows:
            engines = list(dict.fromkeys(name for row in rows for name in row.get("engines", ())))
            head = "I, H, T, B" if table in SHAPED else "H"
            heads = [head, *engines, "speed-up", "GFLOP/s", "% of peak", "% of roof", ""]
            cells = [heads, ["---"] * len(heads), *(_markdown_row(row, engines) for row in rows)]
            out += [f"## {title}", "", *(f"| {' | '.join(line)} |" for line in cells), ""]
    return "\n".join(out)


# --- chart --------------------------------------------------------------------------------------------------

COLOURS = {
    "torch": "#e0542f", "torch padded": "#f0a585", "onnxruntime": "#2f81d6", "openvino": "#9061c9",
    "numpy": "#9aa1a9",
}  # fmt: skip
HEADS = {
    "lstm": "LSTM", "gru": "GRU", "rnn": "RNN", "audio": "LSTM, I = 1: H", "train lstm": "LSTM training",
    "train gru": "GRU training", "train rnn": "RNN training", "train ragged": "ragged training: H",
}  # fmt: skip
WIDTH, LEFT, RIGHT, TOP, BAR, GAP = 860, 138, 58, 76, 4, 7
STYLE = """<style>
text{fill:#24292f;font-size:11px}.title{font-size:15px}.title,.bold{font-weight:600}
.faint{fill:#656d76;font-size:10.5px}
.tick{stroke:#8c959f;stroke-opacity:.3}.one{stroke:#24292f;stroke-width:1.5}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.faint{fill:#9198a1}.one{stroke:#e6edf3}}
</style>"""


def charted(rows: Iterable[Result]) -> list[Result]:
    """The rows of the chart: LSTM, the core of GRU and RNN, audio, training; where a peer was measured."""
    shown = [row for row in rows if "error" not in row and (row["core"] or row["cell"] == "lstm")]
    return [row for row in shown if row["table"] in HEADS and row["engines"].keys() & COLOURS.keys()]


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def chart(result: Result) -> str:
    """An SVG of bars on a log axis: how many times longer than fastlstm each peer takes, a group a row."""
    rows = charted(result["rows"])
    ratios = {}
    for row in rows:
        for name in row["engines"].keys() & COLOURS.keys():
            ratios[row["name"], name] = row["engines"][name]["median_us"] / row["us"]
    low, high = math.log10(min([0.8, *ratios.values()])), math.log10(max([2.0, *ratios.values()]) * 1.05)

    def at(ratio: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(ratio) - low) / (high - low)

    y, table, body = TOP + 8, "", []
    for row in rows:
        if row["table"] != table:
            table = row["table"]
            body.append(_text(LEFT - 8, y + 17, HEADS[table], "bold", "end"))
            y += 25
        names = [name for name in COLOURS if name in row["engines"]]
        middle = y + len(names) * BAR / 2 + 4
        label = row["name"].removeprefix(table).strip().replace(",", ", ")
        body.append(_text(LEFT - 8, middle, label, "", "end"))
        for name in names:
            left, right = sorted((at(1), at(ratios[row["name"], name])))
            times = f"{name}: {_time(row['engines'][name]['median_us'])} µs, fastlstm: {_time(row['us'])} µs"
            body.append(f'<rect x="{left:.1f}" y="{y}" width="{max(right - left, 0.5):.1f}" height="{BAR}"')
            body.append(f' fill="{COLOURS[name]}"><title>{times}</title></rect>')
            y += BAR
        if best := row.get("speedup"):
            body.append(_text(WIDTH - 8, middle, f"{best:.{2 if best < 10 else 1}f}×", "bold", "end"))
        y += GAP
    grid = []
    for t in (m * 10.0**e for e in range(-3, 5) for m in (1, 2, 5)):
        if low <= math.log10(t) <= high:
            kind = "one" if t == 1 else "tick"
            grid.append(f'<line x1="{at(t):.1f}" x2="{at(t):.1f}" y1="{TOP}" y2="{y}" class="{kind}"/>')
            grid.append(_text(at(t), TOP - 5, f"{t:g}×", "faint", "middle"))
    legend, x = [], LEFT
    for name in (name for name in COLOURS if any(measured == name for _, measured in ratios)):
        legend.append(f'<rect x="{x}" y="45" width="10" height="10" fill="{COLOURS[name]}"/>')
        legend.append(_text(x + 15, 54, name))
        x += 40 + 7 * len(name)
    size = f'viewBox="0 0 {WIDTH} {y + 12}" width="{WIDTH}" height="{y + 12}"'
    about = f"{_headline(result)}; rows: I, H, T, B; a longer bar is a larger lead"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="system-ui, sans-serif">',
        "<title>Time of each peer over the time of fastlstm</title>", STYLE,
        _text(LEFT, 20, "How many times longer each takes than fastlstm", "title"),
        _text(LEFT, 36, about, "faint"), _text(WIDTH - 8, 54, "best peer", "faint", "end"),
        *legend, *grid, *body, "</svg>", "",
    ])  # fmt: skip
