"""Models as files for other programs, from any module in eval mode: ONNX, torch.export and safetensors.

Files are whole or not there, and carry texts (class names, mean, ...) that a reader finds without this library.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpvg.checkpoint import save_weights
from mpvg.files import write_atomically
from mpvg.models.common import plain_attention
from mpvg.onnx_graph import join_tables

INPUT, OUTPUT = "images", "logits"
BATCH = "batch"  # the name of a dynamic first dimension


def write_onnx(
    model: nn.Module,
    path: Path,
    *,
    input_size: tuple[int, int, int],
    dynamic_batch: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one .onnx file with the weights inside, input "images" and output "logits" (or "features_<i>" for maps).

    Args:
        model: The model, in eval mode.
        path: The file; one already there is replaced in one step.
        input_size: Channels, height and width (C, H, W) of the images, in pixels.
        dynamic_batch: Accept any number of images at a time and not only one.
        metadata: Texts for the file's metadata_props.

    Raises:
        ModuleNotFoundError: onnx or onnxscript is missing: they come with the extra [export].
        OSError: The file cannot be written.
        ValueError: The model is in training mode, or larger than the 2 GB that an .onnx file can hold.
    """
    import onnx  # of the extra [export]

    _check_eval(model)
    images = _example(model, input_size, dynamic_batch)
    # fused attention would become 9 nodes a block more
    with torch.no_grad(), plain_attention(model), _quiet():
        program: Any = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            optimize=True,
            verbose=False,
            input_names=[INPUT],
            output_names=_output_names(model(images)),
            dynamic_shapes=_dynamic_shapes(dynamic_batch),
        )
    proto = program.model_proto
    _strip(proto)
    join_tables(proto.graph)
    onnx.helper.set_model_props(proto, dict(metadata or {}))
    onnx.checker.check_model(proto, full_check=True)
    write_atomically(path, proto.SerializeToString())


def write_torch_export(
    model: nn.Module,
    path: Path,
    *,
    input_size: tuple[int, int, int],
    dynamic_batch: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a .pt2 file, for `torch.export.load`.

    Args:
        model: The model, in eval mode.
        path: The file; one already there is replaced in one step.
        input_size: Channels, height and width (C, H, W) of the images, in pixels.
        dynamic_batch: Accept any number of images at a time and not only one.
        metadata: Texts for the file's extra_files.

    Raises:
        OSError: The file cannot be written.
        ValueError: The model is in training mode.
    """
    _check_eval(model)
    images = _example(model, input_size, dynamic_batch)
    with torch.no_grad():
        program = torch.export.export(model, (images,), dynamic_shapes=_dynamic_shapes(dynamic_batch))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    content = io.BytesIO()
    torch.export.save(program, content, extra_files=dict(metadata or {}))
    write_atomically(path, content.getvalue())


def write_safetensors(model: nn.Module, path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a .safetensors file of the model's state dict.

    Args:
        model: The model, in eval mode: a file for prediction is asked for as the others are.
        path: The file; one already there is replaced in one step.
        metadata: Texts for the file's metadata.

    Raises:
        OSError: The file cannot be written.
        ValueError: The model is in training mode.
    """
    _check_eval(model)
    save_weights(path, model, metadata or {})


def _check_eval(model: nn.Module) -> None:
    if any(module.training for module in model.modules()):
        raise ValueError(f"{type(model).__name__} is in training mode: call .eval() first.")


def _example(model: nn.Module, input_size: tuple[int, int, int], dynamic_batch: bool) -> Tensor:
    """Return images to trace with; torch takes a batch of one for a constant."""
    return next(model.parameters()).new_zeros(2 if dynamic_batch else 1, *input_size)


def _dynamic_shapes(dynamic_batch: bool) -> Any:
    return ({0: torch.export.Dim(BATCH)},) if dynamic_batch else None


def _output_names(outputs: Any) -> list[str]:
    return [OUTPUT] if isinstance(outputs, Tensor) else [f"features_{index}" for index in range(len(outputs))]


def _strip(proto: Any) -> None:
    """Drop the exporter's notes, a quarter of a small file: lines of our sources, and where they lie here."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the optimiser of graphs says of each node that it leaves as it is."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
