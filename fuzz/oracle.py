"""Compares the results of a mutant with those of ONNX Runtime, one row at a time.

Reads a line of JSON for each mutant, with the path of the file and the results of aefusion, and answers with a line:
{"verdict": "same" or the kind of the difference, "detail": …}. `cargo xtask fuzz` starts it.
"""

import json
import sys

import numpy as np
import onnx
import onnxruntime as ort

FINE = 1e-4  # of the largest number of a row
TOLERANCE = FINE
LARGE = 1e-2  # a difference that another kernel does not make
COPIES = 16
TYPES = {"Float16": np.float16, "Float32": np.float32, "Float64": np.float64, "Int8": np.int8, "Int16": np.int16,
         "Int32": np.int32, "Int64": np.int64, "UInt8": np.uint8, "UInt16": np.uint16, "UInt32": np.uint32,
         "UInt64": np.uint64, "Bool": np.bool_, "String": object}
ort.set_default_logger_severity(4)
np.seterr(all="ignore")


def numbers(text):
    return np.frombuffer(bytes.fromhex(text), dtype=">f8").astype(np.float64)


class Refused(Exception):
    """ONNX Runtime in Python does not load or run the file."""


class Graph:
    """The file as it is, with inner tensors as outputs if they are wanted."""

    def __init__(self, data, inputs, wanted, fixed, level):
        self.inputs, self.fixed = inputs, fixed
        given = {entry["name"] for entry in inputs}
        self.wanted, computed = wanted, [name for name in wanted if name not in given]
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise Refused(f"load: {error}") from error
        self.computed = computed

    def run(self, feeds):
        try:
            found = self.session.run(self.computed, feeds) if self.computed else []
        except Exception as error:
            raise Refused(f"run: {error}") from error
        found = dict(zip(self.computed, found))
        return {name: plain(found[name] if name in found else feeds[name]) for name in self.wanted}

    def block(self, rows):
        """Rows of every input as a block; a fixed batch is filled with zeros."""
        feeds = {}
        for entry, values in zip(self.inputs, rows):
            kind, n = TYPES[entry["element"]], len(values)
            size = self.fixed * -(-n // self.fixed) if self.fixed else n
            block = np.full((size, *entry["shape"]), "", dtype=object) if kind is object else np.zeros((size, *entry["shape"]), dtype=kind)
            block[:n] = np.asarray(values).reshape((n, *entry["shape"])).astype(kind)
            feeds[entry["name"]] = block
        return feeds

    def row(self, rows, widths):
        """The numbers of the first row."""
        feeds = self.block(rows)
        n = next(iter(feeds.values())).shape[0]
        result = {}
        for name, found in self.run(feeds).items():
            if found.size != n * widths[name]:
                raise Refused(f"shape: {name} has {found.size} numbers for {n} rows of {widths[name]}")
            result[name] = found.ravel()[: widths[name]]
        return result


def plain(values):
    """Numbers as SQL has them: float64 as it is, others by way of float32."""
    values = np.asarray(values)
    if values.dtype == np.float64:
        return values
    if values.dtype == object:
        raise Refused("run: texts")
    return values.astype(np.float32).astype(np.float64)


def distance(found, wanted):
    """The largest difference as a share of the largest number; infinity if NaN or infinity do not agree."""
    if found.shape != wanted.shape:
        return np.inf
    special = ~(np.isfinite(found) & np.isfinite(wanted))
    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    if np.any(special & ~same):
        return np.inf
    usual = ~special
    if not usual.any():
        return 0.0
    largest = max(np.abs(wanted[usual]).max(), np.abs(found[usual]).max(), 1e-30)
    return float(np.abs(found[usual] - wanted[usual]).max() / largest)


def error_of(request, original, reconstruction):
    """The error of a row, its tolerance, and whether there is one."""
    terms = original - reconstruction
    used = ~np.isnan(original) if request["is_imputed"] else np.ones(len(original), dtype=bool)
    if not used.any():
        return np.nan, 0.0, False
    largest = max([1e-30, *np.abs(original[np.isfinite(original)]), *np.abs(reconstruction[np.isfinite(reconstruction)])])
    terms, slack = np.abs(terms[used]), TOLERANCE * largest
    if request["metric"] == "mae":
        return terms.mean(), slack, True
    mean, bound = (terms * terms).mean(), (2 * terms * slack + slack * slack).mean()
    if request["metric"] == "rmse":
        return np.sqrt(mean), slack, True
    return mean, bound, True


def is_coarse(graph, functions):
    """Whether the graph computes with float16 or bfloat16."""
    nodes = list(graph.node) + [node for function in functions for node in function.node]
    casts = any(a.name in ("to", "dtype") and a.i in (10, 16) for node in nodes for a in node.attribute)
    tensors = any(tensor.data_type in (10, 16) for tensor in graph.initializer)
    return casts or tensors or any(value.type.tensor_type.elem_type in (10, 16) for value in graph.input)


def compare(data, results):
    global TOLERANCE
    inputs = results["inputs"]
    n = results["rows"]
    tensors = {entry["name"]: entry for entry in results["tensors"]}
    widths = {name: entry["width"] for name, entry in tensors.items()}
    features = {entry["name"]: int(np.prod(entry["shape"], dtype=np.int64)) for entry in inputs}
    widths.update({name: width for name, width in features.items() if name not in widths})
    model = onnx.load_model_from_string(data)
    # aefusion joins heads of single columns to tensors that the file does not have
    known = {name for node in model.graph.node for name in node.output} | features.keys()
    results["tensors"] = [entry for entry in results["tensors"] if entry["name"] in known]
    wanted = [entry["name"] for entry in results["tensors"]]
    if not wanted:
        raise Refused("the file has none of the tensors")
    coarse = is_coarse(model.graph, model.functions)
    TOLERANCE = 2e-2 if coarse else FINE
    declared = {value.name for value in model.graph.output}
    missing = [name for name in wanted if name not in declared and name not in features]
    if missing:
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in missing)
        data = model.SerializeToString()
    values = []
    for entry in inputs:
        values.append(np.array(entry["texts"], dtype=object) if entry["element"] == "String" else numbers(entry["numbers"]))
    values = [entry.reshape(n, -1) for entry in values]
    found = {entry["name"]: numbers(entry["numbers"]).reshape(n, -1) for entry in results["tensors"]}
    fixed = results["fixed_rows"] if results["fixed_rows"] != 1 else None
    graph = Graph(data, inputs, wanted, fixed, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    try:
        graph.row([entry[:1] for entry in values], widths)
    except Refused:
        graph = Graph(part(model, [name for name in wanted if name not in features]), inputs, wanted, fixed,
                      ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    request = results["error"]
    errors = numbers(request["numbers"]) if request else None
    decoded = numbers(results["decoded"]).reshape(n, -1) if results["decoded"] else None
    doubts = []
    for row in range(n):
        rows = [entry[row : row + 1] for entry in values]
        expected = graph.row(rows, widths)
        worst = max(wanted, key=lambda name: distance(found[name][row], expected[name]))
        share = distance(found[worst][row], expected[worst])
        if share > TOLERANCE:
            special = not np.isfinite([*found[worst][row], *expected[worst]]).all()
            # beyond the range of float16, the order of a sum decides
            kind = "rounding" if coarse and special else explain(model, graph, rows, worst, widths, found[worst][row], expected, share)
            detail = f"{worst}, row {row}: {found[worst][row][:4]} instead of {expected[worst][:4]} ({share:.2g})"
            if kind == "differs":
                return kind, detail
            doubts.append((kind, detail))
            continue
        if request:
            fed = graph.block(rows)
            compared = [plain(fed[entry["name"]][0]).ravel() if entry["element"] != "UInt64" else fed[entry["name"]][0].ravel().astype(np.float64) for entry in inputs] if not request["original"] else None
            original = np.concatenate(compared) if compared else expected.get(request["original"])
            reconstruction = expected.get(request["reconstruction"])
            if original is not None and reconstruction is not None and len(original) == len(reconstruction):
                error, slack, exists = error_of(request, original, reconstruction)
                if exists != (request["valid"][row] == "1"):
                    return "error", f"row {row}: valid is {request['valid'][row]}"
                same = errors[row] == error or (np.isnan(errors[row]) and np.isnan(error))
                if exists and not same and not abs(errors[row] - error) <= slack + 1e-9 * abs(error):
                    return "error", f"row {row}: {errors[row]} instead of {error}"
        if decoded is not None:
            name = next((entry["name"] for entry in results["tensors"] if entry["role"] == "reconstruction"), None)
            if name and distance(decoded[row], expected[name]) > LARGE:
                doubts.append(("decoded", f"row {row}: {decoded[row][:4]} instead of {expected[name][:4]}"))
    return doubts[0] if doubts else ("same", "")


def reads(node):
    """Names that a node and its sub-graphs read."""
    graphs = [a.g for a in node.attribute if a.HasField("g")] + [g for a in node.attribute for g in a.graphs]
    inner = [name for g in graphs for child in g.node for name in reads(child)]
    return [*node.input, *inner, *(value.name for g in graphs for value in g.output)]


def part(model, wanted):
    """The file without what the wanted tensors do not need: the rest may fail for one row."""
    producer = {name: place for place, node in enumerate(model.graph.node) for name in node.output if name}
    needed, todo = set(), [producer[name] for name in wanted if name in producer]
    while todo:
        place = todo.pop()
        if place not in needed:
            needed.add(place)
            todo.extend(producer[name] for name in reads(model.graph.node[place]) if name in producer)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.output[:]
    result.graph.node.extend(model.graph.node[place] for place in sorted(needed))
    declared = {value.name: value for value in model.graph.output}
    result.graph.output.extend(declared.get(name, onnx.ValueInfoProto(name=name)) for name in wanted)
    return result.SerializeToString()


def explain(model, graph, rows, worst, widths, found, expected, share):
    """Whether ONNX Runtime itself gives the other number, in a way that has nothing to do with other rows."""
    inputs, fixed = graph.inputs, graph.fixed
    # ONNX Runtime optimises the whole graph in another way than the part for one tensor
    for data in (model.SerializeToString(), part(model, [worst])):
        try:
            optimised = Graph(data, inputs, [worst], fixed, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
            if distance(found, optimised.row(rows, widths)[worst]) <= TOLERANCE:
                return "optimised"
            copies = [np.repeat(values, fixed or COPIES, axis=0) for values in rows]
            if distance(found, optimised.row(copies, widths)[worst]) <= TOLERANCE and share <= LARGE:
                return "kernel"
        except Refused:
            pass
    random = np.random.default_rng(1)
    moved = 0.0
    for _ in range(6):
        near = [values if entry["element"] not in ("Float32", "Float64", "Float16") else values * (1 + 2e-7 * random.uniform(-1, 1, values.shape))
                for entry, values in zip(inputs, rows)]
        try:
            moved = max(moved, distance(graph.row(near, widths)[worst], expected[worst]))
        except Refused:
            pass
    return "rounding" if moved * 30 >= share else "differs"


def answer(request):
    with open(request["file"], "rb") as file:
        data = file.read()
    try:
        return compare(data, request["results"])
    except Refused as refused:
        return "refused", str(refused)[:300]


for line in sys.stdin:
    try:
        verdict, detail = answer(json.loads(line))
    except Exception as error:  # a mistake here is a finding, too
        verdict, detail = "oracle", repr(error)[:300]
    print(json.dumps({"verdict": verdict, "detail": detail}), flush=True)
