"""Makes variational autoencoders in training mode: python tests/foreign/variational.py

Needs torch, onnx, onnxscript and onnxruntime, see tests/interop/requirements.txt. PyTorch exports the random numbers of
the forward pass, and Dropout in training mode. Prints what PyTorch gives with dropout off and noise 0: the numbers of
tests/slt/foreign_random.slt.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
F, I = np.float32, np.int64
ROWS = np.array([[1, 2, 3, 4], [0, -1, 0, 2]], dtype=F)


class Variational(torch.nn.Module):
    def __init__(self, mean_only=False):
        super().__init__()
        self.mean_only = mean_only
        self.hidden, self.mu = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)
        self.logvar, self.out = torch.nn.Linear(3, 2), torch.nn.Linear(2, 4)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x):
        h = self.dropout(torch.tanh(self.hidden(x)))
        mu, logvar = self.mu(h), self.logvar(h)
        noise = 0 if self.mean_only else torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return self.out(mu + noise), mu, logvar


def from_torch():
    torch.manual_seed(7)
    model = Variational()
    names = {"input_names": ["x"], "output_names": ["recon", "mu", "logvar"]}
    axes = {name: {0: "N"} for name in ["x", "recon", "mu", "logvar"]}
    torch.onnx.export(model.train(), (torch.zeros(3, 4),), HERE / "variational.onnx", dynamo=False, dynamic_axes=axes,
                      training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False, **names)
    torch.onnx.export(model.eval(), (torch.zeros(3, 4),), HERE / "variational_dynamo.onnx", dynamo=True,
                      dynamic_shapes=({0: torch.export.Dim("N")},), external_data=False, **names)
    for name in ("variational", "variational_dynamo"):
        file = onnx.load(HERE / f"{name}.onnx")
        for node in file.graph.node:  # they name folders of this machine
            del node.metadata_props[:]
            node.doc_string = ""
        del file.graph.value_info[:]
        onnx.save(file, HERE / f"{name}.onnx")
        print(name, [node.op_type for node in file.graph.node if "Random" in node.op_type or node.op_type == "Dropout"])
    mean = Variational(mean_only=True)
    mean.load_state_dict(model.state_dict())
    with torch.no_grad():
        recon, mu, _ = mean.eval()(torch.from_numpy(ROWS))
    print("error", ((torch.from_numpy(ROWS) - recon) ** 2).mean(dim=1).numpy().round(5), "code", mu.numpy().round(5))


def by_hand():
    """x + noise, then a code: noise of each kind, in a branch and in a function."""
    node = helper.make_node
    weights = [numpy_helper.from_array(np.array(values, dtype=F), name) for name, values in
               {"we": [[1, 0], [0, 1], [1, 1], [0, 2]], "wd": [[1, 0, 1, 0], [0, 1, 0, 1]]}.items()]
    ends = [node("Add", ["x", "noise"], ["y"]), node("MatMul", ["y", "we"], ["code"]), node("MatMul", ["code", "wd"], ["recon"])]
    uniform = node("RandomUniform", [], ["noise"], shape=[1, 4], low=1.0, high=2.0)
    normal = node("RandomNormalLike", ["x"], ["noise"], mean=0.25)
    half = node("RandomUniformLike", ["x"], ["noise"], dtype=TensorProto.FLOAT)
    choice = [node("Multinomial", ["x"], ["drawn"], sample_size=4), node("Cast", ["drawn"], ["noise"], to=TensorProto.FLOAT)]
    kept = [node("Dropout", ["x", "half", "yes"], ["shown", "mask"]), node("Cast", ["mask"], ["noise"], to=TensorProto.FLOAT)]
    yes = numpy_helper.from_array(np.array(True), "yes")
    ratio = numpy_helper.from_array(np.array(0.5, dtype=F), "half")
    branch = {f"{kind}_branch": helper.make_graph([node(*each)], kind, [], [helper.make_empty_tensor_value_info(each[2][0])])
              for kind, each in {"then": ("RandomNormalLike", ["x"], ["a"]), "else": ("Identity", ["x"], ["b"])}.items()}
    called = helper.make_function("own", "Noise", ["t"], ["r"], [node("RandomNormalLike", ["t"], ["r"], mean=3.0)],
                                  [helper.make_opsetid("", 18)])
    for name, nodes, functions in (("uniform", [uniform], []), ("normal_like", [normal], []), ("uniform_like", [half], []),
                                   ("multinomial", choice, []), ("dropout", kept, []),
                                   ("branch", [node("If", ["yes"], ["noise"], **branch)], []),
                                   ("function", [node("Noise", ["x"], ["noise"], domain="own")], [called])):
        value = helper.make_tensor_value_info
        graph = helper.make_graph([*nodes, *ends], name, [value("x", TensorProto.FLOAT, ["N", 4])],
                                  [value("recon", TensorProto.FLOAT, ["N", 4]), value("code", TensorProto.FLOAT, ["N", 2])],
                                  [*weights, yes, ratio])
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=9, producer_name="by hand", functions=functions)
        onnx.save(model, HERE / f"random_{name}.onnx")


if __name__ == "__main__":
    from_torch()
    by_hand()
