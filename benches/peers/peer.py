"""One job with another library, in one process: python peer.py PROGRAM FOLDER MODEL JOB OUT.

PROGRAM is `pyarrow` (memory-mapped, two threads, each with an ONNX Runtime session and blocks that stay in the cache) or
`polars` (scan, map_batches, sink). The job runs on warm.parquet first. Prints, as JSON, the seconds of the job and the
result of a filter.
"""

import json
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime

WIDTH, GROUP, THREADS = 32, 131_072, 2
FEATURES = [f"f{i}" for i in range(WIDTH)]
RECONSTRUCTED = [f"r{i}" for i in range(WIDTH)]
BLOCK = {"small": 4096, "large": 1024}


class Scorer:
    """Columns in, errors out, and codes and reconstructions where they are wanted; safe for several threads."""

    def __init__(self, folder, model):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(folder / f"{model}.onnx", options)
        self.block = BLOCK[model]
        self.width = self.session.get_outputs()[1].shape[1]

    def score(self, columns, everything):
        n = len(columns[0])
        error = np.empty(n, np.float32)
        code = np.empty((n, self.width) if everything else (0, 0), np.float32)
        decoded = np.empty((WIDTH, n) if everything else (0, 0), np.float32)
        x = np.empty((self.block, WIDTH), np.float32)
        for start in range(0, n, self.block):
            end = min(start + self.block, n)
            rows = x[:end - start]
            for j, column in enumerate(columns):
                rows[:, j] = column[start:end]
            outputs = ["reconstruction", "code"] if everything else ["reconstruction"]
            found = self.session.run(outputs, {"x": rows})
            difference = rows - found[0]
            error[start:end] = np.einsum("ij,ij->i", difference, difference) / np.float32(WIDTH)
            if everything:
                code[start:end] = found[1]
                decoded[:, start:end] = found[0].T
        return error, code, decoded


def run_pyarrow(scorer, path, job, limit, out):
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [("id", pa.int64()), ("err", pa.float32())]
    if job == "etl":
        fields += [("code", pa.list_(pa.float32(), scorer.width))] + [(name, pa.float32()) for name in RECONSTRUCTED]
    schema = pa.schema(fields)
    groups = pq.ParquetFile(path).metadata.num_row_groups
    found = []

    def work(thread):
        file = pq.ParquetFile(path, memory_map=True)
        writer = None
        if job != "filter":
            writer = pq.ParquetWriter(out / f"{thread}.parquet", schema, compression="snappy", use_dictionary=False)
        for group in range(thread, groups, THREADS):
            table = file.read_row_group(group, use_threads=False)
            ids = table.column("id").to_numpy()
            if job == "filter":
                table = table.filter(pa.array(ids % 10 == 0))
            columns = [table.column(name).combine_chunks().to_numpy() for name in FEATURES]
            error, code, decoded = scorer.score(columns, job == "etl")
            if job == "filter":
                error = error[error > limit].astype(np.float64)
                found.append((len(error), error.sum()))
                continue
            arrays = [table.column("id"), pa.array(error)]
            if job == "etl":
                arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(code.reshape(-1)), scorer.width))
                arrays += [pa.array(column) for column in decoded]
            writer.write_table(pa.table(arrays, schema=schema), row_group_size=GROUP)
        if writer is not None:
            writer.close()

    threads = [threading.Thread(target=work, args=[i]) for i in range(THREADS)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    n = sum(n for n, _ in found)
    return [n, sum(total for _, total in found) / n] if n else None


def run_polars(scorer, path, job, limit, out):
    import polars as pl

    short = {"id": pl.Int64, "err": pl.Float32}
    long = short | {"code": pl.Array(pl.Float32, scorer.width)} | {name: pl.Float32 for name in RECONSTRUCTED}
    schema = long if job == "etl" else short

    def score(frame):
        if frame.height == 0:
            return pl.DataFrame(schema=schema)
        columns = [frame.get_column(name).to_numpy() for name in FEATURES]
        error, code, decoded = scorer.score(columns, job == "etl")
        series = [frame.get_column("id"), pl.Series("err", error)]
        if job == "etl":
            series.append(pl.Series("code", code, dtype=long["code"]))
            series += [pl.Series(name, column) for name, column in zip(RECONSTRUCTED, decoded)]
        return pl.DataFrame(series)

    rows = pl.scan_parquet(path)
    options = dict(streamable=True, validate_output_schema=False, schema=schema)
    if job == "filter":
        error = pl.col("err")
        scored = rows.filter(pl.col("id") % 10 == 0).map_batches(score, **options).filter(error > limit)
        found = scored.select(pl.len(), error.cast(pl.Float64).mean()).collect(engine="streaming")
        return list(found.row(0))
    sink = dict(compression="snappy", row_group_size=GROUP, maintain_order=False, engine="streaming")
    rows.map_batches(score, **options).sink_parquet(out / "0.parquet", **sink)
    return None


def main(program, folder, model, job, out):
    run = {"pyarrow": run_pyarrow, "polars": run_polars}[program]
    folder, out = Path(folder), Path(out)
    scorer = Scorer(folder, model)
    limit = json.loads((folder / "limits.json").read_text())[model]
    for file in ["warm.parquet", "rows.parquet"]:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        start = time.perf_counter()
        found = run(scorer, folder / file, job, limit, out)
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "found": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
