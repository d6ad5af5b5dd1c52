"""Makes recurrent autoencoders with a free number of rows: python tests/foreign/recurrent.py

Needs torch, onnx, onnxscript and onnxruntime, see tests/interop/requirements.txt. PyTorch makes the first state of an
LSTM as zeros of the size of the batch, and so writes an edge from the input that carries only its shape. Prints what
onnxruntime gives for the rows of tests/slt/foreign_roles.slt.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

HERE = Path(__file__).resolve().parent


class Recurrent(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.encoder, self.decoder = kind(2, 3, batch_first=True), kind(3, 4, batch_first=True)
        self.out = torch.nn.Linear(4, 2)

    def forward(self, x):
        state = self.encoder(x)[1]
        code = (state[0] if isinstance(state, tuple) else state)[-1]
        return self.out(self.decoder(code.unsqueeze(1).repeat(1, x.shape[1], 1))[0])


def save(name, kind, dynamo):
    torch.manual_seed(19)
    model, path = Recurrent(kind).eval(), HERE / f"{name}.onnx"
    names = {"input_names": ["x"], "output_names": ["x_hat"]}
    if dynamo:
        shapes = ({0: torch.export.Dim("N")},)
        torch.onnx.export(model, (torch.zeros(3, 5, 2),), path, dynamo=True, dynamic_shapes=shapes, external_data=False,
                          **names)
    else:
        axes = {"x": {0: "N"}, "x_hat": {0: "N"}}
        torch.onnx.export(model, (torch.zeros(3, 5, 2),), path, dynamo=False, dynamic_axes=axes, **names)
    file = onnx.load(path)
    for node in file.graph.node:  # they name folders of this machine
        del node.metadata_props[:]
        node.doc_string = ""
    del file.graph.value_info[:]
    onnx.save(file, path)
    rows = np.stack([np.arange(1, 11), np.zeros(10)]).astype(np.float32).reshape(2, 5, 2)
    x_hat = onnxruntime.InferenceSession(path).run(None, {"x": rows})[0]
    with torch.no_grad():
        code = model.encoder(torch.from_numpy(rows))[1]
    code = (code[0] if isinstance(code, tuple) else code)[-1].numpy()
    print(name, sum(node.op_type == "Shape" for node in file.graph.node), "error", ((rows - x_hat) ** 2).mean(axis=(1, 2)).round(4), "code", code.round(4))


if __name__ == "__main__":
    save("recurrent", torch.nn.LSTM, dynamo=False)
    save("recurrent_dynamo", torch.nn.LSTM, dynamo=True)
    save("recurrent_gru", torch.nn.GRU, dynamo=False)
