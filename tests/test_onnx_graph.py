"""Tables join the bias of the linear layer that reads them, and only where nothing else does."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mpvg.onnx_graph import join_tables

N, D, WIDE = 5, 3, 4
RANDOM = np.random.default_rng(0)
TABLE, WEIGHT, BIAS = (RANDOM.normal(size=size).astype(np.float32) for size in ((1, N, D), (D, WIDE), (WIDE,)))


def model(nodes: list[tuple[str, list[str], str]], outputs: dict[str, int], **changed: Any) -> Any:
    constants = {"table": TABLE, "weight": WEIGHT, "bias": BIAS, **changed}
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output], name=output) for kind, inputs, output in nodes],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", N, D])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", N, width])
            for name, width in outputs.items()
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(proto: Any) -> list[Any]:
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.random.default_rng(1).normal(size=(2, N, D)).astype(np.float32)})


ADD, PRODUCT, ADD_BIAS = ("Add", ["x", "table"], "a"), ("MatMul", ["a", "weight"], "p"), ("Add", ["p", "bias"], "y")


@pytest.mark.parametrize("turned", [False, True], ids=["constant second", "constant first"])
def test_a_table_joins_the_bias(turned: bool) -> None:
    nodes = [
        (kind, inputs[::-1] if turned and kind == "Add" else inputs, out)
        for kind, inputs, out in (ADD, PRODUCT, ADD_BIAS)
    ]
    proto = model(nodes, {"y": WIDE})
    before = run(proto)
    assert join_tables(proto.graph) == 1
    np.testing.assert_allclose(run(proto)[0], before[0], rtol=1e-5, atol=1e-6)
    assert Counter(node.op_type for node in proto.graph.node) == {"MatMul": 1, "Add": 1}
    assert sorted(each.name for each in proto.graph.initializer) == ["table_joined_bias", "weight"]


@pytest.mark.parametrize(
    ("nodes", "outputs", "changed"),
    [
        ([ADD, PRODUCT, ADD_BIAS, ("Relu", ["a"], "r")], {"y": WIDE, "r": D}, {}),
        ([ADD, PRODUCT, ADD_BIAS], {"y": WIDE, "a": D}, {}),
        ([ADD, PRODUCT, ADD_BIAS], {"y": WIDE, "p": WIDE}, {}),
        ([ADD, PRODUCT], {"p": WIDE}, {}),
        ([ADD, PRODUCT, ("Mul", ["p", "bias"], "y")], {"y": WIDE}, {}),
        ([ADD, PRODUCT, ADD_BIAS], {"y": WIDE}, {"bias": np.ones((N, WIDE), np.float32)}),
        ([ADD, PRODUCT, ADD_BIAS], {"y": WIDE}, {"table": np.ones(D, np.float32)}),
        ([ADD, ("Relu", ["a"], "r"), ("MatMul", ["r", "weight"], "p"), ADD_BIAS], {"y": WIDE}, {}),
        ([ADD, PRODUCT, ("Add", ["p", "p"], "y")], {"y": WIDE}, {}),
    ],
    ids=[
        "read twice", "put out", "product put out", "no bias", "scaled", "table of a bias", "bias before", "not linear",
        "no constant",
    ],
)  # fmt: skip
def test_what_else_reads_it_keeps_it(nodes: list[Any], outputs: dict[str, int], changed: dict[str, Any]) -> None:
    proto = model(nodes, outputs, **changed)
    before = run(proto)
    graph = proto.graph.SerializeToString()
    kept = len(proto.graph.node)
    assert join_tables(proto.graph) == 0
    assert len(proto.graph.node) == kept
    for found, expected in zip(run(proto), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert len(graph) >= len(proto.graph.SerializeToString())  # constants that nobody reads may go
