"""The work that is timed: a model's inference or training step, in eager mode, compiled or in onnxruntime."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpvg.bench.turns import Work
from mpvg.fold import fold

MODES = ("eager", "compile", "onnx")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Contestant:
    """A model to be timed.

    Args:
        model: Name in timm's registry, ours or timm's own.
        scheme: Position scheme; None for a model of timm's own.
        folded: Whether it is folded.
    """

    model: str
    scheme: str | None = None
    folded: bool = False

    @property
    def name(self) -> str:
        return self.model + (f":{self.scheme}" if self.scheme else "")

    @property
    def variant(self) -> str:
        return (self.scheme or self.model) + (", folded" if self.folded else "")

    def build(self, size: tuple[int, int] | None, device: str = "cpu") -> Any:
        """Return the model, with random weights and without drop path, for images of `size` (H, W) or its own."""
        arguments: dict[str, Any] = {"drop_path_rate": 0.0, "device": device}
        if self.scheme is not None:
            arguments["scheme"] = self.scheme
        if size is not None:
            arguments["img_size"] = size
        torch.manual_seed(0)
        model = timm.create_model(self.model, **arguments)
        return fold(model) if self.folded else model


@dataclass(frozen=True)
class Task:
    """What every contestant does.

    Args:
        mode: One of MODES.
        training: A training step (forward, backward, AdamW) and not inference.
        batch: Images at a time.
        size: Of the images (H, W) in pixels; None for the model's own.
        device: "cpu" or "cuda[:N]".
        dtype: One of DTYPES: of the weights in inference, of autocast in training.
        graphs: Replay CUDA graphs.
    """

    mode: str
    training: bool
    batch: int
    size: tuple[int, int] | None = None
    device: str = "cpu"
    dtype: str = "float32"
    graphs: bool = False

    @property
    def kind(self) -> str:
        return "training" if self.training else "inference"

    def prepare(self, contestant: Contestant, *, starting: Callable[[], None] = lambda: None) -> Work:
        """Return the work of a contestant, ready to be called again and again.

        Args:
            contestant: The model.
            starting: Called before anything that inference or training needs is in memory.
        """
        if self.device != "cpu":
            torch.cuda.set_device(self.device)  # events and graphs are of the current device
        if self.mode == "onnx":
            return self._onnx_inference(contestant, starting)
        starting()
        model = contestant.build(self.size, self.device)
        return self.work(model, self.images(model))

    def images(self, model: Any) -> Tensor:
        """Return random images (B, C, H, W) for a model."""
        channels, *own = model.default_cfg["input_size"]
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.batch, channels, *(self.size or own), generator=generator).to(self.device)

    def work(self, model: Any, images: Tensor) -> Work:
        """Return the work of a model in eager mode or compiled."""
        work = self._training(model, images) if self.training else self._inference(model, images)
        return _replayed(work) if self.graphs else work

    def _inference(self, model: nn.Module, images: Tensor) -> Work:
        model = model.eval().to(DTYPES[self.dtype])
        images = images.to(DTYPES[self.dtype])
        forward = self._compiled(model)

        def infer() -> None:
            with torch.inference_mode():
                forward(images)

        return infer

    def _training(self, model: Any, images: Tensor) -> Work:
        model.train()
        forward = self._compiled(model)
        targets = torch.arange(len(images), device=images.device) % model.num_classes
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True, capturable=self.graphs)
        casting: Any = nullcontext
        if self.dtype != "float32":

            def casting() -> Any:
                return torch.autocast(images.device.type, DTYPES[self.dtype], cache_enabled=not self.graphs)

        def step() -> None:
            optimizer.zero_grad()
            with casting():
                loss = F.cross_entropy(forward(images), targets)
            loss.backward()
            optimizer.step()

        return step

    def _onnx_inference(self, contestant: Contestant, starting: Callable[[], None]) -> Work:
        import onnxruntime

        from mpvg.export import INPUT

        _share_threads()
        options = onnxruntime.SessionOptions()
        options.use_per_session_threads = False
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            images = self._write_onnx(contestant, path)
            gc.collect()  # of the model and its export nothing is left
            starting()
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {INPUT: images.numpy()}
        return lambda: session.run(None, feed)

    def _write_onnx(self, contestant: Contestant, path: Path) -> Tensor:
        """Write a contestant's file, and return images for it."""
        from mpvg.export import write_onnx

        model = contestant.build(self.size).eval()
        images = self.images(model)
        channels, height, width = images.shape[1:]
        write_onnx(model, path, input_size=(channels, height, width), dynamic_batch=self.batch > 1)
        return images

    def _compiled(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        return torch.compile(model) if self.mode == "compile" else model


@cache
def _share_threads() -> None:
    """Have all sessions compute on the same threads: a session's own ones would spin while others have their turn.

    This holds for the process: onnxruntime then refuses sessions with threads of their own.
    """
    import onnxruntime

    onnxruntime.set_global_thread_pool_sizes(torch.get_num_threads(), 1)


def _replayed(work: Work) -> Work:
    """Capture the kernels of a piece of work once and replay them; warm-up and capture as PyTorch documents them."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
