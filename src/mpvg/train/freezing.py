"""What of a model is trained, and how the rest is kept as it is."""

from __future__ import annotations

from typing import Any

from mpvg.errors import UserError

TRAINS = ("all", "positions", "head")
_POSITIONS = {"pos_embed", "norm_pos", "ls_pos"}  # the table, the norms through which it is delivered, their scales


def freeze(model: Any, trains: str) -> None:
    """Freeze what is not trained; frozen parameters have no gradient, and no optimiser is given them.

    Args:
        model: The model.
        trains: "all"; "positions" for tables that are learned, norms and scales of positions, and the classifier;
            "head" for the classifier alone (a linear probe).

    Raises:
        UserError: The positions are to be trained and there are none.
    """
    if trains == "all":
        return
    kept = {id(parameter) for parameter in model.get_classifier().parameters()}
    if trains == "positions":
        positions = [parameter for name, parameter in model.named_parameters() if _POSITIONS & set(name.split("."))]
        if not any(parameter.requires_grad for parameter in positions):  # a sinusoid stays frozen
            raise UserError(
                f"trains 'positions': scheme {str(model.scheme)!r} leaves this model none to train. Take a "
                "learned table or a scheme that delivers through norms, such as 'mpvg', or train 'head' or 'all'."
            )
        kept |= set(map(id, positions))
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.requires_grad_(False)


def set_training_mode(model: Any, trains: str) -> None:
    """Put a model into the mode of its training steps.

    Of a partly frozen model that is the mode it is tested in: statistics of batch norms stay, and no dropout or drop
    path disturbs what the trained part reads.

    Args:
        model: The model.
        trains: What `freeze` left to train.
    """
    model.train(trains == "all")
