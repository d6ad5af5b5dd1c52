"""Time of queries compared with ONNX Runtime alone: python limit.py AEFUSION FOLDER [--rounds 5].

Alone: the same rows in memory as a matrix, two threads with a session each, the fastest of six block sizes. Query: the times
in ONNX Runtime, in conversion and in the error, as EXPLAIN ANALYZE reports them, for the same rows in a Parquet file.
Times are summed over the two threads or partitions. Ratios are medians over interleaved rounds.

Prints a table in Markdown. Speed and block size of ONNX Runtime alone go to the standard error.
"""

import argparse
import re
import shutil
import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq

from compare import run

THREADS = 2
BLOCKS = [256, 512, 1024, 2048, 4096, 8192]
UNITS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


def matrix(file):
    table = pq.read_table(file)
    return np.stack([table.column(f"f{i}").to_numpy() for i in range(32)], axis=1)


def alone(path, x, output, block):
    """Seconds in ONNX Runtime, summed over threads."""
    spent = []

    def work(rows, session):
        begun = time.perf_counter()
        for start in range(0, len(rows), block):
            session.run([output], {"x": rows[start:start + block]})
        spent.append(time.perf_counter() - begun)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(path, options) for _ in range(THREADS)]
    halves = np.array_split(x, THREADS)
    threads = [threading.Thread(target=work, args=pair) for pair in zip(halves, sessions)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return sum(spent)


def query(a, model, call):
    """Seconds by metric, summed over partitions."""
    sql = f"EXPLAIN ANALYZE SELECT count({call}) FROM (SELECT * FROM '{a.folder}/rows.parquet')"
    statements = ["--command", "SET datafusion.execution.target_partitions = 2", "--command", sql]
    printed, _, _, _ = run([a.aefusion, "sql", "--models", str(a.folder / "models"), "--format", "csv"] + statements)
    line = next(line for line in printed.splitlines() if "InferExec" in line)
    found = re.findall(r"(\w+_time)=([0-9.]+)(ns|µs|ms|s)", line)
    return {name: float(value) * UNITS[unit] for name, value, unit in found}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("aefusion")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    x = matrix(a.folder / "rows.parquet")
    shutil.rmtree(a.folder / "models", ignore_errors=True)
    models = ["small", "large"]
    for model in models:
        create = f"CREATE MODEL {model} OPTIONS (model_type = 'onnx', model_path = '{a.folder / model}.onnx')"
        run([a.aefusion, "sql", "--models", str(a.folder / "models"), "--command", create])
    rows = {model: [] for model in models}
    for number in range(a.rounds):
        for model in models:
            path = a.folder / f"{model}.onnx"
            best = min((alone(path, x, "reconstruction", block), block) for block in BLOCKS)
            error, encode = query(a, model, f"ae_error('{model}')"), query(a, model, f"ae_encode('{model}')")
            rows[model].append((best, error, encode))
        print(f"round {number + 1} of {a.rounds} done", file=sys.stderr, flush=True)
    print("| model | ONNX Runtime, query / alone | conversion and error / ONNX Runtime | `ae_encode` / `ae_error` |")
    print("| --- | --- | --- | --- |")
    for model in models:
        median = lambda f: statistics.median(f(*row) for row in rows[model])
        speed = median(lambda best, error, encode: len(x) * THREADS / best[0] / 1e6)
        block = statistics.mode(best[1] for best, _, _ in rows[model])
        share = median(lambda best, error, encode: error["onnx_runtime_time"] / best[0])
        rest = median(lambda best, error, encode:
                      (error["conversion_time"] + error["error_time"]) / error["onnx_runtime_time"])
        code = median(lambda best, error, encode: encode["onnx_runtime_time"] / error["onnx_runtime_time"])
        print(f"{model}: ONNX Runtime alone {speed:.2f} million rows/s, blocks of {block} rows", file=sys.stderr)
        print(f"| {model} | {share:.2f} | {rest:.2f} | {code:.2f} |")


if __name__ == "__main__":
    main()
