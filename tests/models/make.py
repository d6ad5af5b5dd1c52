"""Makes the small models of the SQL tests: python tests/models/make.py (needs onnx, see tests/interop/requirements.txt).

Their results can be worked out by hand: `mean` gives the mean of a and b as the code and twice the mean as the
reconstruction, so for (1, 3) the code is 2, the reconstruction (2, 2) and the error ((1-2)² + (3-2)²) / 2 = 1.
"""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
FLOAT = TensorProto.FLOAT


def tensor(name, values):
    return numpy_helper.from_array(np.array(values, dtype=np.float32), name)


def value(name, shape, element=FLOAT):
    return helper.make_tensor_value_info(name, element, shape)


def save(name, nodes, inputs, outputs, weights=(), metadata=None, domains=()):
    graph = helper.make_graph(list(nodes), name, inputs, outputs, list(weights))
    opsets = [helper.make_opsetid("", 18)] + [helper.make_opsetid(domain, 1) for domain in domains]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="by hand")
    if metadata:
        helper.set_model_props(model, metadata)
    onnx.save(model, HERE / f"{name}.onnx")


ENCODE = helper.make_node("MatMul", ["x", "half"], ["code"])
DECODE = helper.make_node("MatMul", ["code", "one"], ["reconstruction"])
HALF, ONE = tensor("half", [[0.5], [0.5]]), tensor("one", [[1.0, 1.0]])
X, CODE, RECONSTRUCTION = value("x", ["N", 2]), value("code", ["N", 1]), value("reconstruction", ["N", 2])
FEATURES = json.dumps([{"name": "a", "type": "Float32"}, {"name": "b", "type": "Float32"}])


def main():
    save("mean", [ENCODE, DECODE], [X], [CODE, RECONSTRUCTION], [HALF, ONE])
    save("mean_named", [ENCODE, DECODE], [X], [CODE, RECONSTRUCTION], [HALF, ONE], {"aefusion.features": FEATURES})
    # weights in a file beside the model, as PyTorch exports them
    (HERE / "scattered").mkdir(exist_ok=True)
    data = HERE / "scattered" / "mean.onnx.data"
    data.unlink(missing_ok=True)  # onnx appends
    onnx.save(onnx.load(HERE / "mean.onnx"), HERE / "scattered" / "mean.onnx", save_as_external_data=True,
              location=data.name, size_threshold=0)
    data.chmod(0o644)
    save("encoder_only", [ENCODE], [X], [CODE], [HALF])

    # null features read NaN and become 0: (null, 4) has the code 2 and the reconstruction (2, 2)
    impute = [
        helper.make_node("IsNaN", ["x"], ["is_missing"]),
        helper.make_node("Where", ["is_missing", "zero", "x"], ["filled"]),
        helper.make_node("MatMul", ["filled", "half"], ["code"]),
        DECODE,
    ]
    save("impute", impute, [X], [CODE, RECONSTRUCTION], [HALF, ONE, tensor("zero", 0.0)],
         {"aefusion.features": FEATURES, "aefusion.null_policy": "impute"})

    # scaled space: everything times 10, so errors are 100 times as large
    scaled = [
        helper.make_node("Mul", ["x", "ten"], ["scaled"]),
        ENCODE,
        DECODE,
        helper.make_node("Mul", ["reconstruction", "ten"], ["scaled_reconstruction"]),
    ]
    save("scaled", scaled, [X], [CODE, RECONSTRUCTION, value("scaled", ["N", 2]), value("scaled_reconstruction", ["N", 2])],
         [HALF, ONE, tensor("ten", 10.0)])

    # one input a column, of other types
    typed = [
        helper.make_node("Cast", ["flag"], ["flag_f"], to=FLOAT),
        helper.make_node("Cast", ["count"], ["count_f"], to=FLOAT),
        helper.make_node("Concat", ["flag_f", "count_f"], ["x"], axis=1),
        ENCODE,
        DECODE,
    ]
    save("typed", typed, [value("flag", ["N", 1], TensorProto.BOOL), value("count", ["N", 1], TensorProto.INT16)],
         [CODE, RECONSTRUCTION], [HALF, ONE], {"aefusion.features": json.dumps([{"name": "flag"}, {"name": "count"}])})

    # the reconstruction is what went in: one input a column, and one input of float16
    kept = [ENCODE, helper.make_node("Abs", ["x"], ["reconstruction"])]
    save("columns_kept", [helper.make_node("Concat", ["a", "b"], ["x"], axis=1), *kept],
         [value("a", ["N", 1]), value("b", ["N", 1])], [CODE, RECONSTRUCTION], [HALF])
    half = TensorProto.FLOAT16
    save("float16_kept", [helper.make_node("Cast", ["x16"], ["x"], to=FLOAT), *kept],
         [value("x16", ["N", 2], half)], [CODE, RECONSTRUCTION], [HALF])

    # Dropout that is switched off is not random
    off = [
        ENCODE,
        helper.make_node("Dropout", ["code", "ratio", "training"], ["kept"]),
        helper.make_node("MatMul", ["kept", "one"], ["reconstruction"]),
    ]
    training = numpy_helper.from_array(np.array(False), "training")
    save("dropout", off, [X], [CODE, RECONSTRUCTION], [HALF, ONE, tensor("ratio", 0.5), training])

    # the reconstruction is looked up among three: 0 gives 1, 1 gives 3, 2 gives 5, and 3 cannot be run
    lookup = [
        helper.make_node("Identity", ["x"], ["code"]),
        helper.make_node("Cast", ["code"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["reconstruction"]),
    ]
    save("lookup", lookup, [value("x", ["N", 1])], [value("code", ["N", 1]), value("reconstruction", ["N", 1])],
         [tensor("table", [1.0, 3.0, 5.0])], {"aefusion.features": json.dumps([{"name": "a", "type": "Float32"}])})

    # refused, each for one reason
    second = helper.make_node("MatMul", ["x", "half"], ["right"])
    left = helper.make_node("MatMul", ["x", "half"], ["left"])
    save("ambiguous", [left, second, helper.make_node("MatMul", ["left", "one"], ["reconstruction"])], [X],
         [value("left", ["N", 1]), value("right", ["N", 1]), RECONSTRUCTION], [HALF, ONE])
    noisy = [
        ENCODE,
        helper.make_node("RandomNormalLike", ["code"], ["noise"]),
        helper.make_node("Add", ["code", "noise"], ["sampled"]),
        helper.make_node("MatMul", ["sampled", "one"], ["reconstruction"]),
    ]
    save("random", noisy, [X], [CODE, RECONSTRUCTION], [HALF, ONE])
    save("custom_operator", [helper.make_node("Evil", ["x"], ["code"], domain="my.ops"), DECODE], [X],
         [CODE, RECONSTRUCTION], [ONE], domains=["my.ops"])
    external = tensor("half", [[0.5], [0.5]])
    external.ClearField("raw_data")
    external.data_location = TensorProto.EXTERNAL
    entry = external.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    save("external_data", [ENCODE, DECODE], [X], [CODE, RECONSTRUCTION], [external, ONE])
    save("nothing", [helper.make_node("Shape", ["x"], ["shape"])], [X], [value("shape", [2], TensorProto.INT64)])
    save("open_shape", [ENCODE, DECODE], [value("x", ["N", "F"])], [CODE, RECONSTRUCTION], [HALF, ONE])
    (HERE / "not_onnx.onnx").write_bytes(b"this is not a protobuf at all, it is a sentence")
    (HERE / "truncated.onnx").write_bytes((HERE / "mean.onnx").read_bytes()[:-20])


def wide():
    """Graphs whose activations are much wider than their rows."""
    # 524,288 numbers a row between two convolutions
    def kernel(name, *shape):
        values = np.sin(np.arange(np.prod(shape), dtype=np.float64)) / 10
        return numpy_helper.from_array(values.reshape(shape).astype(np.float32), name)

    pixels = [
        helper.make_node("Conv", ["x", "first"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["code"]),
        helper.make_node("Conv", ["r", "second"], ["reconstruction"], pads=[1, 1, 1, 1]),
    ]
    image = [3, 128, 128]
    save("wide_convolution", pixels, [value("x", ["N", *image])],
         [value("code", ["N", 32]), value("reconstruction", ["N", *image])],
         [kernel("first", 32, 3, 3, 3), kernel("second", 3, 32, 3, 3)])
    # a row becomes 2^22 + 2^18 numbers, all the same, and their mean: the code is the feature
    size = numpy_helper.from_array(np.array([1, 2**22 + 2**18], dtype=np.int64), "size")
    huge = [
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("Add", ["x", "zeros"], ["copies"]),
        helper.make_node("ReduceMean", ["copies", "axis"], ["code"]),
    ]
    save("wide_row", huge, [value("x", ["N", 1])], [value("code", ["N", 1])],
         [size, numpy_helper.from_array(np.array([1], dtype=np.int64), "axis")])


if __name__ == "__main__":
    main()
    wide()
