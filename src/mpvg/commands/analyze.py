"""`mpvg analyze`: what position embeddings do in a model, or in several side by side."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from mpvg.commands.options import device, need, positive, whole

_EXAMPLES = """examples:
  mpvg analyze runs/fit/best.safetensors --out look
  mpvg analyze runs/compare-mine --out look                  every run of a comparison, seeds together
  mpvg analyze pvg.ckpt --compare mpvg.ckpt --data photos/ --out look
  mpvg analyze runs/words --out look                         sentences or series, as the models were trained on
  mpvg analyze mpvg_deit_tiny_patch16_224:lape --compare deit_tiny_patch16_224 --out look"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "analyze",
        help="see what position embeddings do in a model, or in several side by side",
        description="See what position embeddings do in a model, or in several side by side.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add(
        "model",
        metavar="CKPT_OR_NAME",
        help="a checkpoint of mpvg fit or compare, a folder of theirs, NAME[:SCHEME] of a registered model, or a plain "
        "vision transformer of timm",
    )
    add("--compare", nargs="+", default=[], metavar="OTHER", help="further models, named likewise")
    add(
        "--data",
        nargs="+",
        metavar="SOURCE",
        help="images, sentences or series as mpvg compare takes them, of which the test split is used, or any image "
        "files (the checkpoint's own; digits for a model without)",
    )
    add("--images", type=positive, default=512, metavar="N", help="how many images or sequences, spread evenly (512)")
    add(
        "--causal-images",
        type=whole,
        metavar="N",
        help="of these, how many for the test that removes positions, the slowest part; 0 leaves it out (up to 256)",
    )
    add(
        "--show",
        nargs="+",
        type=whole,
        metavar="I",
        help="numbers of the images, of those analysed, to draw norms over",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="folder for report, figures and tables")
    add("--scheme", default="mpvg", help="of registered models that are named without one (mpvg)")
    add("--img-size", type=positive, metavar="PIXELS", help="side of the images, for models named, not loaded")
    add("--pretrained", action="store_true", help="load timm's weights into models named, not loaded")
    add("--fold", action="store_true", help="fold the models first; what is found is the same")
    add("--skip-bad-images", action="store_true", help="leave out images that cannot be read")
    add("--impute", action="store_true", help="fill in missing values of series, as mpvg compare --impute does")
    add("--device", type=device, default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    add("--json", action="store_true", help="print analysis.json too; all else goes to standard error")


def run(arguments: argparse.Namespace) -> int:
    need("analyze", ("jinja2", "matplotlib", "rich", "scipy", "sklearn"), extra="compare")
    from rich.console import Console

    from mpvg.analysis.analyze import analyze

    try:
        found = analyze(
            [arguments.model, *arguments.compare],
            out=arguments.out.expanduser(),
            data=arguments.data,
            images=arguments.images,
            causal_images=arguments.causal_images,
            show=arguments.show,
            scheme=arguments.scheme,
            img_size=arguments.img_size,
            pretrained=arguments.pretrained,
            folded=arguments.fold,
            skip_bad_images=arguments.skip_bad_images,
            impute=arguments.impute,
            device=arguments.device,
            command=_command(arguments),
            console=Console(stderr=arguments.json),
        )
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("stopped; an earlier analysis in the folder is as it was.") from error
    if arguments.json:
        print(json.dumps(found, indent=1))
    return 0


def _command(arguments: argparse.Namespace) -> str:
    """Return the command that makes the same analysis again."""
    options = {
        "--images": arguments.images,
        "--causal-images": arguments.causal_images,
        "--scheme": arguments.scheme if arguments.scheme != "mpvg" else None,
        "--img-size": arguments.img_size,
        "--out": arguments.out,
    }
    words = [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    flags = [
        f"--{name}"
        for name in ("pretrained", "fold", "skip-bad-images", "impute")
        if vars(arguments)[name.replace("-", "_")]
    ]
    shown = ["--show", *map(str, arguments.show)] if arguments.show else []
    others = ["--compare", *arguments.compare] if arguments.compare else []
    data = ["--data", *arguments.data] if arguments.data else []
    return shlex.join(["mpvg", "analyze", arguments.model, *others, *data, *words, *shown, *flags])
