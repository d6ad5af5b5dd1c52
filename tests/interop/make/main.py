"""Makes every model, parquet file and cases.json under tests/interop: python tests/interop/make/main.py"""

import pytorch
import quantised
import sklearn_mlp
import strings
from common import save_cases

ORDER = """dense dense_recon_only batchnorm_dropout dense_dynamo conv lstm vae vae_mean float64 fixed_batch_1
fixed_batch_16 two_files sklearn_mlp sklearn_mlp_2d strings quantised_qdq float16 int_input decoder_reads_input
column_inputs classifier_logits""".split()

# in this order: quantised starts from pytorch's dense.onnx
made = {c["name"]: c for m in (pytorch, sklearn_mlp, strings, quantised) for c in m.cases()}
save_cases([made.pop(name) for name in ORDER])
assert not made
