"""Makes small graphs that reconstruct some of their inputs: python tests/foreign/make_roles.py

Needs onnx and onnxruntime, see tests/interop/requirements.txt. Prints the errors, codes and reconstructions that
tests/slt/foreign_roles.slt expects.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
RANDOM = np.random.default_rng(20)
node, F, I = helper.make_node, np.float32, np.int64
FLOAT, INT64, BOOL, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING


def weight(name, values, element=F):
    return numpy_helper.from_array(np.array(values, dtype=element), name)


def random(name, *shape):
    return weight(name, RANDOM.normal(size=shape).round(2))


def save(name, nodes, inputs, outputs, weights, opsets=(("", 18),)):
    def value(name, shape, element=FLOAT):
        return helper.make_tensor_value_info(name, element, ["N", *shape])

    graph = helper.make_graph(nodes, name, [value(*each) for each in inputs], [value(*each) for each in outputs], weights)
    imports = [helper.make_opsetid(*each) for each in opsets]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9, producer_name="by hand")
    onnx.checker.check_model(model)
    onnx.save(model, HERE / f"{name}.onnx")


def run(name, **inputs):
    session = onnxruntime.InferenceSession(HERE / f"{name}.onnx")
    values = session.run(None, {key: np.array(value) for key, value in inputs.items()})
    return dict(zip([output.name for output in session.get_outputs()], values, strict=True))


def error(a, b):
    return ((np.asarray(a, dtype=np.float64) - np.asarray(b)) ** 2).mean(axis=-1).round(5)


def dense(source, target, weights):
    return [node("MatMul", [source, weights], [target])]


X, C = F([[1, 2, 3, 4], [0, -1, 0, 2]]), F([[1, 0, 0], [0, 0, 1]])


def conditional():
    """A variational autoencoder at its mean, with a one-hot condition that encoder and decoder read."""
    weights = [random("we", 7, 2), random("wd", 5, 4)]

    def nodes(y):
        return [node("Concat", ["x", "condition"], ["xc"], axis=1), *dense("xc", "mean", "we"), node("Tanh", ["mean"], ["t"]),
                node("Concat", ["t", "condition"], ["tc"], axis=1), *dense("tc", y, "wd")]

    inputs = [("x", [4]), ("condition", [3])]
    save("conditional", nodes("x_hat"), inputs, [("x_hat", [4]), ("t", [2])], weights)
    save("conditional_unnamed", nodes("y"), inputs, [("y", [4])], weights)
    found = run("conditional", x=X, condition=C)
    print("conditional", error(X, found["x_hat"]), "code", found["t"], "x_hat", found["x_hat"])
    packed = [node("Slice", ["xc", "from", "to", "axis"], ["condition"]), node("MatMul", ["xc", "we"], ["t"]),
              node("Concat", ["t", "condition"], ["tc"], axis=1), *dense("tc", "x_hat", "wd")]
    places = [weight("from", [4], I), weight("to", [7], I), weight("axis", [1], I)]
    save("conditional_packed", packed, [("xc", [7])], [("x_hat", [4]), ("t", [2])], [*weights, *places])
    print("conditional_packed", error(X, run("conditional_packed", xc=np.hstack([X, C]))["x_hat"]))


def mask():
    """The mask hides values from the encoder, and weights the loss, which is an output too."""
    weights = [random("we", 8, 2), random("wd", 2, 4)]
    nodes = [node("Mul", ["x", "mask"], ["seen"]), node("Concat", ["seen", "mask"], ["both"], axis=1),
             *dense("both", "code", "we"), *dense("code", "out", "wd"), node("Sub", ["x", "out"], ["d"]),
             node("Mul", ["d", "d"], ["s"]), node("Mul", ["s", "mask"], ["m"]),
             node("ReduceMean", ["m", "axis"], ["loss"], keepdims=0)]
    save("mask", nodes, [("x", [4]), ("mask", [4])], [("out", [4]), ("code", [2]), ("loss", [])],
         [*weights, weight("axis", [1], I)])
    shown = F([[1, 0, 1, 1], [0, 1, 1, 1]])
    print("mask", error(X, run("mask", x=X, mask=shown)["out"]))


def noise():
    """A denoising autoencoder whose noise is an input. Nothing but the names says which input is reconstructed."""
    weights = [random("we", 4, 2), random("wd", 2, 4)]
    for name, other, output in (("noise", "noise", "output"), ("noise_unnamed", "b", "output"), ("noise_after", "b", "recon_x")):
        nodes = [node("Add", ["x", other], ["sum"]), *dense("sum", "code", "we"), *dense("code", output, "wd")]
        save(name, nodes, [(other, [4]), ("x", [4])], [(output, [4]), ("code", [2])], weights)
    found = run("noise", x=X, noise=X / 2)["output"]
    print("noise", error(X, found), "of the noise", error(X / 2, found))


def recommender():
    """The id of the user is read by nobody, or picks an embedding."""
    weights = [random("we", 6, 2), random("wd", 2, 6), random("table", 5, 2)]
    ends = [*dense("sum", "recon", "wd")]
    inputs = [("user_id", [], INT64), ("ratings", [6])]
    save("recommender", [*dense("ratings", "sum", "we"), *ends], inputs, [("recon", [6])], weights[:2])
    save("recommender_embedding", [node("Gather", ["table", "user_id"], ["user"]), *dense("ratings", "own", "we"),
                                   node("Add", ["own", "user"], ["sum"]), *ends], inputs, [("recon", [6])], weights)
    ratings = F([[5, 0, 3, 0, 0, 1], [0, 4, 0, 0, 2, 0]])
    for name in ("recommender", "recommender_embedding"):
        print(name, error(ratings, run(name, ratings=ratings, user_id=I([4, 1]))["recon"]))


def columns():
    """One input a column; the text is a condition, and the mask of all columns is one more."""
    weights = [random("we", 8, 2), random("wd", 2, 2)]
    nodes = [node("Cast", ["age"], ["years"], to=FLOAT),
             node("OneHotEncoder", ["country"], ["places"], domain="ai.onnx.ml", cats_strings=["de", "fr", "it"], zeros=1),
             node("Reshape", ["places", "flat"], ["place"]), node("Cast", ["seen"], ["shown"], to=FLOAT),
             node("Concat", ["amount", "place", "years", "shown"], ["all"], axis=1),
             *dense("all", "code", "we"), *dense("code", "reconstruction", "wd")]
    save("columns", nodes, [("amount", [1]), ("country", [1], STRING), ("age", [1], INT64), ("seen", [3], BOOL)],
         [("reconstruction", [2]), ("code", [2])], [*weights, weight("flat", [-1, 3], I)],
         (("", 18), ("ai.onnx.ml", 3)))
    found = run("columns", amount=F([[1]]), country=np.array([["fr"]]), age=I([[3]]), seen=[[True, True, False]])
    print("columns", error(F([[1, 3]]), found["reconstruction"]), found["reconstruction"])


def heads():
    """One output for each column: numbers, and the shares of the texts of a column."""
    weights = [random("we", 5, 2), random("wa", 2, 1), random("wy", 2, 1), random("wc", 2, 3)]
    nodes = [node("Cast", ["age"], ["years"], to=FLOAT),
             node("OneHotEncoder", ["country"], ["places"], domain="ai.onnx.ml", cats_strings=["de", "fr", "it"], zeros=1),
             node("Reshape", ["places", "flat"], ["place"]), node("Concat", ["amount", "place", "years"], ["all"], axis=1),
             *dense("all", "code", "we"), *dense("code", "amount_hat", "wa"), *dense("code", "age_column", "wy"),
             node("Squeeze", ["age_column", "one"], ["age_hat"]), *dense("code", "c", "wc"),
             node("Softmax", ["c"], ["country_probs"])]
    inputs = [("amount", [1]), ("country", [1], STRING), ("age", [1], INT64)]
    outputs = [("country_probs", [3]), ("age_hat", []), ("amount_hat", [1]), ("code", [2])]
    save("heads", nodes, inputs, outputs, [*weights, weight("flat", [-1, 3], I), weight("one", [1], I)],
         (("", 18), ("ai.onnx.ml", 3)))
    amount, country, age = F([[1], [0.5]]), np.array([["fr"], ["it"]]), I([[3], [2]])
    found = run("heads", amount=amount, country=country, age=age)
    numbers = np.hstack([found["amount_hat"], found["age_hat"][:, None]])
    one_hot = F([[0, 1, 0], [0, 0, 1]])
    print("heads", "numbers", error(np.hstack([amount, age]), numbers), numbers, "all",
          error(np.hstack([amount, age, one_hot]), np.hstack([numbers, found["country_probs"]])))


def permuted():
    """The columns of the reconstruction have another order than those of the input."""
    nodes = [*dense("x", "code", "we"), *dense("code", "z", "wd"), node("Gather", ["z", "order"], ["output"], axis=1)]
    save("permuted", nodes, [("x", [4])], [("output", [4])],
         [random("we", 4, 2), random("wd", 2, 4), weight("order", [3, 2, 1, 0], I)])
    print("permuted", error(X[:, ::-1], run("permuted", x=X)["output"]))


def unnamed():
    """No output has a role: one number a row. The inner tensors would fit."""
    nodes = [*dense("x", "narrow", "we"), node("Tanh", ["narrow"], ["t"]), *dense("t", "wide", "wd"),
             node("Sub", ["x", "wide"], ["d"]), node("Mul", ["d", "d"], ["s"]), node("ReduceSum", ["s"], ["total"], keepdims=0)]
    graph = helper.make_graph(nodes, "unnamed", [helper.make_tensor_value_info("x", FLOAT, ["N", 4])],
                              [helper.make_tensor_value_info("total", FLOAT, [])], [random("we", 4, 2), random("wd", 2, 4)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="by hand")
    onnx.save(model, HERE / "only_loss.onnx")


def strict():
    """Encoders that fail for categories that they do not know: texts, whole numbers, and texts of two columns in one input."""
    weights = [random("we", 6, 2), random("wd", 2, 6)]
    ends = [*dense("scaled", "code", "we"), *dense("code", "scaled_reconstruction", "wd")]
    ai = {"domain": "ai.onnx.ml"}

    def store(name, nodes, inputs, extra=()):
        outputs = [("scaled", [6]), ("scaled_reconstruction", [6]), ("code", [2])]
        save(name, [*nodes, *ends], inputs, outputs, [*weights, *extra], (("", 18), ("ai.onnx.ml", 3)))

    store("strict", [
        node("OneHotEncoder", ["kind"], ["kinds"], cats_strings=["a", "b"], zeros=0, **ai), node("Reshape", ["kinds", "two"], ["k"]),
        node("OneHotEncoder", ["size"], ["sizes"], cats_int64s=[10, 20, 30], zeros=0, **ai), node("Reshape", ["sizes", "three"], ["s"]),
        node("Concat", ["k", "s", "amount"], ["scaled"], axis=1)],
        [("kind", [1], STRING), ("size", [1], INT64), ("amount", [1])], [weight("two", [-1, 2], I), weight("three", [-1, 3], I)])
    store("strict_columns", [
        node("ArrayFeatureExtractor", ["texts", "first"], ["one"], **ai), node("ArrayFeatureExtractor", ["texts", "second"], ["other"], **ai),
        node("OneHotEncoder", ["one"], ["ones"], cats_strings=["x", "y", "z"], zeros=0, **ai), node("Reshape", ["ones", "three"], ["k"]),
        node("OneHotEncoder", ["other"], ["others"], cats_strings=["p", "q", "r"], zeros=0, **ai), node("Reshape", ["others", "three"], ["s"]),
        node("Concat", ["k", "s"], ["scaled"], axis=1)],
        [("texts", [2], STRING)], [weight("first", [0], I), weight("second", [1], I), weight("three", [-1, 3], I)])
    found = run("strict", kind=np.array([["b"], ["a"]]), size=I([[30], [10]]), amount=F([[0.5], [2]]))
    print("strict", error(found["scaled"], found["scaled_reconstruction"]))
    found = run("strict_columns", texts=np.array([["y", "r"], ["z", "p"]]))
    print("strict_columns", error(found["scaled"], found["scaled_reconstruction"]))


if __name__ == "__main__":
    conditional()
    mask()
    noise()
    recommender()
    columns()
    heads()
    permuted()
    unnamed()
    strict()
