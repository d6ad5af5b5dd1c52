"""Cases made by PyTorch."""

import copy

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from common import (DYNAMO, LEGACY, ROWS, Dense, case, double, export, mlp, mse, narrowest, numbered, process,
                    rows, run, train)

TRAIN = process(1, 512)
X = rows()


def trained_dense():
    return train(Dense, TRAIN)


def simple(name, model, x=X, columns=None, made_by=LEGACY, names=("input", "code", "reconstruction"),
           dynamic=True, sample=None, **kw):
    """Export with named input, code and reconstruction, run, write."""
    dynamo = made_by == DYNAMO
    sample = x if sample is None else sample
    path = export(model, (sample,), name, [names[0]], list(names[1:]), dynamo=dynamo, dynamic=dynamic)
    out = run(path, {names[0]: x})
    return case(name, made_by, columns or numbered(x), x, out[names[1]], out[names[2]],
                reference=double(model, x), **kw)


# 1, 4, 10, 11: the same network through both exporters and with fixed batches

def dense(model):
    return simple("dense", model)


def dense_dynamo(model):
    return simple("dense_dynamo", model, made_by=DYNAMO)


def fixed_batch(model, n):
    return simple(f"fixed_batch_{n}", model, dynamic=False, sample=X[:n])


# 2: no code output, the exporter's own names

class ReconstructionOnly(nn.Module):
    def __init__(self, whole):
        super().__init__()
        self.whole = whole

    def forward(self, x):
        return self.whole(x)[1]


def dense_recon_only(model):
    path = export(ReconstructionOnly(model).eval(), (X,), "dense_recon_only", dynamo=True)
    inner = narrowest(path, 3)
    out = run(path, {"x": X}, extra=[inner])
    code = out.pop(inner)
    (reconstruction,) = out.values()
    return case("dense_recon_only", DYNAMO, numbered(X), X, code, reconstruction, reference=double(model, X))


# 3

class BatchNormDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1),
                                     nn.Linear(8, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Dropout(0.1),
                                     nn.Linear(8, 12))

    def forward(self, x):
        code = self.encoder(x)
        return code, self.decoder(code)


def batchnorm_dropout():
    return simple("batchnorm_dropout", train(BatchNormDropout, TRAIN))


# 5: images, a code of rank 4

class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(),
                                     nn.Conv2d(8, 4, 3, stride=2, padding=1))
        self.decoder = nn.Sequential(nn.ConvTranspose2d(4, 8, 2, stride=2), nn.ReLU(),
                                     nn.ConvTranspose2d(8, 1, 2, stride=2), nn.Sigmoid())

    def forward(self, x):
        code = self.encoder(x)
        return code, self.decoder(code)


def conv():
    pixels = (load_digits().data / 16).astype(np.float32)
    model = train(Conv, pixels[:500].reshape(-1, 1, 8, 8), steps=300)
    x = pixels[-ROWS:].reshape(-1, 1, 8, 8)
    return simple("conv", model, x=x, columns=numbered(x, "p"), made_by=DYNAMO)


# 6: sequences

class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.reader = nn.LSTM(2, 8, batch_first=True)
        self.down, self.up = nn.Linear(8, 3), nn.Linear(3, 8)
        self.writer = nn.LSTM(8, 8, batch_first=True)
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        _, (h, _) = self.reader(x)
        code = self.down(h[-1])
        y, _ = self.writer(self.up(code).unsqueeze(1).repeat(1, 6, 1))
        return code, self.out(y)


def waves(seed, n):
    rng = np.random.default_rng(seed)
    t, phase, speed = np.arange(6), rng.uniform(0, 6.28, (n, 1)), rng.uniform(0.3, 0.9, (n, 1))
    both = np.stack([np.sin(speed * t + phase), np.cos(speed * t + phase)], axis=2)
    return (both + 0.05 * rng.normal(size=both.shape)).astype(np.float32)


def lstm():
    model = train(Lstm, waves(1, 256), steps=300)
    x = waves(2, ROWS)
    columns = {f"t{t}_c{c}": x[:, t, c] for t in range(6) for c in range(2)}
    return simple("lstm", model, x=x, columns=columns, atol=5e-6,
                  reason="float32 rounding, and programs approximate tanh and sigmoid to some 1e-7, which "
                         "adds up over the 12 steps of the two LSTMs")


# 7, 8: variational; the first draws its noise in the graph, the second decodes the mean

class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 8), nn.ReLU())
        self.mu, self.logvar, self.decoder = nn.Linear(8, 3), nn.Linear(8, 3), mlp(3, 8, 12)

    def forward(self, x):
        h = self.body(x)
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return mu, logvar, self.decoder(z)


class VaeMean(nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, x):
        z = self.vae.mu(self.vae.body(x))
        return z, self.vae.decoder(z)


def trained_vae():
    def loss(m, x):
        mu, logvar, y = m(x)
        kl = 0.5 * (mu ** 2 + logvar.exp() - 1 - logvar).sum(1).mean()
        return mse(y, x) + 0.01 * kl
    return train(Vae, TRAIN, loss)


def vae(model):
    path = export(model, (X,), "vae", ["input"], ["mu", "logvar", "reconstruction"])
    out, same = run(path, {"input": X}), run(path, {"input": X[[0, 0]]})
    assert (same["mu"][0] == same["mu"][1]).all() and (same["reconstruction"][0] != same["reconstruction"][1]).all()
    return case("vae", LEGACY, numbered(X), X, out["mu"], error=False, options={"code": "mu"},
                reference=double(VaeMean(model), X)[:1])


def vae_mean(model):
    return simple("vae_mean", VaeMean(model).eval(), made_by=DYNAMO, names=("input", "z", "reconstruction"))


# 9, 16: other precisions

def float64(model):
    model = copy.deepcopy(model).double()
    x = X.astype(np.float64) + 1e-9 * np.arange(12)  # not float32 values
    return simple("float64", model, x=x, dtype=np.float64, rtol=1e-11, atol=1e-12,
                  reason="float64 rounding (1e-16 relative), sums in another order; a result computed or "
                         "passed on as float32 is off by 1e-7 and fails")


def float16(model):
    model = copy.deepcopy(model).half()
    x = X.astype(np.float16)
    return simple("float16", model, x=x, columns=numbered(x.astype(np.float32)), rtol=4e-3, atol=4e-3,
                  reason="half precision keeps 11 bits (2^-11 = 4.9e-4 relative a rounding) and values of order 1 to "
                         "4 go through 4 layers; whether a layer's sum is rounded before or after the bias "
                         "depends on the program. The columns are float32 and hold exact half values")


# 12: two files whose inner names are the same

def two_files(model):
    encoder = export(model.encoder, (X,), "two_files_encoder", ["input"], ["output"])
    code = run(encoder, {"input": X})["output"]
    decoder = export(model.decoder, (code,), "two_files_decoder", ["input"], ["output"])
    reconstruction = run(decoder, {"input": code})["output"]
    return case("two_files", LEGACY, numbered(X), X, code, reconstruction, reference=double(model, X), model=None,
                options={"encoder_path": encoder.name, "decoder_path": decoder.name})


# 17: counts

class IntInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = mlp(12, 8, 3), mlp(3, 8, 12)

    def forward(self, x):
        code = self.encoder(x.to(self.encoder[0].weight.dtype) / 32 - 1)
        return code, (self.decoder(code) + 1) * 32


def int_input():
    def counts(x):
        return np.clip(np.round(32 + 10 * x), 0, None).astype(np.int64)
    model = train(IntInput, counts(TRAIN), lambda m, x: mse(m(x)[1], x.float()) / 100)
    return simple("int_input", model, x=counts(X), atol=1e-5,
                  reason="float32 rounding; the reconstruction is in counts of order 30, so its rounding is some "
                         "1e-6 and the floor is ten times that of the cases in units of 1")


# 18: the decoder cannot work from the code alone

class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.skip, self.decoder = mlp(12, 8, 3), nn.Linear(12, 4), mlp(7, 8, 12)

    def forward(self, x):
        code = self.encoder(x)
        return code, self.decoder(torch.cat([code, torch.relu(self.skip(x))], dim=1))


def decoder_reads_input():
    return simple("decoder_reads_input", train(Skip, TRAIN))


# 19: one input a column, in the plant's units

class ColumnInputs(nn.Module):
    def __init__(self, mean, scale):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", torch.tensor(scale))
        self.encoder, self.decoder = mlp(4, 6, 2), mlp(2, 6, 4)

    def forward(self, flow, pressure, temp, rpm):
        x = (torch.cat([flow, pressure, temp, rpm], dim=1) - self.mean) / self.scale
        code = self.encoder(x)
        return code, self.decoder(code) * self.scale + self.mean


def column_inputs():
    names = ["flow", "pressure", "temp", "rpm"]
    mean, scale = np.float32([12, 3, 60, 120]), np.float32([2, 0.5, 5, 15])
    fit, x = (d * scale + mean for d in (process(1, 512, 4), rows(2, 4)))
    model = train(lambda: ColumnInputs(mean, scale), fit,
                  lambda m, d: mse(m(*d.split(1, dim=1))[1] / m.scale, d / m.scale))
    parts = [x[:, i:i + 1] for i in range(4)]
    path = export(model, parts, "column_inputs", names, ["code", "reconstruction"])
    out = run(path, dict(zip(names, parts)))
    return case("column_inputs", LEGACY, dict(zip(names, x.T)), x, out["code"], out["reconstruction"],
                reference=double(model, *parts), rtol=5e-5, atol=1e-5,
                reason="float32 rounding; values up to 150 are some 1e-5 apart, and the error squares a small "
                       "difference of such values, which loses digits")


# 20: an output that is neither code nor reconstruction

class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.head = mlp(12, 8, 3), mlp(3, 8, 12), nn.Linear(3, 3)

    def forward(self, x):
        code = self.encoder(x)
        return code, self.decoder(code), self.head(code)


def classifier_logits():
    kind = torch.tensor(np.digitize(TRAIN[:, 0], [-0.5, 0.5]))

    def loss(m, x):
        _, y, logits = m(x)
        return mse(y, x) + 0.1 * nn.functional.cross_entropy(logits, kind)
    model = train(Classifier, TRAIN, loss)
    path = export(model, (X,), "classifier_logits", ["input"], ["code", "reconstruction", "logits"])
    out = run(path, {"input": X})
    return case("classifier_logits", LEGACY, numbered(X), X, out["code"], out["reconstruction"],
                reference=double(model, X)[:2])


def cases():
    d, v = trained_dense(), trained_vae()
    return [dense(d), dense_recon_only(d), batchnorm_dropout(), dense_dynamo(d), conv(), lstm(), vae(v), vae_mean(v),
            float64(d), fixed_batch(d, 1), fixed_batch(d, 16), two_files(d), float16(d), int_input(),
            decoder_reads_input(), column_inputs(), classifier_logits()]
