"""Models given to others: `mpvg.save(model, DIR)` writes a folder that timm reads, with a card for people."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models._hub import save_config_for_hf

import mpvg
from mpvg.checkpoint import save_weights
from mpvg.errors import UserError
from mpvg.files import write_atomically
from mpvg.fold import Folded
from mpvg.models.arguments import arguments_of
from mpvg.position import Layerwise
from mpvg.published import ENTRY
from mpvg.weight_files import check_finite

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_CITATIONS = {
    "mpvg": """@inproceedings{lee2025mpvg,
  title     = {Maximizing the Position Embedding for Vision Transformers with Global Average Pooling},
  author    = {Lee, W. and Ham, B. and Kim, S.},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year      = {2025}
}""",
    "lape": """@inproceedings{yu2023lape,
  title     = {LaPE: Layer-adaptive Position Embedding for Vision Transformers with Independent Layer Normalization},
  author    = {Yu, R. and others},
  booktitle = {IEEE/CVF International Conference on Computer Vision},
  year      = {2023}
}""",
}


def save(
    model: Any,
    directory: str | Path,
    *,
    classes: Sequence[str] | None = None,
    data: str | None = None,
    metrics: Mapping[str, float | str] | None = None,
    licence: str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model as a folder: weights, timm's configuration and a model card.

    `timm.create_model("local-dir:DIR", pretrained=True)` after `import mpvg` gives the model back exactly; uploaded to
    the Hub, "hf-hub:OWNER/NAME" does.

    Args:
        model: A model of this library, not folded.
        directory: The folder, made where it is missing; files of these names in it are replaced.
        classes: Names in the order of the outputs.
        data: What it was trained on, for the card.
        metrics: What was measured of it, for the card, such as {"accuracy on the test split, %": 81.2}.
        licence: Of the weights, by its SPDX name ("apache-2.0"); weights that began as others' come under their terms.
        preprocessing: What timm's configuration says of the images, where it differs: "mean", "std", "interpolation",
            "crop_pct".

    Returns:
        The folder.

    Raises:
        UserError: The model cannot be built again from a name, or the arguments do not fit it.
        OSError: A file cannot be written.
    """
    _check(model, classes)
    directory = Path(directory).expanduser()
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: name a folder.")
    directory.mkdir(parents=True, exist_ok=True)
    changes = {**(preprocessing or {}), "license": licence}  # timm's is that of weights which need not be these
    config = _config(model, directory, changes, {"label_names": list(classes)} if classes else {})
    _check_rebuilt(model, config)
    # timm 1.0.26 leaves what the architecture was made for
    now = {"input_size": (model.in_chans, *model.patch_embed.img_size), "num_classes": model.num_classes}
    config["pretrained_cfg"].update(now)
    save_weights(directory / WEIGHTS, model, {"format": "pt"})
    write_atomically(directory / CONFIG, json.dumps(config, indent=2))
    write_atomically(directory / CARD, model_card(model, classes=classes, data=data, metrics=metrics, licence=licence))
    return directory


def model_card(
    model: Any,
    *,
    classes: Sequence[str] | None,
    data: str | None,
    metrics: Mapping[str, float | str] | None,
    licence: str | None,
) -> str:
    """Return the card of a model as Markdown with the Hub's header; arguments are those of `save`."""
    architecture, scheme = name_of(model), str(model.scheme)
    channels, (height, width) = arguments_of(model)["in_chans"], model.patch_embed.img_size
    parameters = sum(parameter.numel() for parameter in model.parameters())
    terms = [f"license: {_yaml(licence)}"] if licence else []
    header = ["library_name: timm", *terms, "pipeline_tag: image-classification", "tags:",
              "- image-classification", "- timm", "- mpvg"]  # fmt: skip
    shown = (
        ""
        if not classes
        else ": " + ", ".join(_inline(name) for name in classes[:10]) + (", ..." if len(classes) > 10 else "")
    )
    facts = {
        "Architecture": f"{architecture}, {parameters:,} parameters",
        "Position scheme": f"`{scheme}`",
        "Images": f"{height} x {width} pixels, {channels} channels",
        "Classes": f"{model.num_classes}{shown}",
        "Data": _inline(data or "not stated"),
        "Licence of the weights": _inline(licence or "not stated"),
        "Written by": f"mpvg {mpvg.__version__}, timm {timm.__version__}, torch {torch.__version__}",
    }
    measured = [f"| {_inline(name)} | {_inline(value)} |" for name, value in (metrics or {}).items()]
    table = ["| metric | value |", "|---|---|", *measured] if measured else ["Metrics: not stated."]
    cited = [text for name, text in _CITATIONS.items() if name == "mpvg" or any(model.plan.blocks)]
    lines = [
        "---", *header, "---", f"# {architecture} under position scheme {scheme}", "",
        *(f"- **{name}:** {value}" for name, value in facts.items()),
        "", "## Metrics", "", *table,
        "", "## Use", "",
        "```python", "import timm", "import mpvg  # registers the model", "",
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:OWNER/NAME"', "```",
        "", "## Citation", "", "```bibtex", *cited, "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _inline(text: object) -> str:
    """Return a text that stays on its line of Markdown and in its cell of a table."""
    return re.sub(r"([\\`|*<\[\]])", r"\\\1", " ".join(str(text).split()))


def _yaml(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z][\w.+-]*", text) else json.dumps(text)


def name_of(model: Any) -> str:
    """Return the name of a model's architecture: timm's where it was converted."""
    arguments = getattr(model, "_model_args", {})
    return str(arguments.get("base") or model.pretrained_cfg["architecture"])


def _config(model: Any, directory: Path, changes: Mapping[str, Any], config: dict[str, Any]) -> Any:
    """Return timm's configuration of a model, which timm can only write to a file."""
    own, draft = model.pretrained_cfg, directory / f".{CONFIG}"
    model.pretrained_cfg = {**own, **changes}
    try:
        save_config_for_hf(model, draft, model_config=config, model_args=_arguments(model))
        return json.loads(draft.read_text())
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{error} A model is saved by its name and arguments: create it with arguments that JSON can hold."
        ) from error
    finally:
        model.pretrained_cfg = own
        draft.unlink(missing_ok=True)


def _check_rebuilt(model: Any, config: Mapping[str, Any]) -> None:
    """Refuse a model that its name and arguments do not tell, such as one with blocks cut away."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = timm.create_model(config["architecture"], device="meta", **config["model_args"])
    own, built = ({name: value.shape for name, value in one.state_dict().items()} for one in (model, twin))
    differing = [name for name in {**own, **built} if own.get(name) != built.get(name)]
    if differing:
        raise UserError(
            f"{name_of(model)} with the arguments that are noted of this {type(model).__name__} is another model "
            f"({differing[0]} is the first of {len(differing)} tensors that differ): create it by mpvg.create_model "
            "with all its arguments, and change it by set_input_size and reset_classifier only."
        )


def _arguments(model: Any) -> dict[str, Any]:
    """Return what rebuilds the model; timm 1.0.26 must be told all of it."""
    arguments = {**getattr(model, "_model_args", {}), **arguments_of(model), "scheme": str(model.scheme)}
    return {name: json.loads(json.dumps(value)) for name, value in arguments.items()}


def _check(model: Any, classes: Sequence[str] | None) -> None:
    name = type(model).__name__
    if isinstance(model, Folded):
        raise UserError(f"{name} is folded: save the model that it was folded from, or export this one (mpvg export).")
    if isinstance(getattr(model, "trunk", None), Layerwise):
        raise UserError(
            f"{name} is a backbone, and mpvg.save shares classifiers: keep its state_dict() as safetensors."
        )
    if not isinstance(model, Layerwise):
        raise UserError(f"{name} is not a model of mpvg: convert it first (mpvg.convert).")
    given: Any = model
    cfg = getattr(given, "pretrained_cfg", None) or {}
    if not cfg.get("architecture") or (cfg["architecture"] == ENTRY and not given._model_args["base"]):
        raise UserError(
            f"this {name} was not made by timm.create_model or mpvg.create_model, so nobody can build it again by "
            "name: create it by one of them and load its weights."
        )
    if classes is not None and len(classes) != given.num_classes:
        raise UserError(
            f"{len(classes)} names of classes for {given.num_classes} outputs of the model: name each once."
        )
    check_finite(given.state_dict(), what=f"this {name}")
