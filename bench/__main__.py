"""`python -m bench [name]`: run the benchmarks, print ratios against peers, keep the rows in bench/results.json.

Every other module of this package is a benchmark: its `run()` returns rows
{"bench", "metric", "unit", "ours", "peers": {name: value}, "ratio"}. The ratio is ours against the best peer of the same run,
above 1 better; null for limits, equalities, absolute targets, and results within the measured spread.
"""

import argparse
import json
import multiprocessing
import pkgutil
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import bench
from bench._rows import Row, rows_of

RESULTS = Path(__file__).resolve().parent / "results.json"


def names() -> list[str]:
    """The benchmarks, by name; modules that begin with an underscore are shared helpers."""
    return sorted(module.name for module in pkgutil.iter_modules(bench.__path__) if not module.name.startswith("_"))


def table(rows: list[Row]) -> str:
    """Rows as text, one a line."""
    lines = []
    for row in rows:
        peers = ", ".join(f"{peer} {_number(value)}" for peer, value in row["peers"].items())
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}x"
        lines.append(
            f"{row['bench']:<18} {row['metric']:<52} {_number(row['ours']):>10} {row['unit']:<12} {ratio:>8}  {peers}"
        )
    return "\n".join(lines)


def keep(rows: list[Row], ran: set[str], known: set[str], path: Path = RESULTS) -> None:
    """Write `rows` in place of the earlier ones of the benchmarks in `ran`; rows of benchmarks outside `known` go."""
    earlier: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    kept = [row for row in earlier if row["bench"] not in ran and row["bench"] in known]
    ordered = sorted([*kept, *rows], key=lambda row: str(row["bench"]))
    path.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    known = names()
    parser = argparse.ArgumentParser(prog="python -m bench", description="Run the benchmarks.")
    parser.add_argument("only", nargs="?", choices=known, metavar="name", help=f"{', '.join(known)}; all by default")
    only = parser.parse_args(arguments).only
    chosen = [only] if only else known
    results: list[Row] = []
    failed = []
    for name in chosen:
        print(f"--- {name}", flush=True)
        started = time.monotonic()
        try:
            # A process each: threads, caches and memory of one do not touch the figures of the next.
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                rows = pool.submit(rows_of, name).result()
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        print(f"{table(rows)}\n({time.monotonic() - started:.0f} s)", flush=True)
        results += rows
    keep(results, set(chosen) - set(failed), set(known))
    print(f"\n{table(results)}\n\nWritten to {RESULTS}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
