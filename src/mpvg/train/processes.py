"""Several processes that train together: that they begin in the same place, and evaluate the same model."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor, nn
from torchmetrics import Metric

from mpvg.errors import UserError


class MeanLoss(Metric):
    """The mean over the images of all processes; of unequal parts, what Lightning logs is not that."""

    def __init__(self) -> None:
        super().__init__()
        self.total: Tensor
        self.images: Tensor
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, loss: Tensor, images: int) -> None:
        """Take a batch into account.

        Args:
            loss: Its mean.
            images: How many it has.
        """
        self.total += loss * images
        self.images += images

    def compute(self) -> Tensor:
        """Return the mean."""
        return self.total / self.images


def wait_for_all(trainer: Any) -> None:
    """Wait until the first process has come this far, where a launcher such as torchrun starts all at once.

    Those that Lightning starts by itself come after the first one anyway.

    Args:
        trainer: Lightning's.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is not None and not isinstance(environment, LightningEnvironment):
        trainer.strategy.setup_environment()
        trainer.strategy.barrier()


def check_equal_parts(images_a_step: int, processes: int) -> None:
    """Check that processes can share each batch equally, or the mean of their losses would not be that of it.

    Args:
        images_a_step: Of all of them.
        processes: How many train together.

    Raises:
        UserError: They cannot.
    """
    if images_a_step % processes:
        fewer = images_a_step // processes * processes
        raise UserError(
            f"batch_size {images_a_step} over {processes} processes leaves them unequal parts: name a multiple of "
            f"{processes}, --data.batch_size {fewer or processes} say."
        )


def check_one_each(images: int, processes: int) -> None:
    """Check that each process has an image to evaluate; UserError otherwise."""
    if images < processes:
        raise UserError(
            f"{images} images to evaluate for {processes} processes: take fewer, --trainer.devices {images} say."
        )


def check_together(trainer: Any, *, step: int, images: int) -> None:
    """Check that all processes go on from the same step with the same images.

    Args:
        trainer: Lightning's, whose processes are connected.
        step: Of the checkpoint that this process goes on from; 0 for none.
        images: Of its training set.

    Raises:
        UserError: They do not; each process says so.
    """
    here = torch.tensor([step, images], device=trainer.strategy.root_device)
    found = trainer.strategy.all_gather(here).view(-1, 2)
    for rank, (its_step, its_images) in enumerate(found.tolist()):
        first_step, first_images = found[0].tolist()
        if its_step != first_step:
            raise UserError(
                f"process {rank} would go on from step {its_step}, process 0 from step {first_step}: they do not see "
                "the same files in --out. Name a folder that all machines share."
            )
        if its_images != first_images:
            raise UserError(
                f"process {rank} has {its_images} images to train on, process 0 has {first_images}: give each machine "
                "the same --data."
            )


def share_buffers(trainer: Any, model: nn.Module) -> None:
    """Give all processes the first one's statistics of batch norms, which is what a checkpoint holds.

    Args:
        trainer: Lightning's.
        model: Whose buffers they are.
    """
    if trainer.world_size > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
