"""FSDP on GPUs and processors, whose checkpoints are those of one process."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

# Most weights of a block; its norms stay with the model, which reads those of positions itself.
_PARTS = ("attn", "mlp")


class ShardedStrategy(DDPStrategy):
    """PyTorch's `fully_shard` in DDP's place: each process keeps a part of weights, their average and the optimiser.

    A process holds the weights of one part of a block at a time, beside the norms and tables. Checkpoints hold whole
    tensors in the order of one process, so that any number of processes goes on from them.
    """

    def configure_ddp(self) -> None:
        """Shard the model and the average of its weights."""
        # Warned of are changes in place of what attention returns; blocks add to a copy.
        warnings.filterwarnings("ignore", message=".*returned a view tensor")
        module: Any = self.lightning_module
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        _shard(module.model, mesh)
        if module.ema is not None:
            _shard(module.ema.module, mesh)
            module.ema.foreach = False  # which takes no buffers beside shards

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole weights; all processes must ask."""
        return {name: _whole(value) for name, value in super().lightning_module_state_dict().items()}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the whole state of an optimiser; all processes must ask."""
        found: Any = super().optimizer_state(optimizer)
        of_parameters = {
            number: {name: _whole(value) for name, value in values.items()} for number, values in found["state"].items()
        }
        return {**found, "state": of_parameters}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take over the optimisers' states, of each process its part."""
        super().load_optimizer_state_dict(checkpoint)
        for optimizer in self.optimizers:
            states: Any = optimizer.state
            for parameter, values in states.items():
                for name, value in values.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        values[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements)


def _shard(model: nn.Module, mesh: DeviceMesh) -> None:
    for name, part in list(model.named_modules()):
        if name.rpartition(".")[2] in _PARTS:
            fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)  # or the average would hold all after it was evaluated


def _whole(value: Any) -> Any:
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value
