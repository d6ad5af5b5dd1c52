"""Shared by the scripts that make the interop cases: data, training, export, expected results."""

import copy
import json
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

warnings.filterwarnings("ignore")
logging.getLogger("torch.onnx").setLevel(logging.ERROR)
torch.set_num_threads(1)

OUT = Path(__file__).resolve().parent.parent
ROWS = 50  # not a multiple of 16, so fixed batches are padded

LEGACY = f"PyTorch {torch.__version__.split('+')[0]}, torch.onnx.export(dynamo=False)"
DYNAMO = f"PyTorch {torch.__version__.split('+')[0]}, torch.onnx.export(dynamo=True)"
FLOAT32 = (
    "float32 rounding: sums of a few dozen terms in another order differ by some units in the last "
    "place (6e-8 relative); the floor is for values near 0 that come from terms of order 1"
)


def process(seed, n, width=12):
    """Rows of `width` correlated readings: 3 hidden causes, a bend, a little noise."""
    rng = np.random.default_rng(7)
    mix, bend = rng.normal(size=(3, width)), rng.normal(size=(3, width))
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=(n, 3))
    x = 0.6 * cause @ mix + 0.5 * np.tanh(cause @ bend) + 0.05 * rng.normal(size=(n, width))
    return x.astype(np.float32)


def rows(seed=2, width=12):
    """The rows a case is checked on: fresh ones, every tenth an outlier."""
    x = process(seed, ROWS, width)
    x[9::10] = 2 * np.roll(x[9::10], 1, axis=1)
    return x


def mlp(*sizes):
    layers = []
    for a, b in zip(sizes, sizes[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Dense(nn.Module):
    """12-8-3-8-12, ReLU, linear code."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = mlp(12, 8, 3), mlp(3, 8, 12)

    def forward(self, x):
        code = self.encoder(x)
        return code, self.decoder(code)


def mse(reconstruction, target):
    return ((reconstruction - target) ** 2).mean()


def train(make, data, loss=None, steps=400, rate=1e-2, seed=1):
    """`make()` after some hundred full-batch Adam steps; `loss(model, data)` is to be minimised."""
    torch.manual_seed(seed)
    model = make()
    data = torch.as_tensor(data)
    loss = loss or (lambda m, x: mse(m(x)[1], x))
    adam = torch.optim.Adam(model.parameters(), lr=rate)
    model.train()
    for _ in range(steps):
        adam.zero_grad()
        value = loss(model, data)
        value.backward()
        adam.step()
    print(f"  loss {value.item():.5f}")
    return model.eval()


def export(model, inputs, name, input_names=None, output_names=None, dynamo=False, dynamic=True):
    """Writes `<name>.onnx`, weights inside, batch dimension named N if dynamic."""
    path = OUT / f"{name}.onnx"
    inputs = tuple(torch.as_tensor(x) for x in inputs)
    options = {}
    if dynamic and dynamo:
        options["dynamic_shapes"] = tuple({0: torch.export.Dim("N")} for _ in inputs)
    elif dynamic:
        options["dynamic_axes"] = {n: {0: "N"} for n in input_names + output_names}
    if dynamo:
        options["external_data"] = False
    torch.onnx.export(model, inputs, str(path), input_names=input_names, output_names=output_names,
                      dynamo=dynamo, verbose=False, **options)
    tidy(path)
    return path


def tidy(path):
    """Drops the stack traces some exporters leave in a file, then checks it."""
    model = onnx.load(path)
    for node in model.graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    assert path.stat().st_size < 200_000, path


def run(path, feed, extra=(), optimise=True):
    """Every output of the file, and the inner tensors named in `extra`; a fixed batch is fed block by block."""
    model = onnx.load(path)
    for tensor in extra:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(tensor))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    batch = session.get_inputs()[0].shape[0]
    n = len(next(iter(feed.values())))
    if not isinstance(batch, int):
        batch = n
    names = [o.name for o in session.get_outputs()]
    blocks = []
    for start in range(0, n, batch):
        block = {k: v[start:start + batch] for k, v in feed.items()}
        block = {k: np.concatenate([v, np.repeat(v[-1:], batch - len(v), 0)]) for k, v in block.items()}
        blocks.append(session.run(names, block))
    if len(blocks) == 1:
        return dict(zip(names, blocks[0]))
    return {name: np.concatenate(part)[:n] for name, part in zip(names, zip(*blocks))}


def narrowest(path, width):
    """The last inner tensor of that width."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    shapes = {v.name: v.type.tensor_type.shape.dim for v in graph.value_info}
    found = [o for node in graph.node for o in node.output
             if len(shapes.get(o, ())) == 2 and shapes[o][1].dim_value == width]
    return found[-1]


def double(model, *inputs):
    """What the PyTorch model itself gives in float64: (code, reconstruction, ...)."""
    model = copy.deepcopy(model).double().eval()
    inputs = [torch.as_tensor(x) for x in inputs]
    with torch.no_grad():
        out = model(*(x.double() if x.is_floating_point() else x for x in inputs))
    return [o.numpy() for o in out]


def squared(reconstruction, target):
    n = len(target)
    d = reconstruction.reshape(n, -1).astype(np.float64) - target.reshape(n, -1).astype(np.float64)
    return (d * d).mean(axis=1)


def lists(x, dtype=np.float32):
    """A fixed-size list column of the rows, flattened row-major."""
    x = np.ascontiguousarray(x.reshape(len(x), -1).astype(dtype))
    return pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])


def case(name, made_by, columns, features, code=None, reconstruction=None, target=None, error=True,
         reference=None, options=None, model="", dtype=np.float32, rtol=1e-5, atol=1e-6, reason=FLOAT32,
         more=None):
    """Writes `<name>.parquet` and returns the entry for cases.json.

    `reference` holds (code, reconstruction) from somewhere other than onnxruntime, in float64 where it can
    be; onnxruntime has to be within half the tolerance of it, so the tolerance is not a tight fit.
    """
    n = ROWS
    results = {}
    if code is not None:
        results["code"] = code
    if reconstruction is not None:
        results["reconstruction"] = reconstruction
    table = {"id": pa.array(np.arange(1, n + 1, dtype=np.int64))}
    table |= {k: pa.array(v) for k, v in columns.items()}
    if features is not None:
        table["features"] = lists(features, dtype)
    table |= {k: lists(v, dtype) for k, v in results.items()}
    table |= {k: lists(v, dtype) for k, v in (more or {}).items()}
    if error:
        target = features if target is None else target
        rebuilt = (more or {}).get("scaled_reconstruction", reconstruction)
        results["error"] = squared(rebuilt, target)
        table["error"] = pa.array(results["error"])
    pq.write_table(pa.table(table), OUT / f"{name}.parquet")

    if reference is not None:
        expected = dict(zip(("code", "reconstruction"), reference))
        if error:
            expected["error"] = squared(reference[1], target)
        worst = {}
        for key, got in results.items():
            if key not in expected:
                continue
            want = np.asarray(expected[key], np.float64).reshape(n, -1)
            gap = np.abs(got.reshape(n, -1).astype(np.float64) - want) / (atol + rtol * np.abs(want))
            worst[key] = float(gap.max())
        print(f"  {name}: share of the tolerance used", {k: round(v, 3) for k, v in worst.items()})
        assert max(worst.values()) <= 0.5, worst

    return {
        "name": name,
        "rows": f"{name}.parquet",
        "made_by": made_by,
        "features": list(columns),
        "options": options or {},
        "model": f"{name}.onnx" if model == "" else model,
        "outputs": list(results),
        "rtol": rtol,
        "atol": atol,
        "tolerance_reason": reason,
    }


def numbered(x, prefix="f"):
    """One column a feature."""
    x = x.reshape(len(x), -1)
    return {f"{prefix}{i}": x[:, i] for i in range(x.shape[1])}


def save_cases(cases):
    """Writes cases.json. Cases with the same rows and results share the file of the first."""
    files = {}
    for case in cases:
        file = OUT / case["rows"]
        case["rows"] = files.setdefault(file.read_bytes(), file.name)
        if case["rows"] != file.name:
            file.unlink()
    (OUT / "cases.json").write_text(json.dumps(cases, indent=2) + "\n")
