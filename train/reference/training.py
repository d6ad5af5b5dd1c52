"""Writes training.json: the results of PyTorch and numpy that the trainer is compared with.

    pip install -r requirements.txt && python training.py

- steps: losses, gradients and parameters of small networks with fixed weights, over three steps of an optimizer.
  Weights are [inputs, outputs], row-major, and each layer's bias follows its weight, as in train/src/network.rs.
- schedules: the learning rate of each epoch.
- early_stopping: the epoch after which patience ends.
- scaling: columns in the scaled space.
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


def optimizer(name, weights, biases, l2_reg):
    """Weights decay in AdamW, biases do not, in the trainer: two groups of parameters."""
    parameters = weights + biases
    return {
        "adam": lambda: torch.optim.Adam(parameters, lr=0.01),
        "adamw": lambda: torch.optim.AdamW(
            [{"params": weights, "weight_decay": l2_reg}, {"params": biases, "weight_decay": 0.0}], lr=0.01
        ),
        "sgd": lambda: torch.optim.SGD(parameters, lr=0.1),
        "rmsprop": lambda: torch.optim.RMSprop(parameters, lr=0.01),
    }[name]()


def flat(tensors):
    return [float(x) for tensor in tensors for x in tensor.detach().numpy().ravel()]


def number_rows(rng, width, loss):
    """Rows of numbers, some of them missing, which read as the mean, zero."""
    rows = rng.normal(0, 1, (ROWS, width)).astype(np.float32)
    missing = rng.random((ROWS, width)) < (0.2 if loss != "cross_entropy" else 0.0)
    return rows, missing, np.zeros(width, np.float32)


def category_rows(rng):
    """Two numbers, then a category: one level, one column for other texts, one for missing texts.

    A missing text is missing in all three columns, and the network reads the column of missing texts as one.
    """
    rows = np.zeros((ROWS, 5), np.float32)
    rows[:, :2] = rng.normal(0, 1, (ROWS, 2))
    rows[np.arange(ROWS), 2 + np.arange(ROWS) % 2] = 1.0
    missing = np.zeros((ROWS, 5), bool)
    missing[1, 0] = missing[4, 1] = True
    missing[2, 2:] = missing[4, 2:] = missing[5, 2:] = True
    return rows, missing, np.array([0, 0, 0, 0, 1], np.float32)


def case(number, activation, loss, optimiser, l1_code, l1_reg=0.0, l2_reg=0.0, categories=False, balanced=False):
    rng = np.random.default_rng(number)
    widths = WIDTHS if loss != "cross_entropy" else [5, 4, 3, CLASSES]
    activations = [activation] * (len(widths) - 2) + ["linear"]
    parameters = []
    for inputs, outputs in zip(widths, widths[1:]):
        parameters.append(torch.tensor(rng.normal(0, 0.7, (inputs, outputs)), dtype=torch.float32, requires_grad=True))
        parameters.append(torch.tensor(rng.normal(0, 0.3, outputs), dtype=torch.float32, requires_grad=True))
    weights, biases = parameters[::2], parameters[1::2]
    rows, missing, fill = category_rows(rng) if categories else number_rows(rng, widths[0], loss)
    labels = rng.integers(0, CLASSES, ROWS)
    # class_weight = 'balanced' of scikit-learn
    class_weights = ROWS / (CLASSES * np.maximum(np.bincount(labels, minlength=CLASSES), 1)) if balanced else np.array([])
    given = torch.tensor(~missing, dtype=torch.float32)
    x = torch.tensor(np.where(missing, fill, rows).astype(np.float32))
    steps = []
    optimiser_ = optimizer(optimiser, weights, biases, l2_reg)
    before = flat(parameters)
    for _ in range(3):
        h, code = x, None
        for i, name in enumerate(activations):
            h = ACTIVATIONS[name](h @ parameters[2 * i] + parameters[2 * i + 1])
            code = h if i == 1 else code
        if loss == "cross_entropy":
            losses = torch.nn.functional.cross_entropy(h, torch.tensor(labels), reduction="none")
            if balanced:
                losses = losses * torch.tensor(class_weights, dtype=torch.float32)[labels]
            value = losses.mean()
        else:
            difference = (h - x).abs() if loss == "mae" else (h - x) ** 2
            value = ((difference * given).sum(1) / given.sum(1)).mean()
        value = value + l1_code * code.abs().mean()
        penalty = l1_reg * sum(w.abs().sum() for w in weights)
        if optimiser != "adamw":
            penalty = penalty + l2_reg * sum((w**2).sum() for w in weights)
        optimiser_.zero_grad()
        (value + penalty).backward()
        # the trainer reports the loss without the penalties on weights
        step = {"loss": float(value.detach()), "gradients": flat([p.grad for p in parameters])}
        optimiser_.step()
        if l1_code > 0 and loss != "cross_entropy":
            # the decoder's weights of a code unit are at most as long as a row normally is: the root of its width
            with torch.no_grad():
                lengths = weights[2].norm(dim=1, keepdim=True)
                weights[2].mul_((weights[2].shape[1] ** 0.5 / lengths).clamp(max=1.0))
        steps.append(step | {"after": flat(parameters)})
    return {
        "activation": activation,
        "loss": loss,
        "optimizer": optimiser,
        "l1_reg_activation": l1_code,
        "l1_reg": l1_reg,
        "l2_reg": l2_reg,
        "widths": widths,
        "parameters": before,
        "rows": [[None if m else float(v) for v, m in zip(row, gap)] for row, gap in zip(rows, missing)],
        "fill": [float(v) for v in fill],
        "labels": [int(label) for label in labels],
        "class_weights": [float(np.float32(weight)) for weight in class_weights],
        "steps": steps,
    }


def schedule(scheduler, epochs):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    scheduler = scheduler(optimiser, epochs)
    rates = []
    for _ in range(epochs):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return rates


def early_stopping(seed, min_rel_progress, patience):
    """The trainer's rule is that of ReduceLROnPlateau, which acts one epoch after `patience` bad epochs."""
    rng = np.random.default_rng(seed)
    losses = [float(x) for x in np.exp(-0.08 * np.arange(60)) + 0.3 + 0.05 * rng.random(60)]
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=0.5, patience=patience - 1, threshold=min_rel_progress, threshold_mode="rel"
    )
    stops_after = None
    for epoch, loss in enumerate(losses, 1):
        plateau.step(loss)
        if optimiser.param_groups[0]["lr"] < 1.0:
            stops_after = epoch
            break
    return {
        "losses": losses,
        "min_rel_progress": min_rel_progress,
        "patience": patience,
        "stops_after": stops_after,
    }


def scaling():
    rng = np.random.default_rng(100)
    columns = [rng.normal(3, 2, 40), rng.normal(-10, 50, 40), np.full(40, 7.0), rng.uniform(0, 1, 40)]
    missing = [rng.random(40) < 0.2, rng.random(40) < 0.1, np.zeros(40, bool), np.zeros(40, bool)]
    columns = [np.where(gap, np.nan, column) for column, gap in zip(columns, missing)]
    deviations = [np.nanstd(column) for column in columns]
    common = np.sqrt(np.mean(np.square(deviations)))

    def listed(columns):
        return [[None if np.isnan(v) else float(v) for v in column] for column in columns]

    def scaled(divisors):
        return listed([(column - np.nanmean(column)) / divisor for column, divisor in zip(columns, divisors)])

    return {
        "columns": listed(columns),
        "standard": scaled([deviation if deviation > 0 else 1.0 for deviation in deviations]),
        "common": scaled([common] * 4),
    }


steps = [
    case(i, activation, "mse", "adam", 0.0) for i, activation in enumerate(ACTIVATIONS)
] + [
    case(10, "tanh", "mae", "sgd", 0.0),
    case(11, "sigmoid", "mse", "rmsprop", 0.3),
    case(12, "elu", "mse", "adamw", 0.0, l2_reg=0.1),
    case(13, "tanh", "cross_entropy", "adam", 0.0),
    case(14, "relu", "cross_entropy", "sgd", 0.1),
    case(15, "tanh", "mse", "adam", 0.0, l1_reg=0.01, l2_reg=0.05),
    case(16, "elu", "mse", "sgd", 0.0, l1_reg=0.02, l2_reg=0.03),
    case(17, "sigmoid", "mae", "rmsprop", 0.0, l1_reg=0.01, l2_reg=0.02),
    case(18, "tanh", "cross_entropy", "adamw", 0.0, l1_reg=0.01, l2_reg=0.5),
    case(19, "tanh", "mse", "adam", 0.0, categories=True),
    case(20, "selu", "mae", "sgd", 0.2, l2_reg=0.01, categories=True),
    case(21, "tanh", "cross_entropy", "adam", 0.0, balanced=True),
]
linear = lambda optimiser, epochs: torch.optim.lr_scheduler.LinearLR(
    optimiser, start_factor=1.0, end_factor=0.0, total_iters=epochs
)
cosine = lambda optimiser, epochs: torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=epochs)
reference = {
    "steps": steps,
    "schedules": {"linear": schedule(linear, 10), "cosine": schedule(cosine, 10)},
    "early_stopping": [
        early_stopping(1, 0.001, 3),
        early_stopping(2, 0.01, 5),
        early_stopping(3, 0.05, 2),
        early_stopping(4, 0.0, 4),
        early_stopping(5, 0.001, 60),
    ],
    "scaling": scaling(),
}
Path(__file__).with_name("training.json").write_text(json.dumps(reference, separators=(",", ":")) + "\n")
