"""An ONNX graph in which folded positions cost nothing: tables join the bias of the linear layer that reads them.

(a + d) W + b = a W + (d W + b), so that the addition of d disappears into that of b.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt


def join_tables(graph: Any) -> int:
    """Move each constant table that is added before a linear layer, and read by it alone, into that layer's bias.

    Args:
        graph: An onnx.GraphProto; it is changed.

    Returns:
        How many additions are gone.
    """
    from onnx import numpy_helper

    constants = {each.name: each for each in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(output.name for output in graph.output)
    reader = {name: node for node in graph.node for name in node.input}
    gone: list[Any] = []
    for table_add in graph.node:
        tokens, table = _split(table_add, constants)
        product = _only_reader(table_add, readers, reader)
        if table is None or product is None or product.op_type != "MatMul" or product.input[1] not in constants:
            continue
        bias_add = _only_reader(product, readers, reader)
        bias = _split(bias_add, constants)[1] if bias_add is not None else None
        if bias is None:
            continue
        d, w, b = (numpy_helper.to_array(constants[name]) for name in (table, product.input[1], bias))
        if d.ndim != 3 or w.ndim != 2 or b.ndim != 1 or product.input[0] != table_add.output[0]:
            continue
        joined: npt.NDArray[Any] = (d.astype(np.float64) @ w + b).astype(b.dtype)
        name = f"{table}_joined_{bias}"
        graph.initializer.append(numpy_helper.from_array(joined, name))
        product.input[0] = tokens
        bias_add.input[list(bias_add.input).index(bias)] = name
        gone.append(table_add)
    for node in gone:
        graph.node.remove(node)
    _drop_unread(graph)
    return len(gone)


def _split(node: Any, constants: dict[str, Any]) -> tuple[str, str | None]:
    """Return what an Add node adds its constant to, and that constant; None where it is no such node."""
    if node.op_type == "Add":
        for tokens, constant in (node.input, tuple(node.input)[::-1]):
            if constant in constants and tokens not in constants:
                return tokens, constant
    return "", None


def _only_reader(node: Any, readers: Counter[str], reader: dict[str, Any]) -> Any:
    """Return the node that alone reads what this one puts out, or None."""
    (output,) = node.output[:1]
    return reader.get(output) if readers[output] == 1 else None


def _drop_unread(graph: Any) -> None:
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for constant in [each for each in graph.initializer if each.name not in read]:
        graph.initializer.remove(constant)
