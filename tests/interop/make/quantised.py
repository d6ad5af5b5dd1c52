"""Case made by onnxruntime's quantiser: `dense` in int8, QuantizeLinear/DequantizeLinear pairs."""

import logging
import math

import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from common import LEGACY, OUT, case, numbered, process, rows, run, tidy

logging.getLogger().setLevel(logging.ERROR)  # advice to preprocess, which so small a network does not need


class Rows(CalibrationDataReader):
    def __init__(self, x):
        self.blocks = iter([{"input": x}])

    def get_next(self):
        return next(self.blocks, None)


def step(path):
    """The largest quantisation step of an activation."""
    graph = onnx.load(path).graph
    known = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    return max(float(known[n.input[1]].max()) for n in graph.node if n.op_type == "QuantizeLinear")


def quantised_qdq():
    path = OUT / "quantised_qdq.onnx"
    # 7-bit weights: pairs of 8-bit products can overflow 16 bits on a CPU without VNNI
    quantize_static(OUT / "dense.onnx", path, Rows(process(1, 512)), quant_format=QuantFormat.QDQ,
                    activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, reduce_range=True)
    tidy(path)
    x = rows()
    # without optimisation the products are in float32 between the pairs: how another program may well do it
    floats = run(path, {"input": x}, optimise=False)
    out, plain = run(path, {"input": x}), run(OUT / "dense.onnx", {"input": x})
    near = slice(0, 9)  # ordinary rows; outliers are clipped to the calibrated range
    for name in ("code", "reconstruction"):
        print(f"  quantised against dense, {name}: {abs(out[name] - plain[name])[near].max():.3f}")
    atol = math.ceil(1.01 * step(path) * 1000) / 1000
    return case("quantised_qdq", f"{LEGACY}; onnxruntime {ort.__version__} quantize_static, QDQ int8", numbered(x), x,
                out["code"], out["reconstruction"], rtol=0.05, atol=atol,
                reference=(floats["code"], floats["reconstruction"]),
                reason="one quantisation step (the largest scale in the file): a value on the edge between two steps "
                       "falls to either side when sums are ordered or scales folded otherwise. The relative part is "
                       "for the error: a step in every feature moves it by 2 d step + step^2 for a residual d")


def cases():
    return [quantised_qdq()]
