"""Whole jobs with aefusion, pyarrow and Polars: python compare.py AEFUSION FOLDER [--rounds 5] [--models …] [--jobs …]

Each round runs each program once for each model and job, in random order (seeded). Each run is a process, which first runs
the job on a small file. Seconds are those of the job alone; CPU seconds and peak memory are those of the whole process.
Ratios are medians of the ratios within a round. The first round compares the results of the programs.

Prints a table in Markdown. A table with CPU seconds goes to the standard error.
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
    """Output of a command, its CPU seconds and its peak memory in MB.

    The kernel adds the memory of the parent process, so this process stays small: no numpy here.
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
        sys.exit(f"{name}: expected {expected}, got {found}")


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

    def ratio(case, program, key):
        pairs = zip(runs[(*case, "aefusion")], runs[(*case, program)])
        return statistics.median(ours[key] / theirs[key] for ours, theirs in pairs)

    log = lambda line: print(line, file=sys.stderr)
    log("| model | job | program | seconds | CPU s | peak MB | aefusion / this, seconds | CPU |")
    log("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for case in cases:
        for program in PROGRAMS:
            seconds, cpu, memory = [median(case, program, key) for key in ["seconds", "cpu", "memory"]]
            log(f"| {case[0]} | {case[1]} | {program} | {seconds:.3f} | {cpu:.2f} | {memory:.0f} | "
                f"{ratio(case, program, 'seconds'):.2f} | {ratio(case, program, 'cpu'):.2f} |")
    log("\nall programs gave the same numbers\n")
    print("| model, job | aefusion, s | pyarrow | Polars | aefusion / fastest peer | aefusion, MB | pyarrow | Polars |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for case in cases:
        seconds = [f"{median(case, program, 'seconds'):.3f}" for program in PROGRAMS]
        memory = [f"{median(case, program, 'memory'):.0f}" for program in PROGRAMS]
        fastest = min(PEERS, key=lambda program: median(case, program, "seconds"))
        cells = [", ".join(case), *seconds, f"{ratio(case, fastest, 'seconds'):.2f}", *memory]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
