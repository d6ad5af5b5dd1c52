"""Writes training.json: what PyTorch computes for small networks of fixed weights, to compare the trainer with.

    pip install -r requirements.txt && python training.py

Weights are [inputs, outputs], row-major, and each layer's bias follows its weight, as in src/train/network.rs.
"""

import json
from pathlib import Path

import numpy as np
import torch

ACTIVATIONS = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "relu6": torch.nn.functional.relu6,
    "elu": torch.nn.functional.elu,
    "selu": torch.selu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
WIDTHS = [5, 4, 3, 4, 5]
ROWS, CLASSES = 7, 3


def optimizer(name, parameters):
    return {
        "adam": lambda: torch.optim.Adam(parameters, lr=0.01),
        "adamw": lambda: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
        "sgd": lambda: torch.optim.SGD(parameters, lr=0.1),
        "rmsprop": lambda: torch.optim.RMSprop(parameters, lr=0.01),
    }[name]()


def flat(tensors):
    return [float(x) for tensor in tensors for x in tensor.detach().numpy().ravel()]


def case(number, activation, loss, optimiser, l1_code):
    rng = np.random.default_rng(number)
    widths = WIDTHS if loss != "cross_entropy" else [5, 4, 3, CLASSES]
    activations = [activation] * (len(widths) - 2) + ["linear"]
    # weights decay in AdamW, biases do not, in the trainer: with zero biases the two agree for one step
    parameters = []
    for inputs, outputs in zip(widths, widths[1:]):
        parameters.append(torch.tensor(rng.normal(0, 0.7, (inputs, outputs)), dtype=torch.float32, requires_grad=True))
        bias = np.zeros(outputs) if optimiser == "adamw" else rng.normal(0, 0.3, outputs)
        parameters.append(torch.tensor(bias, dtype=torch.float32, requires_grad=True))
    rows = rng.normal(0, 1, (ROWS, widths[0])).astype(np.float32)
    missing = rng.random((ROWS, widths[0])) < (0.2 if loss != "cross_entropy" else 0.0)
    labels = rng.integers(0, CLASSES, ROWS)
    given = torch.tensor(~missing, dtype=torch.float32)
    x = torch.tensor(np.where(missing, 0.0, rows).astype(np.float32))
    steps = []
    optimiser_ = optimizer(optimiser, parameters)
    before = flat(parameters)
    for _ in range(3):
        h, code = x, None
        for i, name in enumerate(activations):
            h = ACTIVATIONS[name](h @ parameters[2 * i] + parameters[2 * i + 1])
            code = h if i == 1 else code
        if loss == "cross_entropy":
            value = torch.nn.functional.cross_entropy(h, torch.tensor(labels))
        else:
            difference = (h - x).abs() if loss == "mae" else (h - x) ** 2
            value = ((difference * given).sum(1) / given.sum(1)).mean()
        value = value + l1_code * code.abs().mean()
        optimiser_.zero_grad()
        value.backward()
        step = {"loss": float(value.detach()), "gradients": flat([p.grad for p in parameters])}
        optimiser_.step()
        steps.append(step | {"after": flat(parameters)})
    return {
        "activation": activation,
        "loss": loss,
        "optimizer": optimiser,
        "l1_reg_activation": l1_code,
        "widths": widths,
        "parameters": before,
        "rows": [[None if m else float(v) for v, m in zip(row, gap)] for row, gap in zip(rows, missing)],
        "labels": [int(label) for label in labels],
        "steps": steps,
    }


cases = [
    case(i, activation, "mse", "adam", 0.0) for i, activation in enumerate(ACTIVATIONS)
] + [
    case(10, "tanh", "mae", "sgd", 0.0),
    case(11, "sigmoid", "mse", "rmsprop", 0.3),
    case(12, "elu", "mse", "adamw", 0.0),
    case(13, "tanh", "cross_entropy", "adam", 0.0),
    case(14, "relu", "cross_entropy", "sgd", 0.1),
]
Path(__file__).with_name("training.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")
