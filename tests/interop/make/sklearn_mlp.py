"""Cases made by scikit-learn and skl2onnx: an MLPRegressor fitted to give its input back."""

import numpy as np
import onnx
import skl2onnx
import sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.neural_network import MLPRegressor

from common import OUT, ROWS, case, narrowest, numbered, process, rows, run, tidy

X = rows()
MADE_BY = f"scikit-learn {sklearn.__version__}, skl2onnx {skl2onnx.__version__}"


def fitted():
    x = process(1, 512).astype(np.float64)
    net = MLPRegressor(hidden_layer_sizes=(8, 3, 8), learning_rate_init=1e-2, max_iter=300, random_state=1)
    return net.fit(x, x)


def by_hand(net, x):
    """Code and reconstruction in float64, from the float32 weights that go into the file."""
    values = [x]
    for weight, bias in zip(net.coefs_, net.intercepts_):
        weight, bias = (a.astype(np.float32).astype(np.float64) for a in (weight, bias))
        values.append(np.maximum(values[-1] @ weight + bias, 0 if len(values) < 4 else -np.inf))
    assert np.allclose(values[4], net.predict(x), rtol=1e-5, atol=1e-5)
    return values[2], values[4]


def drop_reshape(model):
    """The usual repair: the file ends where its last Reshape starts."""
    last = model.graph.node[-1]
    assert last.op_type == "Reshape" and last.output[0] == "variable"
    assert model.graph.initializer[-1].name == last.input[1]
    before = next(n for n in model.graph.node if last.input[0] in n.output)
    before.output[:] = ["variable"]
    del model.graph.node[-1], model.graph.initializer[-1]  # the Reshape and its shape
    del model.graph.output[0].type.tensor_type.shape.dim[1:]
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 12


def sklearn_case(name, net, repaired):
    model = skl2onnx.to_onnx(net, initial_types=[("X", FloatTensorType([None, 12]))])
    if repaired:
        drop_reshape(model)
    path = OUT / f"{name}.onnx"
    onnx.save(model, path)
    tidy(path)
    code = narrowest(path, 3)
    out = run(path, {"X": X}, extra=[code])
    # skl2onnx ends every MLPRegressor with Reshape(-1, 1): N rows of 12 come out as [12 N, 1], row after row
    assert out["variable"].shape == ((ROWS, 12) if repaired else (12 * ROWS, 1))
    return case(name, MADE_BY + (", last Reshape removed" if repaired else ""), numbered(X), X, out[code],
                out["variable"].reshape(ROWS, 12), reference=by_hand(net, X.astype(np.float64)), atol=2e-6,
                reason="float32 rounding (6e-8 relative); the floor is for values near 0 that come from terms of "
                       "order 2 to 8, as the outlier rows have")


def cases():
    net = fitted()
    return [sklearn_case("sklearn_mlp", net, False), sklearn_case("sklearn_mlp_2d", net, True)]
