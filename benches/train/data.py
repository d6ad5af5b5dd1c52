"""Rows to train on: python data.py FILE ROWS WIDTH. Functions of eight hidden numbers per row, with noise; seeded."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

path, rows, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)
hidden = rng.normal(size=(rows, 8)).astype(np.float32)
values = np.tanh(hidden @ rng.normal(size=(8, width)).astype(np.float32))
values += 0.1 * rng.normal(size=values.shape).astype(np.float32)
pq.write_table(pa.table({f"x{i}": values[:, i] for i in range(width)}), path)
