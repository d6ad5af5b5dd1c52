"""Trains an autoencoder with PyTorch: python peer.py ROWS.parquet WIDTHS BATCH EPOCHS THREADS

Adam, mean squared error, shuffled batches, rows in memory. Prints a line of JSON: seconds and CPU seconds of the epochs,
after one epoch to warm up.
"""

import json
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import torch

path, widths, batch, epochs, threads = sys.argv[1], *map(json.loads, sys.argv[2:])
torch.set_num_threads(threads)
torch.manual_seed(0)
x = torch.from_numpy(np.column_stack([column.to_numpy() for column in pq.read_table(path).columns]))
x = (x - x.mean(0)) / x.std(0, unbiased=False)
layers = []
for i, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
    layers += [torch.nn.Linear(inputs, outputs)] + ([torch.nn.ReLU()] if i < len(widths) - 2 else [])
network = torch.nn.Sequential(*layers)
optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)


def epoch():
    order = torch.randperm(len(x))
    for start in range(0, len(x), batch):
        rows = x[order[start : start + batch]]
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(network(rows), rows)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


epoch()
begun, cpu = time.perf_counter(), time.process_time()
for _ in range(epochs):
    loss = epoch()
print(json.dumps({"seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu, "loss": loss}))
