"""An autoencoder of eight features with random weights: python make_model.py FILE."""

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTHS = [8, 16, 3, 16, 8]

random = np.random.default_rng(7)
nodes, weights, name = [], [], "x"
for i, (a, b) in enumerate(zip(WIDTHS, WIDTHS[1:])):
    weights.append(numpy_helper.from_array(random.normal(0, a**-0.5, (a, b)).astype(np.float32), f"w{i}"))
    weights.append(numpy_helper.from_array(random.normal(0, 0.1, b).astype(np.float32), f"b{i}"))
    out = "code" if i == 1 else "reconstruction" if i == 3 else f"h{i}"
    nodes.append(helper.make_node("Gemm", [name, f"w{i}", f"b{i}"], [out if i % 2 else f"g{i}"]))
    if i % 2 == 0:
        nodes.append(helper.make_node("Tanh", [f"g{i}"], [out]))
    name = out
graph = helper.make_graph(
    nodes, "autoencoder",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
    [helper.make_tensor_value_info("code", TensorProto.FLOAT, ["n", 3]),
     helper.make_tensor_value_info("reconstruction", TensorProto.FLOAT, ["n", 8])],
    weights,
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
onnx.checker.check_model(model)
onnx.save(model, sys.argv[1])
