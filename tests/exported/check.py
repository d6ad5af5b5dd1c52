"""Runs an exported model in onnxruntime, and compares with what SQL gave.

    python check.py MODEL.onnx ROWS.json

Each line of ROWS.json is a row: the features by name, `code`, `error`, and of a classifier `probabilities` by label.
"""

import json
import sys

import numpy as np
import onnx
import onnxruntime

path, rows = sys.argv[1:]
model = onnx.load(path)
onnx.checker.check_model(model, full_check=True)
told = {entry.key.removeprefix("aefusion."): entry.value for entry in model.metadata_props}
features = json.loads(told["features"])
rows = [json.loads(line) for line in open(rows)]
session = onnxruntime.InferenceSession(path)

inputs, first = {}, 0
for tensor in session.get_inputs():
    names = [feature["name"] for feature in features[first : first + tensor.shape[1]]]
    first += len(names)
    if tensor.type == "tensor(string)":
        values = np.array([[row.get(name) or "" for name in names] for row in rows], dtype=object)
    else:
        number = lambda value: np.nan if value is None else float(value)
        kind = np.float64 if tensor.type == "tensor(double)" else np.float32
        values = np.array([[number(row.get(name)) for name in names] for row in rows], dtype=kind)
    inputs[tensor.name] = values
assert first == len(features), f"{first} features in the inputs, {len(features)} in the metadata"

outputs = dict(zip([output.name for output in session.get_outputs()], session.run(None, inputs)))


def compare(what, found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, f"{what}: {found.shape}, SQL gives {expected.shape}"
    off = np.abs(found - expected) / np.maximum(np.abs(expected), 1)
    assert off.max() < 1e-6, f"{what}: off by {off.max()}"


compare("code", outputs["code"], [row["code"] for row in rows])
given = np.array([[row.get(name) is not None for name in json.loads(told["scaled_features"])] for row in rows])
squares = np.where(given, (outputs["scaled"].astype(np.float64) - outputs["scaled_reconstruction"]) ** 2, 0)
compare("error", squares.sum(1) / given.sum(1), [row["error"] for row in rows])
if "logits" in outputs:
    powers = np.exp(outputs["logits"].astype(np.float64))
    labels = json.loads(told["classes"])["labels"]
    sql = [[next(p["probability"] for p in row["probabilities"] if str(p["label"]) == label) for label in labels] for row in rows]
    compare("probabilities", powers / powers.sum(1, keepdims=True), sql)
print(f"{len(rows)} rows agree")
