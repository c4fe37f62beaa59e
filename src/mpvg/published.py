"""Models that somebody saved in timm's format: a folder ("local-dir:DIR") or a repository ("hf-hub:OWNER/NAME")."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from timm.models import load_state_dict_from_hf
from timm.models._hub import load_model_config_from_hf, load_model_config_from_path
from torch import Tensor

from mpvg.errors import UserError
from mpvg.weight_files import Origin, read_weights, unwrap

ENTRY = "mpvg"  # under which timm's registry finds converted models
SOURCES = ("local-dir", "hf-hub")


class Published(NamedTuple):
    """What a model's configuration says of it.

    name: timm's name of the architecture, or ours; of a converted model what it was before.
    arguments: What `timm.create_model` was told of it, without its scheme.
    cfg: timm's configuration of its images and classes, without where the weights are.
    source: Where they are.
    address: The folder or the repository.
    """

    name: str
    arguments: dict[str, Any]
    cfg: dict[str, Any]
    source: str
    address: str

    @property
    def origin(self) -> Origin:
        """What is known of the images that it was trained on."""
        _, height, width = self.cfg["input_size"]
        return Origin((height, width), (tuple(self.cfg["mean"]), tuple(self.cfg["std"])))

    def read_weights(self, cache_dir: Any = None) -> dict[str, Tensor]:
        """Return its weights; the Hub's come by timm's mechanism.

        Args:
            cache_dir: Where downloads are kept; None for timm's choice.

        Raises:
            UserError: There are none, or they are damaged.
        """
        if self.source == "local-dir":
            return read_weights(self.address)
        content = load_state_dict_from_hf(self.address, weights_only=True, cache_dir=cache_dir)
        return unwrap(content, what=self.address)


def read_published(name: str, cache_dir: Any = None) -> Published:
    """Read the configuration of a saved model.

    Args:
        name: As `timm.create_model` takes it.
        cache_dir: Where downloads are kept; None for timm's choice.

    Raises:
        UserError: There is none.
    """
    source, _, address = name.partition(":")
    source = source.replace("hf_hub", "hf-hub")
    if source not in SOURCES or not address:
        raise UserError(f"model {name!r} has no known source: use 'local-dir:DIR' or 'hf-hub:OWNER/NAME'.")
    try:
        if source == "local-dir":
            address = str(Path(address).expanduser())
            cfg, architecture, arguments = load_model_config_from_path(address)
        else:
            cfg, architecture, arguments = load_model_config_from_hf(address, cache_dir=cache_dir)
        known = {key: value for key, value in (arguments or {}).items() if key not in ("scheme", "preserve")}
        if architecture == ENTRY:
            known.pop("global_pool", None)  # that after conversion
            architecture, of_base = known.pop("base"), known.pop("base_args", None)
            known = {**(of_base or {}), **known}
        if architecture.startswith("mpvg_"):
            known.pop("global_pool", None)  # the scheme says what is read out
    except (FileNotFoundError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{address} has no configuration of a model in timm's format (config.json: {error}): name a folder that "
            "mpvg.save or timm's save_for_hf wrote."
        ) from error
    return Published(
        architecture,
        known,
        {key: cfg[key] for key in cfg if key not in ("source", "file", "hf_hub_id")},
        source,
        address,
    )
