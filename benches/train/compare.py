"""Training with aefusion and with PyTorch, in turns: python compare.py PROGRAM FOLDER [--rounds 3]

Both train the same network with the same batches and epochs on the same rows. Times are those of the epochs alone. For
aefusion, this is the difference to a run with one epoch; PyTorch's epochs are measured directly. Memory is that of the whole
process. Prints a table in Markdown.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
SMALL, LARGE = [64, 32, 8, 32, 64], [784, 512, 256, 32, 256, 512, 784]
# name, widths, rows, batch, epochs, wanted ratio of rows per CPU second
CASES = [
    ("64-32-8-32-64, batch 256", SMALL, 100_000, 256, 20, 3.0),
    ("64-32-8-32-64, batch 4096", SMALL, 100_000, 4096, 20, 1.5),
    ("784-512-256-32-256-512-784, batch 256", LARGE, 10_000, 256, 4, 1.0),
]

parser = argparse.ArgumentParser()
parser.add_argument("program")
parser.add_argument("folder", type=Path)
parser.add_argument("--rounds", type=int, default=3)
arguments = parser.parse_args()
arguments.folder.mkdir(parents=True, exist_ok=True)


def data(rows, width):
    path = arguments.folder / f"{rows}x{width}.parquet"
    if not path.exists():
        subprocess.run([sys.executable, HERE / "data.py", path, str(rows), str(width)], check=True)
    return path


def measured(command, **environment):
    """Output, wall seconds, CPU seconds and peak memory (MB) of a process.

    The kernel adds the memory of the parent process, so this process stays small: no numpy here.
    """
    with tempfile.TemporaryFile() as out:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, env={**os.environ, **environment})
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        if process.returncode:
            sys.exit(f"{command} ended with {process.returncode}")
        return out.read(), wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def ours(path, widths, batch, epochs, threads):
    def run(epochs):
        sql = f"""CREATE MODEL m OPTIONS (hidden_units = {widths[1:-1]}, activation_fn = 'relu', batch_size = {batch},
                  max_iterations = {epochs}, early_stop = FALSE, data_split_eval_fraction = 0, calibration_share = 0)
                  AS SELECT * FROM '{path}'"""
        command = [arguments.program, "sql", "--quiet", "--models", "memory:///", "--command", sql]
        return measured(command, DATAFUSION_EXECUTION_TARGET_PARTITIONS=str(threads))

    _, wall_one, cpu_one, _ = run(1)
    _, wall, cpu, memory = run(epochs + 1)
    return wall - wall_one, cpu - cpu_one, memory


def peer(path, widths, batch, epochs, threads):
    command = [sys.executable, str(HERE / "peer.py"), str(path), *map(json.dumps, (widths, batch, epochs, threads))]
    printed, _, _, memory = measured(command, OMP_NUM_THREADS=str(threads))
    result = json.loads(printed.splitlines()[-1])
    return result["seconds"], result["cpu"], memory


def median(runs, index):
    return statistics.median(run[index] for run in runs)


print("| network | aefusion, rows/CPU s | PyTorch | ratio | aefusion, rows/s on 2 threads | 2 threads / 1 | aefusion, MB | PyTorch |")
print("| --- | --- | --- | --- | --- | --- | --- | --- |")
for name, widths, rows, batch, epochs, wanted in CASES:
    path = data(rows, widths[0])
    runs = {(who, threads): [] for who in (ours, peer) for threads in (1, 2)}
    for _ in range(arguments.rounds):
        for (who, threads), found in runs.items():
            found.append(who(path, widths, batch, epochs, threads))
    done = rows * epochs
    rate = {key: done / median(found, 1) for key, found in runs.items()}
    speed = {key: done / median(found, 0) for key, found in runs.items()}
    memory = {key: median(found, 2) for key, found in runs.items()}
    print(
        f"| {name} | {rate[ours, 1]:,.0f} | {rate[peer, 1]:,.0f} | {rate[ours, 1] / rate[peer, 1]:.2f} "
        f"| {speed[ours, 2]:,.0f} | {speed[ours, 2] / speed[ours, 1]:.2f} "
        f"| {memory[ours, 1]:.0f} | {memory[peer, 1]:.0f} |",
        flush=True,
    )
    if rate[ours, 1] < wanted * rate[peer, 1]:
        print(f"{name}: the ratio should be at least {wanted}", file=sys.stderr)
    print(f"{name}: PyTorch trains on {speed[peer, 2]:,.0f} rows/s with 2 threads", file=sys.stderr)
