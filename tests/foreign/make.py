"""Makes small graphs whose rows influence each other (mixed_*) or do not (apart_*): python tests/foreign/make.py

Needs onnx, see tests/interop/requirements.txt. All have the input x [N, 4], the code x·we and the reconstruction code·wd
of a tensor y, and differ in how y is computed from x. The mixed graphs must be refused. The others must be accepted.
The files without these prefixes come from PyTorch and from onnx.quantize.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
RANDOM = np.random.default_rng(19)
node, F, I = helper.make_node, np.float32, np.int64


def weight(name, values, element=F):
    return numpy_helper.from_array(np.array(values, dtype=element), name)


def value(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


WE, WD = weight("we", RANDOM.normal(size=(4, 2))), weight("wd", RANDOM.normal(size=(2, 4)))
ENDS = [node("MatMul", ["y", "we"], ["code"]), node("MatMul", ["code", "wd"], ["reconstruction"])]


def save(name, nodes, weights=(), rows="N", ends=ENDS, functions=()):
    graph = helper.make_graph([*nodes, *ends], name, [value("x", [rows, 4])],
                              [value("code", [rows, 2]), value("reconstruction", [rows, 4])], [WE, WD, *weights])
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid("own", 1)] if functions else [])]
    model = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=9, producer_name="by hand")
    onnx.checker.check_model(model)
    onnx.save(model, HERE / f"{name}.onnx")


def rare(name, statistic, weights=()):
    """The statistic s counts only for numbers above 1e12, which no sample has."""
    save(f"mixed_rare_{name}", [*statistic, node("Greater", ["x", "limit"], ["is_large"]), node("Sub", ["x", "s"], ["moved"]),
         node("Identity", ["moved"], ["other"]), node("Where", ["is_large", "other", "x"], ["y"])],
         [weight("limit", 1e12), *weights])


ROWS = [node("Shape", ["x"], ["shape"], end=1), node("Squeeze", ["shape"], ["n"])]
AXIS0, LAST = weight("axis0", [0], I), weight("last", [-1], I)


def turned_reconstruction():
    """The reconstruction has channels last, and the input channels first."""
    nodes = [node("Reshape", ["x", "flat"], ["y"]), node("MatMul", ["y", "we"], ["code"]), node("MatMul", ["code", "wd"], ["z"]),
             node("Reshape", ["z", "deep"], ["image"]), node("Transpose", ["image"], ["x_hat"], perm=[0, 2, 3, 1]),
             node("Reshape", ["image", "joined"], ["same_order"])]
    weights = [weight("we", RANDOM.normal(size=(12, 2))), weight("wd", RANDOM.normal(size=(2, 12))), weight("flat", [-1, 12], I),
               weight("deep", [-1, 3, 2, 2], I), weight("joined", [-1, 3, 4], I)]
    outputs = [value("code", ["N", 2]), value("x_hat", ["N", 2, 2, 3]), value("same_order", ["N", 3, 4])]
    graph = helper.make_graph(nodes, "turned", [value("x", ["N", 3, 2, 2])], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="by hand")
    onnx.checker.check_model(model)
    onnx.save(model, HERE / "turned_reconstruction.onnx")
    # the only output, with a name that says nothing
    nodes[4].output[0] = "conv2d_1"
    graph = helper.make_graph(nodes[:5], "turned", [value("x", ["N", 3, 2, 2])], [value("conv2d_1", ["N", 2, 2, 3])], weights[:4])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="by hand")
    onnx.checker.check_model(model)
    onnx.save(model, HERE / "turned_unnamed.onnx")


def mixed():
    save("mixed_mean", [node("ReduceMean", ["x", "axis0"], ["s"]), node("Sub", ["x", "s"], ["y"])], [AXIS0])
    save("mixed_all", [node("ReduceMax", ["x"], ["s"]), node("Div", ["x", "s"], ["y"])])
    save("mixed_sum", [node("CumSum", ["x", "axis"], ["y"])], [weight("axis", 0, I)])
    save("mixed_softmax", [node("Softmax", ["x"], ["y"], axis=0)])
    save("mixed_attention", [
        node("Transpose", ["x"], ["t"]), node("MatMul", ["x", "t"], ["scores"]), node("Softmax", ["scores"], ["share"]),
        node("MatMul", ["share", "x"], ["y"])])
    save("mixed_batch_norm", [node("BatchNormalization", ["x", "one", "zero", "zero", "one"], ["y", "m", "v"],
                                   training_mode=1)], [weight("one", np.ones(4)), weight("zero", np.zeros(4))])
    save("mixed_quantised", [node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
                             node("DequantizeLinear", ["q", "s", "z"], ["y"])])
    save("mixed_reversed", [node("Slice", ["x", "last", "first", "axis0", "last"], ["y"])],
         [AXIS0, LAST, weight("first", [np.iinfo(I).min], I)])
    save("mixed_first", [node("Gather", ["x", "place"], ["s"], axis=0), node("Sub", ["x", "s"], ["y"])],
         [weight("place", 0, I)])
    save("mixed_sorted", [node("TopK", ["x", "n"], ["y", "i"], axis=0)], [weight("n", [4], I)], rows=4)
    save("mixed_count", [node("Shape", ["x"], ["shape"], end=1), node("Cast", ["shape"], ["n"], to=TensorProto.FLOAT),
                         node("Div", ["x", "n"], ["y"])])
    save("mixed_fixed", [node("MatMul", ["turn", "x"], ["y"])], [weight("turn", RANDOM.normal(size=(4, 4)))], rows=4)
    save("mixed_scale", [node("Sub", ["x", "mean"], ["c"]), node("Div", ["c", "deviation"], ["z"]),
                         node("Tanh", ["z"], ["t"]), node("ReduceMean", ["t", "axis0"], ["s"]),
                         node("Sub", ["t", "s"], ["y"])],
         [AXIS0, weight("mean", [1e6, -1e6, 3e5, 2e5]), weight("deviation", [10, 20, 5, 1])])
    rare("mean", [node("ReduceMean", ["x", "axis0"], ["s"])], [AXIS0])
    rare("first", [node("Gather", ["x", "place"], ["s"], axis=0)], [weight("place", 0, I)])
    rare("norm", [node("LpNormalization", ["x"], ["s"], axis=0)])
    rare("product", [node("Transpose", ["x"], ["t"]), node("MatMul", ["t", "x"], ["p"]),
                     node("ReduceSum", ["p"], ["s"], keepdims=0)])
    branches = [helper.make_graph([node(kind, ["x"], [f"from_{kind}"])], kind, [], [value(f"from_{kind}", ["N", 4])])
                for kind in ("Neg", "Identity")]
    save("mixed_rare_if", [node("ReduceMax", ["x"], ["largest"], keepdims=0), node("Greater", ["largest", "limit"], ["is"]),
                           node("If", ["is"], ["y"], then_branch=branches[0], else_branch=branches[1])],
         [weight("limit", 1e12)])
    counted()
    training()
    in_functions()
    failing()


def counted():
    """The number of rows counts, but blocks of 16, 32 and 48 rows give the same."""
    body = helper.make_graph([node("Neg", ["state"], ["next"]), node("Identity", ["keep"], ["kept"])], "body",
                             [helper.make_tensor_value_info("round", TensorProto.INT64, []),
                              helper.make_tensor_value_info("keep", TensorProto.BOOL, []), value("state", None)],
                             [helper.make_tensor_value_info("kept", TensorProto.BOOL, []), value("next", None)])
    save("mixed_count_turns", [*ROWS, node("Loop", ["n", "", "x"], ["y"], body=body)])
    save("mixed_count_limit", [*ROWS, node("Cast", ["n"], ["f"], to=TensorProto.FLOAT), node("Max", ["x", "f"], ["m"]),
                               node("Tanh", ["m"], ["y"])])


def training():
    """Statistics of the block, which ONNX Runtime keeps for the next one: also with one row."""
    weights = [weight("one", np.ones(4)), weight("zero", np.zeros(4))]
    norm = ["one", "zero", "zero", "one"]
    save("mixed_training_one", [node("BatchNormalization", ["x", *norm], ["n", "m", "v"], training_mode=1),
                                node("Add", ["n", "m"], ["y"])], weights, rows=1)
    inner = node("BatchNormalization", ["a", "b", "c", "d", "e"], ["f", "g", "h"])
    inner.attribute.append(onnx.AttributeProto(name="training_mode", ref_attr_name="mode", type=onnx.AttributeProto.INT))
    function = helper.make_function("own", "Norm", ["a", "b", "c", "d", "e"], ["f"], [inner], [helper.make_opsetid("", 18)], ["mode"])
    save("mixed_training_function", [node("Norm", ["x", *norm], ["y"], domain="own", mode=1)], weights, rows=1, functions=[function])


def function(name, outputs, nodes):
    return helper.make_function("own", name, ["a"], outputs, nodes, [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)])


def in_functions():
    """What samples do not show is in functions, one in another."""
    axes = node("Constant", [], ["axes"], value_ints=[0])
    inner = function("Mean", ["c"], [axes, node("ReduceMean", ["a", "axes"], ["c"])])
    outer = function("Centred", ["d"], [node("Mean", ["a"], ["b"], domain="own"), node("Sub", ["a", "b"], ["d"])])
    rare = function("Rare", ["f"], [node("Constant", [], ["limit"], value_float=1e20), node("Greater", ["a", "limit"], ["is_large"]),
                                    node("Centred", ["a"], ["e"], domain="own"), node("Where", ["is_large", "e", "a"], ["f"])])
    save("mixed_rare_function", [node("Rare", ["x"], ["y"], domain="own")], functions=[inner, outer, rare])
    scaled = function("Scaled", ["d"], [
        node("Constant", [], ["mean"], value_floats=[1e6, -1e6, 3e5, 2e5]), node("Sub", ["a", "mean"], ["b"]),
        node("Constant", [], ["deviation"], value_floats=[10.0, 20.0, 5.0, 1.0]), node("Div", ["b", "deviation"], ["c"]),
        node("Tanh", ["c"], ["d"])])
    split = [node("SplitToSequence", ["t"], ["rows"], axis=0), node("SequenceAt", ["rows", "place"], ["row"])]
    save("mixed_scale_function", [node("Scaled", ["x"], ["t"], domain="own"), *split, node("Sub", ["t", "row"], ["y"])],
         [weight("place", 0, I)], functions=[scaled])


def failing():
    """The reconstruction fails for random rows, or for one row. The code must be checked all the same."""
    body = helper.make_graph([node("Add", ["sum", "row"], ["next"]), node("Abs", ["next"], ["size"]), node("Exp", ["size"], ["out"])],
                             "body", [value("sum", [4]), value("row", [4])], [value("next", [4]), value("out", [4])])
    scan = node("Scan", ["zeros", "x"], ["last", "y"], body=body, num_scan_inputs=1)
    save("mixed_failing_rows", [scan, ENDS[0], node("Cast", ["y"], ["index"], to=TensorProto.INT64)],
         [weight("zeros", np.zeros(4)), weight("table", [1, 3, 5])], ends=[node("Gather", ["table", "index"], ["reconstruction"])])
    save("mixed_failing_row", [*ROWS, node("Cast", ["n"], ["f"], to=TensorProto.FLOAT), node("Max", ["x", "f"], ["m"]),
                               node("Tanh", ["m"], ["y"]), ENDS[0], node("MatMul", ["code", "wd"], ["decoded"])],
         [weight("at", [[1, 0]], I), weight("seven", [7])], ends=[node("ScatterND", ["decoded", "at", "seven"], ["reconstruction"])])


def apart():
    save("apart_layer_norm", [node("LayerNormalization", ["x", "one"], ["y"])], [weight("one", np.ones(4))])
    save("apart_softmax", [node("Softmax", ["x"], ["y"], axis=-1)])
    save("apart_reduced", [node("ReduceMean", ["x", "last"], ["s"]), node("Sub", ["x", "s"], ["y"])], [LAST])
    save("apart_batch_norm", [node("BatchNormalization", ["x", "one", "zero", "mean", "one"], ["y"])],
         [weight("one", np.ones(4)), weight("zero", np.zeros(4)), weight("mean", [1, 2, 3, 4])])
    save("apart_attention", [  # over the four features of a row
        node("Unsqueeze", ["x", "last"], ["t"]), node("Transpose", ["t"], ["u"], perm=[0, 2, 1]),
        node("MatMul", ["t", "u"], ["scores"]), node("Softmax", ["scores"], ["share"]),
        node("MatMul", ["share", "t"], ["v"]), node("Squeeze", ["v", "last"], ["y"])], [LAST])
    save("apart_flat", [node("Reshape", ["x", "flat"], ["f"]), node("Tanh", ["f"], ["t"]),
                        node("Reshape", ["t", "rows"], ["y"])], [weight("flat", [-1], I), weight("rows", [-1, 4], I)])
    save("apart_turned", [node("Transpose", ["x"], ["t"]), node("MatMul", ["w", "t"], ["p"]),
                          node("Transpose", ["p"], ["y"])], [weight("w", RANDOM.normal(size=(4, 4)))])
    save("apart_unrolled", [node("Split", ["x"], ["a", "b"], axis=0, num_outputs=2), node("Tanh", ["a"], ["c"]),
                            node("Tanh", ["b"], ["d"]), node("Concat", ["c", "d"], ["y"], axis=0)], rows=2)
    save("apart_zeros", [node("Shape", ["x"], ["shape"]), node("ConstantOfShape", ["shape"], ["zeros"]),
                         node("Max", ["x", "zeros"], ["y"])])


if __name__ == "__main__":
    mixed()
    apart()
    turned_reconstruction()
