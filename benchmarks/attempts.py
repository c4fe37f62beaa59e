"""Ways to make positions cheaper than they are, each beside timm's own model: what was tried, and what it brought.

    python benchmarks/attempts.py [--size tiny] [--batch 1] [--train] [--compile] [--seconds 60] [--csv FILE]

None of them is in the library. Those for inference change the order of a sum, so that a model whose weights were all
perturbed gives other outputs than before it was folded, by the difference printed; those for training have to pay for
what they save.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import mpvg
from mpvg.bench.heats import forget_compiled
from mpvg.bench.turns import Work, is_quiet, keep_memory, processor_clock, ratio, take_turns
from mpvg.bench.work import Task


class TableInBias(nn.Module):
    """qkv(a + d) = a W + (d W + b): at one image the table is what the product is added to."""

    def __init__(self, qkv: nn.Linear, table: Tensor) -> None:
        super().__init__()
        self.weight, self.table = qkv.weight, nn.Buffer(F.linear(table, qkv.weight, qkv.bias).detach())

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1:
            return torch.addmm(self.table[0], x[0], self.weight.t())[None]
        return torch.baddbmm(self.table.expand(len(x), -1, -1), x, self.weight.t().expand(len(x), -1, -1))


class TableInNorm(nn.Module):
    """LN(x) + d, with the norm's own bias in the table."""

    def __init__(self, norm: nn.LayerNorm, table: Tensor, *, in_place: bool = False) -> None:
        super().__init__()
        assert norm.bias is not None
        self.weight, self.eps, self.in_place = norm.weight, norm.eps, in_place
        self.table = nn.Buffer((table + norm.bias).detach())

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x, self.weight.shape, self.weight, None, self.eps)
        return normed.add_(self.table) if self.in_place else normed + self.table


class PatchesAsProduct(nn.Module):
    """Patches cut out and multiplied, instead of a convolution, with pos_0 in the bias."""

    def __init__(self, embed: Any, table: Tensor) -> None:
        super().__init__()
        self.weight, self.table = embed.proj.weight.flatten(1), nn.Buffer((table + embed.proj.bias).detach())
        self.patch_size, self.grid_size, self.dynamic_img_pad = embed.patch_size, embed.grid_size, False

    def forward(self, x: Tensor) -> Tensor:
        (height, width), (rows, columns) = self.patch_size, self.grid_size
        x = x.reshape(len(x), -1, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
        return F.linear(x.reshape(len(x), rows * columns, -1), self.weight) + self.table


def in_every_block(model: Any, replace: Callable[[Any, Tensor], None]) -> Any:
    for block, stored in zip(model.blocks, model.tables, strict=True):
        if stored.table is not None:
            replace(block, stored.table)
            stored.table = None
    return model


def put_into_bias(block: Any, table: Tensor) -> None:
    block.attn.qkv = TableInBias(block.attn.qkv, table)


def put_into_norm(block: Any, table: Tensor, *, in_place: bool = False) -> None:
    block.norm1 = TableInNorm(block.norm1, table, in_place=in_place)


def with_product(model: Any) -> Any:
    model.patch_embed, model.joins_input = PatchesAsProduct(model.patch_embed, model.pos_embed.detach()), False
    return model


class AddByProduct(torch.autograd.Function):
    """x + d, with d's gradient, a sum over the batch, as a product with ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, d: Tensor) -> Tensor:
        return x + d

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        return grad, (grad.new_ones(1, len(grad)) @ grad.flatten(1)).view_as(grad[:1])


def attend_by(add: Callable[[Tensor, Tensor], Tensor], model: Any) -> Any:
    def attend(self: Any, x: Tensor, pos: Tensor | None, attn_mask: Tensor | None) -> Tensor:
        a = self.norm1(x)
        return x + self.attn(a if pos is None else add(a, pos), attn_mask=attn_mask)

    for block in model.blocks:
        block.attend = MethodType(attend, block)
    return model


class Chain(torch.autograd.Function):
    """All norms of a hierarchical chain as one node of the graph: pos_0, eps, then gain and bias of each."""

    @staticmethod
    def forward(ctx: Any, initial: Tensor, eps: float, *affine: Tensor) -> tuple[Tensor, ...]:
        previous, delivered, kept = initial, [], []
        for weight, bias in zip(affine[::2], affine[1::2], strict=True):
            found, mean, scale = torch.native_layer_norm(previous, weight.shape, weight, bias, eps)
            kept += [previous, mean, scale, weight, bias]
            delivered.append(found)
            previous = found
        ctx.save_for_backward(*kept)
        return tuple(delivered)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        kept, affine, arriving = ctx.saved_tensors, [], torch.zeros_like(grads[-1])
        for index in reversed(range(len(grads))):
            read, mean, scale, weight, bias = kept[5 * index : 5 * index + 5]
            arriving, *own = torch.ops.aten.native_layer_norm_backward(
                grads[index] + arriving, read, weight.shape, mean, scale, weight, bias, [True, True, True]
            )
            affine += reversed(own)
        return arriving, None, *reversed(affine)


def with_chain_at_once(model: Any) -> Any:
    norms = [block.norm_pos for block in model.blocks if block.norm_pos is not None]

    def deliver(initial: Tensor) -> list[Tensor | None]:
        affine = [parameter for norm in norms for parameter in (norm.weight, norm.bias)]
        delivered = iter(Chain.apply(initial, norms[0].eps, *affine))
        return [None if block.norm_pos is None else next(delivered) for block in model.blocks]

    model.deliver = deliver
    return model


def with_chain_twice(model: Any) -> Any:
    """Keep nothing of the chain of norms, and compute it again on the way back."""
    deliver = model.deliver
    model.deliver = lambda initial: checkpoint(deliver, initial, use_reentrant=False)
    return model


INFERENCE: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda model: model,
    "table in the bias of qkv": lambda model: in_every_block(model, put_into_bias),
    "table in the norm": lambda model: in_every_block(model, put_into_norm),
    "table in the norm, in place": lambda model: in_every_block(model, partial(put_into_norm, in_place=True)),
    "patches as a product with pos_0": with_product,
}
TRAINING: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda model: model,
    "batch sum as a product": lambda model: attend_by(AddByProduct.apply, model),
    "added in place": lambda model: attend_by(lambda a, pos: a.add_(pos), model),
    "chain as one node": with_chain_at_once,
    "chain computed twice": with_chain_twice,
}


def build(name: str) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name)


def difference(name: str, attempt: Callable[[Any], Any], images: Tensor) -> float:
    """Return max|difference| / max|output| to the unfolded model, every parameter perturbed by N(0, 0.3)."""
    model = build(name).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        expected, found = model(images), attempt(mpvg.fold(model))(images)
    return float((found - expected).abs().max() / expected.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--builds", type=int, default=3)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    keep_memory()
    own, ours = f"deit_{arguments.size}_patch16_224", f"mpvg_deit_{arguments.size}_patch16_224"
    task = Task("compile" if arguments.compile else "eager", arguments.train, arguments.batch)
    images = torch.randn(arguments.batch, 3, 224, 224)
    attempts = TRAINING if arguments.train else INFERENCE

    def timms() -> Work:
        return task.work(build(own), images)

    def attempted(attempt: Callable[[Any], Any]) -> Work:
        return task.work(attempt(build(ours) if arguments.train else mpvg.fold(build(ours))), images)

    first, second, *times = take_turns(
        [timms, timms, *(partial(attempted, attempt) for attempt in attempts.values())],
        processor_clock,
        rounds=400,
        seconds=arguments.seconds,
        builds=arguments.builds,
        before_build=forget_compiled,
    )
    noise = ratio(second, first)
    what = f"{task.kind}, {task.mode}"
    print(f"{own}, batch {arguments.batch}, {what}: beside itself {noise.median:.3f} ", end="")
    print(f"({noise.low:.3f} to {noise.high:.3f}), {len(first)} rounds{'' if is_quiet(noise) else ', too noisy'}")
    rows = []
    for (name, attempt), own_times in zip(attempts.items(), times, strict=True):
        found = [f"{value:.4f}" if is_quiet(noise) else "" for value in ratio(own_times, first, second)]
        changed = "" if arguments.train else f"{difference(ours, attempt, images):.1e}"
        print(f"  {name:32} {' '.join(found)}  {changed}")
        rows.append([arguments.size, arguments.batch, what, name, *found, changed, *(f"{value:.4f}" for value in noise),
                     len(first), torch.__version__])  # fmt: skip
    if arguments.csv:
        new = not arguments.csv.exists()
        with arguments.csv.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(["size", "batch", "work", "attempt", "ratio", "low", "high", "difference",
                                 "noise", "noise_low", "noise_high", "rounds", "torch"])  # fmt: skip
            writer.writerows(rows)


if __name__ == "__main__":
    main()
