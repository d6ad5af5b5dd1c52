"""Case with a text column: scikit-learn's preprocessing (skl2onnx) joined to a PyTorch autoencoder."""

import numpy as np
import onnx
import pandas as pd
import skl2onnx
import sklearn
from onnx import compose
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn

from common import LEGACY, ROWS, case, double, export, mlp, run, tidy, train

LEVELS = ["AT", "CH", "DE", "España", "FR"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = mlp(7, 6, 2), mlp(2, 6, 7)

    def forward(self, scaled):
        code = self.encoder(scaled)
        return code, self.decoder(code)


def payments(seed, n):
    rng = np.random.default_rng(seed)
    level = rng.integers(0, len(LEVELS), n)
    age = rng.integers(18, 80, n)
    amount = 20 + 15 * level + 0.5 * age + rng.normal(0, 3, n)
    return pd.DataFrame({"amount": amount.astype(np.float32), "country": np.array(LEVELS, object)[level],
                         "age": age.astype(np.int64)})


def strings():
    fit, data = payments(1, 512), payments(2, ROWS)
    data.loc[[7, 31], "country"] = ["Österreich", ""]  # levels the encoder has not seen: all zeros
    before = ColumnTransformer([("numbers", StandardScaler(), ["amount", "age"]),
                                ("words", OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["country"])])
    before.fit(fit)
    net = train(Net, before.transform(fit).astype(np.float32))
    path = export(net, (np.zeros((2, 7), np.float32),), "strings", ["input"], ["code", "scaled_reconstruction"])
    second = compose.add_prefix(onnx.load(path), "net/", rename_inputs=False, rename_outputs=False)

    types = [("amount", FloatTensorType([None, 1])), ("country", StringTensorType([None, 1])),
             ("age", Int64TensorType([None, 1]))]
    first = skl2onnx.to_onnx(before, initial_types=types,
                             target_opset={"": second.opset_import[0].version, "ai.onnx.ml": 1})
    first.ir_version = second.ir_version

    # one file: the first model's output, called `scaled`, is the second one's input
    produced = first.graph.output[0].name
    first = compose.add_prefix(first, "prep/", rename_inputs=False, rename_outputs=False)
    for node in first.graph.node:
        node.output[:] = ["scaled" if o == produced else o for o in node.output]
        node.input[:] = ["scaled" if i == produced else i for i in node.input]
    first.graph.output[0].name = "scaled"
    both = compose.merge_models(first, second, io_map=[("scaled", "input")],
                                outputs=["code", "scaled", "scaled_reconstruction"])
    versions = {o.domain: o.version for o in both.opset_import}  # the joined list has an entry twice
    del both.opset_import[:]
    both.opset_import.extend(onnx.helper.make_opsetid(*v) for v in sorted(versions.items()))
    onnx.save(both, path)
    tidy(path)

    feed = {"amount": data[["amount"]].to_numpy(np.float32), "age": data[["age"]].to_numpy(np.int64),
            "country": data[["country"]].to_numpy(object)}
    out = run(path, feed)
    scaled = before.transform(data)
    assert (scaled[[7, 31], 2:] == 0).all() and np.allclose(out["scaled"], scaled, rtol=1e-5, atol=1e-6)
    columns = {"amount": feed["amount"][:, 0], "country": data["country"].tolist(), "age": feed["age"][:, 0]}
    made_by = f"scikit-learn {sklearn.__version__}, skl2onnx {skl2onnx.__version__}; {LEGACY}; onnx.compose"
    return case("strings", made_by, columns, None, out["code"], target=out["scaled"],
                more={k: out[k] for k in ("scaled", "scaled_reconstruction")}, reference=double(net, out["scaled"]))


def cases():
    return [strings()]
