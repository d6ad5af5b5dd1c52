"""Makes the rows and the two models of the comparison, once for a folder: python data.py FOLDER [ROWS].

rows.parquet is id (int64) and f0 … f31 (float32), correlated, snappy, row groups of 131,072; warm.parquet its first group.
small.onnx is 32-16-4-16-32, large.onnx 32-256-64-256-32, ReLU. limits.json has an error for each model: a tenth of the
rows with id % 10 = 0 has a larger one.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper

WIDTH, GROUP = 32, 131_072
LAYERS = {"small": [32, 16, 4, 16, 32], "large": [32, 256, 64, 256, 32]}
PARQUET = dict(compression="snappy", use_dictionary=False, row_group_size=GROUP)


def model(layers, seed):
    random = np.random.default_rng(seed)
    nodes, weights, value = [], [], "x"
    for i, (n, m) in enumerate(zip(layers, layers[1:])):
        scale = np.sqrt(2 / n)
        weights.append(numpy_helper.from_array((random.standard_normal((m, n)) * scale).astype(np.float32), f"w{i}"))
        weights.append(numpy_helper.from_array((random.standard_normal(m) * 0.05).astype(np.float32), f"b{i}"))
        is_last = i + 2 == len(layers)
        name = "reconstruction" if is_last else "code" if i + 1 == len(layers) // 2 else f"h{i}"
        nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [name if is_last else f"z{i}"], transB=1))
        if not is_last:
            nodes.append(helper.make_node("Relu", [f"z{i}"], [name]))
        value = name
    shaped = lambda name, width: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])
    outputs = [shaped("reconstruction", WIDTH), shaped("code", layers[len(layers) // 2])]
    graph = helper.make_graph(nodes, "autoencoder", [shaped("x", WIDTH)], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def rows(start, n, mix):
    random = np.random.default_rng(start)
    hidden = random.standard_normal((n, len(mix)), dtype=np.float32)
    return hidden @ mix + np.float32(0.3) * random.standard_normal((n, WIDTH), dtype=np.float32)


def main(folder, n_rows):
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "limits.json").exists():
        return
    for seed, (name, layers) in enumerate(LAYERS.items()):
        onnx.save(model(layers, seed), folder / f"{name}.onnx")
    sessions = {name: onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in LAYERS}
    errors = {name: [] for name in LAYERS}
    mix = np.random.default_rng(0).standard_normal((6, WIDTH), dtype=np.float32) / np.float32(np.sqrt(6))
    schema = pa.schema([("id", pa.int64())] + [(f"f{i}", pa.float32()) for i in range(WIDTH)])
    writer = None
    for start in range(0, n_rows, GROUP):
        n = min(GROUP, n_rows - start)
        x, ids = rows(start, n, mix), np.arange(start, start + n)
        table = pa.table([ids] + [np.ascontiguousarray(x[:, i]) for i in range(WIDTH)], schema=schema)
        if writer is None:
            pq.write_table(table, folder / "warm.parquet", **PARQUET)
            writer = pq.ParquetWriter(folder / "rows.parquet", schema, compression="snappy", use_dictionary=False)
        writer.write_table(table, row_group_size=GROUP)
        tenth = np.ascontiguousarray(x[ids % 10 == 0])
        for name, session in sessions.items():
            reconstruction = session.run(["reconstruction"], {"x": tenth})[0]
            errors[name].append(((tenth - reconstruction).astype(np.float64) ** 2).mean(axis=1))
    writer.close()
    limits = {}
    for name in LAYERS:
        found = np.sort(np.concatenate(errors[name]))
        place = int(len(found) * 0.9)
        # the middle of the widest gap nearby: no rounding decides which rows are above
        gaps = np.diff(found[place - 100:place + 100])
        place += int(np.argmax(gaps)) - 100
        limits[name] = float((found[place] + found[place + 1]) / 2)
    (folder / "limits.json").write_text(json.dumps(limits))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2_000_000)
