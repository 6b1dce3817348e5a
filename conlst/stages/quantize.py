"""INT8: the matrix products of an exported graph on 8-bit integers, so that no pair's answer depends on its batch.

Weights get a scale a column. Activations get one a *row* (a token), as they come: one scale for a whole batch, which is what
onnxruntime's own dynamic quantisation does, lets the largest value of one pair coarsen its neighbours, and costs an adapted model
a point. A few channels that are large everywhere would still coarsen the rest of their row; they are divided, and the weights
multiplied, by SmoothQuant's factors (Xiao et al., 2023, eq. 4), with ranges found on text of the language.
The embedding table stays as it is, and is shared with the graph in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from conlst.contract.errors import DataError, TrainingError
from conlst.runtime.onnx import open_session, padded

# onnxruntime's own operators: an integer product that ends in float32
_DOMAIN = "com.microsoft"
_LEVELS = 255
_WEIGHT_LEVELS = 127
# SmoothQuant's balance between activations and weights; their default
_ALPHA = 0.5
_LEAST_SCALE = 1e-8
_CALIBRATION = "calibration.onnx"


@dataclass
class _Range:
    """What text showed of an activation: the largest size of each channel ``[channels]``, and where in its range a row has 0."""

    largest: NDArray[np.float32]
    zero: float


def quantize_graph(graph: Path, out: Path, rows: Sequence[list[int]]) -> int:
    """Write the INT8 form of a graph beside it: it has the same embedding table.

    Args:
        graph: ``model.onnx`` of the export stage.
        out: another file of the same folder.
        rows: token ids of unlabelled pairs of the language, on which the ranges are found.

    Returns:
        How many products are on integers.

    Raises:
        DataError: if there are no rows.
        TrainingError: if the graph has no product with a constant matrix.
    """
    if not rows:
        raise DataError("quantisation finds its ranges on unlabelled pairs of the language, and got none")
    model = onnx.load(graph, load_external_data=False)
    weights = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if len(tensor.dims) == 2 and not tensor.external_data
    }
    products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    if not products:
        raise TrainingError(f"{graph} has no product with a constant matrix, so there is nothing to quantise")
    ranges = _ranges(model, graph.parent / _CALIBRATION, sorted({node.input[0] for node in products}), rows)
    _Rewriting(model, weights, ranges).apply(products)
    out.write_bytes(model.SerializeToString(deterministic=True))
    return len(products)


def _ranges(model: ModelProto, scratch: Path, names: list[str], rows: Sequence[list[int]]) -> dict[str, _Range]:
    """Run the graph with its inner activations as outputs, a pair at a time: padding would have a part in them otherwise."""
    shown = ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    scratch.write_bytes(shown.SerializeToString())
    try:
        session = open_session(scratch)
    finally:
        scratch.unlink()
    found: dict[str, _Range] = {}
    tokens = 0
    for ids in rows:
        tokens += len(ids)
        # without a mask that differs from all ones there is nothing that the padding id could do
        for name, value in zip(names, session.run(names, padded([ids], 0)), strict=True):
            flat = np.asarray(value).reshape(-1, np.asarray(value).shape[-1])
            low, high = np.minimum(flat.min(axis=1), 0), np.maximum(flat.max(axis=1), 0)
            zero = float((-low / np.maximum(high - low, _LEAST_SCALE)).sum())
            largest = np.abs(flat).max(axis=0)
            before = found.setdefault(name, _Range(largest, 0.0))
            found[name] = _Range(np.maximum(before.largest, largest), before.zero + zero)
    return {name: _Range(value.largest, value.zero / tokens) for name, value in found.items()}


class _Rewriting:
    """Replaces products in a graph; each activation is quantised once, whatever reads it."""

    def __init__(self, model: ModelProto, weights: dict[str, NDArray[np.float32]], ranges: dict[str, _Range]) -> None:
        self.model = model
        self.weights = weights
        self.ranges = ranges
        self.normalised = {node.output[0] for node in model.graph.node if node.op_type == "LayerNormalization"}
        self.constants: dict[str, onnx.TensorProto] = {}

    def apply(self, products: list[NodeProto]) -> None:
        by_activation: dict[str, list[NodeProto]] = {}
        for node in products:
            by_activation.setdefault(node.input[0], []).append(node)
        smoothing = {name: self._smoothing(name, readers) for name, readers in by_activation.items() if name in self.normalised}
        chosen = {node.output[0] for node in products}
        nodes: list[NodeProto] = []
        quantised: set[str] = set()
        for node in self.model.graph.node:
            if not chosen.intersection(node.output):
                nodes.append(node)
                continue
            activation = node.input[0]
            if activation not in quantised:
                quantised.add(activation)
                nodes += self._quantise(activation, smoothing.get(activation))
            nodes += self._product(node, smoothing.get(activation))
        read = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in self.model.graph.initializer if tensor.name in read]
        del self.model.graph.node[:], self.model.graph.initializer[:]
        self.model.graph.node.extend(nodes)
        self.model.graph.initializer.extend([*kept, *self.constants.values()])
        self.model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))

    def _smoothing(self, activation: str, readers: list[NodeProto]) -> NDArray[np.float32]:
        """``[channels]``: what the activation is divided and the rows of its weights are multiplied by."""
        weight = np.max([np.abs(self.weights[node.input[1]]).max(axis=1) for node in readers], axis=0)
        largest = np.maximum(self.ranges[activation].largest, 1e-5)
        factors = largest**_ALPHA / np.maximum(weight, 1e-5) ** (1 - _ALPHA)
        return np.asarray(factors / np.exp(np.log(factors).mean()), np.float32)

    def _quantise(self, x: str, smoothing: NDArray[np.float32] | None) -> list[NodeProto]:
        """``{x}.uint8`` ``[tokens, channels]``, ``{x}.scale`` ``[tokens, 1]`` and ``{x}.lead``, the outer dimensions."""
        zero = self._zero(x)
        channels = len(self.ranges[x].largest)
        even = f"{x}.rows" if smoothing is None else f"{x}.even"
        scaled = [] if smoothing is None else [_node("Mul", [f"{x}.rows", self._constant(f"{x}.smooth", 1 / smoothing)], even)]
        last = self._constant("int8.last", np.array([-1]))
        return [
            _node("Shape", [x], f"{x}.lead", start=0, end=-1),
            _node("Reshape", [x, self._constant(f"int8.rows.{channels}", np.array([-1, channels]))], f"{x}.rows"),
            *scaled,
            _node("ReduceMax", [even, last], f"{x}.high", keepdims=0),
            _node("ReduceMin", [even, last], f"{x}.low", keepdims=0),
            _node("Mul", [f"{x}.high", self._constant(f"int8.above.{zero}", np.float32(1 / (_LEVELS - zero)))], f"{x}.above"),
            _node("Mul", [f"{x}.low", self._constant(f"int8.below.{zero}", np.float32(-1 / zero))], f"{x}.below"),
            _node("Max", [f"{x}.above", f"{x}.below", self._constant("int8.least", np.float32(_LEAST_SCALE))], f"{x}.scales"),
            _node("Shape", [f"{x}.scales"], f"{x}.count"),
            _node("Expand", [self._constant(f"int8.zero.{zero}", np.uint8(zero)), f"{x}.count"], f"{x}.zeros"),
            _node("QuantizeLinear", [even, f"{x}.scales", f"{x}.zeros"], f"{x}.uint8", axis=0),
            _node("Unsqueeze", [f"{x}.scales", last], f"{x}.scale"),
        ]

    def _product(self, node: NodeProto, smoothing: NDArray[np.float32] | None) -> list[NodeProto]:
        x, y = node.input[0], node.output[0]
        weight = self.weights[node.input[1]]
        weight = weight if smoothing is None else weight * smoothing[:, None]
        scale = np.maximum(np.abs(weight).max(axis=0) / _WEIGHT_LEVELS, _LEAST_SCALE).astype(np.float32)
        inputs = [
            f"{x}.uint8",
            self._constant(f"{y}.int8", np.rint(weight / scale).astype(np.int8)),
            self._constant("int8.one", np.float32(1)),
            self._constant(f"{y}.columns", scale),
            self._constant(f"int8.zero.{self._zero(x)}", np.uint8(self._zero(x))),
        ]
        return [
            # the scale of the rows comes after: the operator only takes one for all of them
            helper.make_node("MatMulIntegerToFloat", inputs, [f"{y}.unscaled"], domain=_DOMAIN),
            _node("Mul", [f"{y}.unscaled", f"{x}.scale"], f"{y}.flat"),
            _node(
                "Concat", [f"{x}.lead", self._constant(f"int8.width.{len(scale)}", np.array([len(scale)]))], f"{y}.shape", axis=0
            ),
            _node("Reshape", [f"{y}.flat", f"{y}.shape"], y),
        ]

    def _zero(self, activation: str) -> int:
        """The level of 0, where the rows have it on average: after GELU far from the middle, which doubles the levels in use."""
        return int(np.clip(round(_LEVELS * self.ranges[activation].zero), 1, _LEVELS - 1))

    def _constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name)
        return name


def _node(operator: str, inputs: list[str], output: str, **attributes: int) -> NodeProto:
    node = helper.make_node(operator, inputs, [output])
    node.attribute.extend(helper.make_attribute(name, value) for name, value in sorted(attributes.items()))
    return node
