"""Trains the demo's autoencoder and exports it: python examples/demo/make_model.py

satimage-2.parquet holds 5803 pixels of a satellite picture, 71 of them (cotton fields) out of place: f0 to f35 are
four spectral bands of the pixel's 3 by 3 neighbourhood, pixel after pixel. The network sees the rows with fit_0.
"""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

HERE = Path(__file__).resolve().parent
FEATURES = [f"f{i}" for i in range(36)]


class Autoencoder(nn.Module):
    """36-16-2-16-36. Takes and gives raw columns; the scaling is part of the graph."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.encoder = nn.Sequential(nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 2))
        self.decoder = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 36))

    def forward(self, features):
        scaled = (features - self.mean) / self.std
        code = self.encoder(scaled)
        scaled_reconstruction = self.decoder(code)
        return code, scaled_reconstruction * self.std + self.mean, scaled, scaled_reconstruction


def train(x, epochs=60, batch=128):
    torch.manual_seed(0)
    model = Autoencoder(x.mean(0), x.std(0))
    adam = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    for epoch in range(1, epochs + 1):
        total = 0.0
        for rows in torch.randperm(len(x)).split(batch):
            _, _, scaled, rebuilt = model(x[rows])
            loss = ((rebuilt - scaled) ** 2).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            total += loss.item() * len(rows)
        if epoch % 10 == 0:
            print(f"epoch {epoch}: loss {total / len(x):.4f}")
    return model.eval()


def export(model, x, path):
    torch.onnx.export(model, (x,), str(path), input_names=["features"],
                      output_names=["code", "reconstruction", "scaled", "scaled_reconstruction"],
                      dynamo=True, external_data=False, dynamic_shapes=({0: torch.export.Dim("N")},), verbose=False)
    file = onnx.load(path)
    for node in file.graph.node:
        node.ClearField("metadata_props")  # stack traces of the export
    onnx.checker.check_model(file, full_check=True)
    onnx.save(file, path)


def main():
    torch.set_num_threads(1)
    table = pd.read_parquet(HERE / "satimage-2.parquet")
    x = table[FEATURES].to_numpy(np.float32)
    fit = table["fit_0"].to_numpy()
    path = HERE / "satimage-2.onnx"
    export(train(torch.tensor(x[fit])), torch.tensor(x[:2]), path)

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    scaled, rebuilt = session.run(["scaled", "scaled_reconstruction"], {"features": x})
    error = ((rebuilt.astype(np.float64) - scaled.astype(np.float64)) ** 2).mean(axis=1)
    auroc = roc_auc_score(table["label"][~fit], error[~fit])
    print(f"AUROC on the {(~fit).sum()} rows NOT fit_0: {auroc:.6f}")

    rows = np.flatnonzero(~fit)
    top = rows[np.argsort(-error[rows], kind="stable")[:10]]
    expected = {
        "auroc": float(auroc),
        "auroc_rows": "NOT fit_0",
        "top10_rows": "NOT fit_0",
        "top10": [[int(table["id"][i]), float(error[i])] for i in top],
    }
    (HERE / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    main()
