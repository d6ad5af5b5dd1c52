"""Whole jobs, aefusion beside what people use today: python compare.py AEFUSION FOLDER [--rounds 5] [--models …] [--jobs …]

Every round runs each program once for each model and job, in random order (seeded), in a process of its own that runs the
job over a small file before. Seconds are those of the job alone, CPU seconds and peak memory those of the whole process.
Ratios are medians of the ratios within a round. Results are compared in the first round.
"""

import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = ["pyarrow", "polars"]
PROGRAMS = ["aefusion"] + PEERS
JOBS = ["score", "etl", "filter"]
WIDTH = 32


def sql(model, job, limit, file, out):
    options = "STORED AS PARQUET OPTIONS ('compression' 'snappy', 'dictionary_enabled' 'false')"
    if job == "filter":
        return (f"SELECT count(*) AS n, avg(ae_error('{model}')) AS mean FROM '{file}' "
                f"WHERE id % 10 = 0 AND ae_error('{model}') > {limit!r}")
    if job == "score":
        return f"COPY (SELECT id, CAST(ae_error('{model}') AS FLOAT) AS err FROM '{file}') TO '{out}/' {options}"
    fields = ", ".join(f"r['f{i}'] AS r{i}" for i in range(WIDTH))
    return (f"COPY (SELECT id, CAST(e AS FLOAT) AS err, code, {fields} FROM (SELECT id, ae_error('{model}') AS e, "
            f"ae_encode('{model}') AS code, ae_reconstruct('{model}') AS r FROM '{file}')) TO '{out}/' {options}")


def run(command):
    """What a command prints, with its CPU seconds and peak memory.

    The kernel counts the memory of the process that started it too, so this one stays small: no numpy here.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{command[:3]} ended with {process.returncode}\n{out}\n{err}")
    return out, err, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def run_aefusion(a, model, job, limit, out):
    statements = []
    for file in ["warm.parquet", "rows.parquet"]:
        folder = out if file == "rows.parquet" else Path(f"{out}-warm")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        statements += ["--command", sql(model, job, limit, a.folder / file, folder)]
    command = [a.aefusion, "sql", "--models", str(a.folder / "models"), "--format", "csv", "--timing"]
    printed, err, cpu, memory = run(command + statements)
    seconds = float(re.findall(r", ([0-9.]+) s$", err, re.MULTILINE)[-1])
    found = [float(cell) for cell in printed.splitlines()[-1].split(",")] if job == "filter" else None
    return dict(seconds=seconds, cpu=cpu, memory=memory, found=found)


def run_peer(a, program, model, job, out):
    command = [sys.executable, str(HERE / "peer.py"), program, str(a.folder), model, job, str(out)]
    printed, _, cpu, memory = run(command)
    return dict(cpu=cpu, memory=memory) | json.loads(printed)


def check(name, found, expected):
    same = found.keys() == expected.keys() and all(
        abs(found[key] - expected[key]) <= 1e-4 * abs(expected[key]) for key in expected)
    if not same:
        sys.exit(f"{name} gives other numbers: {found}, expected {expected}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("aefusion")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", default="small,large")
    parser.add_argument("--jobs", default=",".join(JOBS))
    a = parser.parse_args()
    limits = json.loads((a.folder / "limits.json").read_text())
    cases = [(model, job) for model in a.models.split(",") for job in a.jobs.split(",")]
    shutil.rmtree(a.folder / "models", ignore_errors=True)
    for model in a.models.split(","):
        create = f"CREATE MODEL {model} OPTIONS (model_type = 'onnx', model_path = '{a.folder / model}.onnx')"
        run([a.aefusion, "sql", "--models", str(a.folder / "models"), "--command", create])
    runs = {}
    order = random.Random(1)
    for number in range(a.rounds):
        todo = [(*case, program) for case in cases for program in PROGRAMS]
        order.shuffle(todo)
        results = {}
        for model, job, program in todo:
            out = a.folder / "out"
            result = (run_aefusion(a, model, job, limits[model], out) if program == "aefusion"
                      else run_peer(a, program, model, job, out))
            runs.setdefault((model, job, program), []).append(result)
            if number == 0:
                found = result["found"]
                results[model, job, program] = (
                    json.loads(run([sys.executable, str(HERE / "sums.py"), str(out)])[0]) if found is None
                    else dict(n=found[0], mean=found[1]))
        for model, job, program in results:
            check(f"{program}, {model} {job}", results[model, job, program], results[model, job, "pyarrow"])
        print(f"round {number + 1} of {a.rounds} done", file=sys.stderr, flush=True)
    shutil.rmtree(a.folder / "out", ignore_errors=True)
    shutil.rmtree(a.folder / "out-warm", ignore_errors=True)
    report(cases, runs)


def report(cases, runs):
    median = lambda case, program, key: statistics.median(run[key] for run in runs[(*case, program)])
    print("| model | job | program | seconds | CPU s | peak MB | aefusion / this, seconds | CPU |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for case in cases:
        for program in PROGRAMS:
            row = [median(case, program, key) for key in ["seconds", "cpu", "memory"]]
            pairs = list(zip(runs[(*case, "aefusion")], runs[(*case, program)]))
            ratio = lambda key: statistics.median(ours[key] / theirs[key] for ours, theirs in pairs)
            print(f"| {case[0]} | {case[1]} | {program} | {row[0]:.3f} | {row[1]:.2f} | {row[2]:.0f} | "
                  f"{ratio('seconds'):.2f} | {ratio('cpu'):.2f} |")
    print("\nall programs gave the same numbers")


if __name__ == "__main__":
    main()
