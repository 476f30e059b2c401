"""What a run leaves behind: JSON, Markdown tables, SVG charts; and on what machine it ran, what code."""

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
    (out / "roofline.svg").write_text(roofline(result), encoding="utf-8")


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
    "gated_rnn": "Gated RNN",
    "audio": "LSTM, I = 1, 48,000 steps in one call: nanoseconds a step",
    "ragged": "I = H, 32 sequences of random lengths 1..100; an LSTM where no cell is named",
    "odd": "LSTM, odd sizes, I = H, 100 steps, 1 and 32 sequences",
    "train lstm": "Training an LSTM: forward, backward, all gradients",
    "train gru": "Training a GRU",
    "train rnn": "Training an RNN (tanh)",
    "train ragged": "Training an LSTM, I = H, 32 sequences of random lengths 1..1000",
    "train gated_rnn": "Training a gated RNN",
    "float64": "float64",
    "train float64": "Training in float64",
    "precision": "bfloat16 and int8, beside float32",
    "pool": "One step of each of 1000 sessions, LSTM",
    "cold": "Cold start: milliseconds from the start of a process to the first step of an LSTM from a file",
}
HEADINGS = {"audio": "H", "ragged": "H", "odd": "H", "train ragged": "H", "pool": "I, H x layers", "cold": ""}
OUR_OWN = "fastlstm"


def _cell(row: Result, engine: str) -> str:
    """An engine's time, in µs, audio's in ns a step, a cold start's in ms; or why there is none."""
    if engine in row.get("engines", ()):
        table = row.get("table")
        scale = 1000 / row["T"] if table == "audio" else 1e-3 if table == "cold" else 1
        e = row["engines"][engine]
        # Measured in another environment: what it would be beside the time of ours that stands here.
        return _time((row["us"] * e["ratio"] if "fastlstm_us" in e else e["median_us"]) * scale)
    if engine in row.get("left_out", ()):
        return "failed"
    return str(row.get("cannot", {}).get(engine, "")).replace("|", "/")


def _notes(row: Result) -> str:
    notes = {
        "against_dense": "%.2f × dense", "against_48": "%.2f × H 48", "c_api_ns_per_step": "C: %.0f ns",
        "over_padded": "%.2f × as fast as torch padded", "over_streams": "%.2f × as fast as streams",
        "of_batch_rate": "%.2f of the batch's rate",
    }  # fmt: skip
    note = ", ".join(text % row[key] for key, text in notes.items() if key in row)
    return note + _left_out(row).replace("|", "/")


def _name(row: Result) -> str:
    return str(row["name"]).removeprefix(row["table"]).strip()


def _engines(rows: Iterable[Result], refused: bool = False) -> list[str]:
    """The columns of a table: ours, then every peer that was measured in any of its rows, or failed; with
    `refused`, also those that cannot."""
    names: dict[str, None] = {OUR_OWN: None}
    for row in rows:
        names |= dict.fromkeys((*row.get("engines", ()), *row.get("left_out", ())))
        names |= dict.fromkeys(row.get("cannot", ()) if refused else ())
    order = [OUR_OWN, *peers.PEERS]
    return sorted(names, key=lambda name: order.index(name.split()[0]))  # stable


def _without(rows: Iterable[Result]) -> list[str]:
    """Below a table: who has no column in it, and why. Who is not installed is said once for all tables."""
    rows = list(rows)
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        for name, why in row.get("cannot", {}).items():
            if why != NOT_INSTALLED and name not in _engines(rows):
                reasons.setdefault(name, {})[why] = None
    said: dict[str, list[str]] = {}
    for name, whys in reasons.items():
        said.setdefault(", ".join(whys), []).append(name)
    text = "; ".join(f"{', '.join(names)}: {why}" for why, names in said.items())
    return [f"Without {text}.", ""] if text else []


def _table(rows: Sequence[Result]) -> list[list[str]]:
    """Times, the ratio to the best peer and what they are of the machine's."""
    engines = _engines(rows)
    kinds = {"speed-up": "speedup", "GFLOP/s": "gflops", "% of roof": "roof_percent"}
    shown = [head for head, key in kinds.items() if any(key in row for row in rows)]
    heads = [HEADINGS.get(rows[0]["table"], "I, H, T, B"), *engines, *shown]
    if "GFLOP/s" in shown:
        heads.insert(heads.index("GFLOP/s") + 1, "% of peak")
    lines = [[*heads, ""]]
    for row in rows:
        cells = {
            "speed-up": f"**{row['speedup']:.2f}** ({row['best_peer']})" if "speedup" in row else "no peer",
            "GFLOP/s": f"{row['gflops']:.1f}" if "gflops" in row else "",
            "% of peak": f"{row['peak_percent']:.0f}" if "peak_percent" in row else "",
            "% of roof": f"{row['roof_percent']:.0f} ({row['weights_in']})" if "roof_percent" in row else "",
        }
        error = str(row["error"]).replace("|", "/") if "error" in row else ""
        times = [error or _cell(row, engines[0]), *(_cell(row, e) for e in engines[1:])]
        lines.append([_name(row), *times, *(cells[head] for head in heads if head in cells), _notes(row)])
    return lines


def _precision_table(rows: Sequence[Result]) -> list[list[str]]:
    """Of each column its time, how many times as fast as our float32 it is, and its largest error."""
    engines = _engines(rows)
    heads = ["cell, I, H, T, B", *engines]
    found = [p for p in PRECISIONS if any(f"{p} over peers" in row for row in rows)]
    lines = [[*heads, *(f"{p} over the best peer: speed, error" for p in found)]]
    for row in rows:
        cells = []
        for engine in engines:
            cell = _cell(row, engine)
            if engine in row.get("engines", ()):
                e = row["engines"][engine]
                over = "" if engine == OUR_OWN else f", {1 / e['ratio']:.2f} ×"
                cell += f"{over}, {e['output_error']:.1e}"
            cells.append(cell)
        for p in found:
            lead, error = row.get(f"{p} over peers"), row.get(f"{p} error over peers")
            cells.append("no peer" if lead is None else f"**{lead:.2f}**, {error:.2f}")
        lines.append([_name(row), *cells])
    return lines


def _cold_table(rows: Sequence[Result]) -> list[list[str]]:
    """An engine a line: milliseconds, resident and installed megabytes."""
    lines = [["engine", "ms to the first result", "over fastlstm", "MB resident", "MB installed"]]
    for row in rows:
        for engine in _engines(rows):
            e = row.get("engines", {}).get(engine)
            what = [f"{e['ratio']:.2f}"] if e else [""]
            what += [f"{e[k] / 1e6:.0f}" if e else "" for k in ("resident_bytes", "installed_bytes")]
            lines.append([engine, _cell(row, engine), *what])
    return lines


TABLES = {"precision": _precision_table, "cold": _cold_table}


def _environments(result: Result) -> list[str]:
    """Who ran where, and who did not run."""
    out = []
    if "environments" in result:
        out.append("Peers that share no environment ran in one each, in turns with fastlstm there;")
        out.append("a time from another environment is its ratio to fastlstm there, times the time here.")
    if missing := result["settings"].get("not_installed"):
        out.append(f"Not installed: {', '.join(missing)}.")
    return out


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
        f"The speed-up is over the best of {', '.join(n for n in s['peers'] if n != 'numpy') or 'no peer'}.",
        "For one step `fastlstm` is `Stream.step(x, out=out)`, `fastlstm call` is `layer(x, state)`.",
        "GFLOP/s counts the products alone, three times those of the forward pass in training.",
        "The roof of one sequence is the slower of multiplying and reading the weights from the cache named.",
        *_environments(result),
        "",
        *(f"- {name}: {how}" for name, how in s["how"].items()),
        "",
    ]
    for table, title in TITLES.items():
        rows = [row for row in result["rows"] if row["table"] == table]
        if rows:
            head, *lines = TABLES.get(table, _table)(rows)
            cells = [head, ["---"] * len(head), *lines]
            out += [f"## {title}", "", *(f"| {' | '.join(line)} |" for line in cells), "", *_without(rows)]
    return "\n".join(out)


def model_markdown(result: Result) -> str:
    """The table of `--model`: an engine a line, of each row its time and its largest error."""
    rows, alone = result["rows"], result["alone"]
    names = " | ".join(f"{row['name']} ({row['T']} x {row['B']})" for row in rows)
    out = [
        f"`{result['model']}`",
        "",
        "Microseconds a call (steps x sequences)"
        + ("." if alone else ", times fastlstm's, largest error against the reference in float64."),
        "",
        f"| engine | {names} |",
        f"| --- |{' --- |' * len(rows)}",
    ]
    for engine in _engines(rows, refused=True):
        cells = []
        for row in rows:
            cell = _cell(row, engine)
            if engine in row.get("engines", ()):
                e = row["engines"][engine]
                cell += "" if alone else f" ({e['ratio']:.2f} ×, {e['output_error']:.1e})"
            cells.append(cell)
        out.append(f"| {engine} | {' | '.join(cells)} |")
    failed = {text for row in rows for text in row.get("left_out", {}).values()}
    out += ["", *(f"failed: {text}" for text in sorted(failed))]
    if alone:
        out.append("The peers are measured on a recurrent layer alone: a Sequential is not built there.")
    return "\n".join(out).rstrip() + "\n"


# --- chart --------------------------------------------------------------------------------------------------

COLOURS = {
    "torch": "#e0542f", "torch padded": "#f0a585", "onnxruntime": "#2f81d6", "openvino": "#9061c9",
    "keras": "#e6a51e", "jax": "#2aa198", "litert": "#7fa650", "onnxruntime alone": "#8ab4e8",
    "torch bfloat16": "#e0542f", "torch int8": "#b03a1a", "onnxruntime int8": "#1f5f9f", "numpy": "#9aa1a9",
}  # fmt: skip

HEADS = {
    "lstm": "LSTM", "gru": "GRU", "rnn": "RNN", "audio": "LSTM, I = 1: H", "train lstm": "LSTM training",
    "train gru": "GRU training", "train rnn": "RNN training", "train ragged": "ragged training: H",
    "ragged": "ragged: H", "gated_rnn": "gated RNN", "train gated_rnn": "training", "float64": "float64",
    "train float64": "float64 training", "precision": "precision", "pool": "pools", "cold": "process",
}  # fmt: skip
WIDTH, LEFT, RIGHT, TOP, LINE = 860, 158, 58, 92, 13
STYLE = """<style>
text{fill:#24292f;font-size:11px}.title{font-size:15px}.title,.bold{font-weight:600}
.faint{fill:#656d76;font-size:10.5px}
.tick{stroke:#8c959f;stroke-opacity:.3}.one{stroke:#24292f;stroke-width:1.5}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.faint{fill:#9198a1}.one{stroke:#e6edf3}}
</style>"""


def leads(row: Result) -> dict[str, float]:
    """How many times longer than fastlstm each peer takes; in bfloat16 and int8 than ours of the same."""
    found, ratio = {}, {name: e["ratio"] for name, e in row.get("engines", {}).items()}
    for name in (name for name in COLOURS if name in ratio):
        precision = name.rpartition(" ")[2]
        mine = f"{OUR_OWN} {precision}" if precision in PRECISIONS else OUR_OWN
        if mine in ratio:
            found[name] = ratio[name] / ratio[mine]
    return found


def charted(rows: Iterable[Result]) -> list[Result]:
    """The rows of the chart: all of LSTM, the core of GRU and RNN; where a peer was measured."""
    shown = [row for row in rows if row["core"] or row["cell"] == "lstm"]
    return [row for row in shown if row["table"] in HEADS and leads(row)]


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _log_axis(low: float, high: float) -> Iterable[float]:
    """1, 2, 5, 10, .. within."""
    return (m * 10.0**e for e in range(-4, 7) for m in (1, 2, 5) if low <= m * 10.0**e <= high)


def _svg(title: str, width: int, height: float, parts: Iterable[str]) -> str:
    size = f'viewBox="0 0 {width} {height:.0f}" width="{width}" height="{height:.0f}"'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="system-ui, sans-serif">',
        f"<title>{escape(title)}</title>", STYLE, *parts, "</svg>", "",
    ])  # fmt: skip


def _legend(names: Iterable[str], colours: Mapping[str, str], y: float) -> list[str]:
    out, x = [], float(LEFT)
    for name in names:
        out.append(f'<circle cx="{x + 5}" cy="{y - 4}" r="4" fill="{colours[name]}"/>')
        out.append(_text(x + 13, y, name))
        x += 28 + 6.2 * len(name)
        if x > WIDTH - 150:
            x, y = float(LEFT), y + 14
    return out


def chart(result: Result) -> str:
    """An SVG on a log axis, a line a row: a dot is how many times longer than fastlstm a peer takes, the bar
    reaches to the best of them."""
    rows = charted(result["rows"])
    every = [lead for row in rows for lead in leads(row).values()]
    low, high = math.log10(min([0.8, *every])), math.log10(max([2.0, *every]) * 1.05)

    def at(ratio: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(ratio) - low) / (high - low)

    y, table, body = float(TOP + 8), "", []
    for row in rows:
        if row["table"] != table:
            table = row["table"]
            y += 6
            body.append(_text(LEFT - 8, y + 10, HEADS[table], "bold", "end"))
            y += LINE + 2
        found = leads(row)
        rivals = {name: lead for name, lead in found.items() if name != "numpy"} or found
        best = min(rivals, key=rivals.__getitem__)
        body.append(_text(LEFT - 8, y + 9, _name(row).replace(",", ", "), "", "end"))
        left, right = sorted((at(1), at(rivals[best])))
        said = f"{best}: {rivals[best]:.2f} times as long as fastlstm"
        wide = max(right - left, 0.5)
        body.append(f'<rect x="{left:.1f}" y="{y + 3}" width="{wide:.1f}" height="6" rx="1"')
        body.append(f' fill="{COLOURS[best]}" fill-opacity=".55"><title>{escape(said)}</title></rect>')
        for name, lead in found.items():
            said = f"{name}: {lead:.2f} times as long as fastlstm"
            body.append(f'<circle cx="{at(lead):.1f}" cy="{y + 6}" r="3.2" fill="{COLOURS[name]}">')
            body.append(f"<title>{escape(said)}</title></circle>")
        lead = rivals[best]
        if best != "numpy":
            body.append(_text(WIDTH - 8, y + 9, f"{lead:.{2 if lead < 10 else 1}f}×", "bold", "end"))
        y += LINE
    grid = []
    for t in _log_axis(10**low, 10**high):
        kind = "one" if t == 1 else "tick"
        grid.append(f'<line x1="{at(t):.1f}" x2="{at(t):.1f}" y1="{TOP}" y2="{y:.0f}" class="{kind}"/>')
        grid.append(_text(at(t), TOP - 5, f"{t:g}×", "faint", "middle"))
    legend = _legend([name for name in COLOURS if any(name in leads(row) for row in rows)], COLOURS, 54)
    about = f"{_headline(result)}; rows: I, H, T, B; the bar reaches to the best peer"
    heads = [_text(LEFT, 20, "How many times longer each takes than fastlstm", "title")]
    heads += [_text(LEFT, 36, about, "faint"), _text(WIDTH - 8, TOP - 5, "best peer", "faint", "end")]
    return _svg("Time of each peer over the time of fastlstm", WIDTH, y + 12, [*heads, *legend, *grid, *body])


CELL_COLOURS = {
    "lstm": "#2f81d6", "gru": "#e0542f", "rnn": "#7fa650", "gated_rnn": "#9061c9", "bfloat16": "#e6a51e",
    "int8": "#2aa198", "int8/16": "#8ab4e8",
}  # fmt: skip
WEIGHT_BYTES = {"bfloat16": 2, "int8": 1, "int8/16": 1}


def _points(rows: Iterable[Result]) -> Iterable[tuple[str, str, float, float]]:
    """(kind, what it is, FLOP for each byte of weights that a step reads, GFLOP/s attained); in reduced
    precision of single sequences alone, whose roof is reading."""
    for row in rows:
        if "gflops" not in row or row["table"].startswith("train") or row["dtype"] != "float32":
            continue
        intensity = row["flops"] / row["valid_steps"] * row["B"] / row["weight_bytes"]
        if row["kind"] == "layer":
            yield row["cell"], row["name"], intensity, row["gflops"]
        for name, n in WEIGHT_BYTES.items() if row["kind"] == "precision" and row["B"] == 1 else ():
            if e := row["engines"].get(f"{OUR_OWN} {name}"):
                yield name, f"{row['name']}, {name}", intensity * 4 / n, row["gflops"] / e["ratio"]


def roofline(result: Result) -> str:
    """An SVG, both axes logarithmic: what the rows attain under the roofs of multiplying and of reading."""
    roof, points = result["roofline"], list(_points(result["rows"]))
    peak = roof["peak_flops"] * result["settings"]["threads"] / 1e9
    xs = [0.2, *(x for _, _, x, _ in points), 200.0]
    ys = [*(y for _, _, _, y in points), peak / 100, peak]
    left, right, low, high = min(xs) / 1.2, max(xs) * 1.2, min(ys) / 1.2, max(ys) * 1.5
    top, bottom, width = 92, 460, WIDTH - RIGHT

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = math.log(x / left) / math.log(right / left), math.log(y / low) / math.log(high / low)
        return LEFT + (width - LEFT) * across, bottom - (bottom - top) * up

    body = []
    for x in _log_axis(left, right):
        here = at(x, low)[0]
        body.append(f'<line x1="{here:.1f}" x2="{here:.1f}" y1="{top}" y2="{bottom}" class="tick"/>')
        body.append(_text(here, bottom + 14, f"{x:g}", "faint", "middle"))
    for y in _log_axis(low, high):
        here = at(left, y)[1]
        body.append(f'<line x1="{LEFT}" x2="{width}" y1="{here:.1f}" y2="{here:.1f}" class="tick"/>')
        body.append(_text(LEFT - 6, here + 3, f"{y:g}", "faint", "end"))
    for level, rate in roof["read_bytes_per_second"].items():
        slope = rate / 1e9 * result["settings"]["threads"]
        first, last = max(left, low / slope), min(right, peak / slope)
        if first < last:
            (x1, y1), (x2, y2) = at(first, first * slope), at(last, last * slope)
            body.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="one"/>')
            body.append(_text(x1 + 4, y1 - 6, level, "faint"))
    fastest = max(roof["read_bytes_per_second"].values()) / 1e9 * result["settings"]["threads"]
    (x1, y1), (x2, _) = at(min(right, max(left, peak / fastest)), peak), at(right, peak)
    body.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y1:.1f}" class="one"/>')
    body.append(_text(x2, y1 - 6, f"peak, {peak:.0f} GFLOP/s", "faint", "end"))
    for kind, name, x, y in points:
        px, py = at(x, y)
        body.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.6" fill="{CELL_COLOURS[kind]}">')
        body.append(f"<title>{escape(f'{name}: {y:.1f} GFLOP/s')}</title></circle>")
    kinds = [kind for kind in CELL_COLOURS if any(kind == k for k, *_ in points)]
    heads = [_text(LEFT, 20, "GFLOP/s attained, under the roofs of this machine", "title")]
    about = f"{_headline(result)}; a level of cache is the roof of weights that lie there"
    heads += [_text(LEFT, 36, about, "faint"), *_legend(kinds, CELL_COLOURS, 54)]
    body.append(_text(width, bottom + 30, "FLOP for each byte of weights that a step reads", "faint", "end"))
    return _svg("Attained against the roofline", WIDTH, bottom + 42, [*heads, *body])
