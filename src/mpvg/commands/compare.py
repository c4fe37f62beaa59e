"""`mpvg compare`: options and words around `mpvg.compare.compare`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from pathlib import Path
from typing import Any

from mpvg.commands.options import device, need, part, positive, rates, split_schemes
from mpvg.create import check_name
from mpvg.errors import RunError
from mpvg.out import source_name
from mpvg.train.recipe import Recipe, default_lr

DEFAULT_SCHEMES = "default,gap,lape,lape_gap,pvg,mpvg"
_ON_A_GPU = 4  # workers that share it

_EXAMPLES = """examples:
  mpvg compare
  mpvg compare --data my_images/ --img-size 32 --schemes default,mpvg --seeds 5 --epochs 30
  mpvg compare --data pathmnist.npz --lr 0.001,0.002,0.004 --dry-run
  mpvg compare --data FashionMNIST:/datasets --schemes 'mpvg,mpvg:last_norm=3,mpvg:hierarchical=false'
  mpvg compare --pretrained runs/fit/best.safetensors --schemes gap,mpvg --layer-decay 0.75
  mpvg compare --pretrained runs/fit/best.safetensors --schemes gap,lape_gap,mpvg --trains positions"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="train position schemes side by side on a set of images",
        description="Train position schemes side by side on a set of images and tell whether they differ.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add(
        "--data",
        default="digits",
        metavar="SOURCE",
        help="digits, a folder with train/ and test/, an .npz, or NAME:FOLDER of a torchvision set (digits)",
    )
    add(
        "--model",
        default="mpvg_vit_nano",
        metavar="NAME",
        help="an mpvg_* model, or one of timm's plain vision transformers and Swins (mpvg_vit_nano)",
    )
    add("--schemes", default=DEFAULT_SCHEMES, metavar="A,B,...", help=f"compared to the first ({DEFAULT_SCHEMES})")
    add("--seeds", type=positive, default=3, metavar="N", help="runs a scheme, with seeds from 0 (3)")
    add("--epochs", type=positive, default=50, metavar="E", help="passes over the training images (50)")
    add("--batch-size", type=positive, default=64, metavar="B", help="images a step (64)")
    add(
        "--lr",
        type=rates,
        metavar="A,B,...",
        help="peak learning rate of AdamW; of several, each scheme takes the best on the validation split "
        "(0.192 / the model's width, which is 0.004 for mpvg_vit_nano)",
    )
    add("--layer-decay", type=float, metavar="F", help="each block's rate is F times the next one's, 0.75 say (none)")
    add(
        "--last-norm-bias-lr",
        type=float,
        default=1.0,
        metavar="F",
        help="rate of the Last LN's bias, times that of the rest: 2 under pvg is a control of mpvg (1)",
    )
    add(
        "--trains",
        default="all",
        metavar="PART",
        help="all; positions, with the classifier; or head, the classifier alone: the rest is frozen (all)",
    )
    add(
        "--pretrained",
        default=False,
        metavar="WEIGHTS",
        help="start from weights: a file, a folder, or 'true' for those of the tag in --model, which timm fetches",
    )
    add(
        "--no-preserve",
        action="store_true",
        help="start position norms at one, not from the function that the weights compute",
    )
    add("--val-fraction", type=part, default=0.2, metavar="P", help="part of train to validate on without a val (0.2)")
    add(
        "--img-size", type=positive, metavar="PIXELS", help="resize to this side (none, but mixed sizes to the model's)"
    )
    add("--skip-bad-images", action="store_true", help="leave out images that cannot be read, and say which")
    add("--out", type=Path, metavar="DIR", help="folder for results; finished runs are kept (runs/compare-DATA-MODEL)")
    add("--overwrite", action="store_true", help="begin anew where the folder holds another configuration")
    add("--device", type=device, default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    add("--workers", type=positive, metavar="N", help=f"runs at a time (one a core; {_ON_A_GPU} on a GPU)")
    add("--dry-run", action="store_true", help="say which runs there would be and how long they would take")
    add("--json", action="store_true", help="print the summary, or the plan, as JSON; all else goes to standard error")


def run(arguments: argparse.Namespace) -> int:
    need("compare", ("jinja2", "matplotlib", "PIL", "rich", "scipy", "sklearn"), extra="compare")
    from rich.console import Console

    from mpvg.compare import compare
    from mpvg.compare.console import print_plan
    from mpvg.compare.plan import plan
    from mpvg.compare.settings import Settings

    settings = Settings(
        data=arguments.data,
        model=check_name(arguments.model),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lrs=arguments.lr or (default_lr(arguments.model),),
        recipe=Recipe(
            layer_decay=arguments.layer_decay,
            trains=arguments.trains,
            last_norm_bias_lr=arguments.last_norm_bias_lr,
        ),
        val_fraction=arguments.val_fraction,
        img_size=arguments.img_size,
        skip_bad_images=arguments.skip_bad_images,
        pretrained=arguments.pretrained == "true" or arguments.pretrained,
        preserve=not arguments.no_preserve,
    )
    schemes = split_schemes(arguments.schemes)
    out = arguments.out or Path("runs", f"compare-{source_name(settings.data)}-{settings.model}")
    console = Console(stderr=arguments.json)
    if not console.is_terminal:
        console.width = max(console.width, 120)  # a file or pipe has no width to fit
    shared: dict[str, Any] = {
        "seeds": arguments.seeds,
        "out": out.expanduser(),
        "workers": arguments.workers or (os.cpu_count() or 1 if arguments.device == "cpu" else _ON_A_GPU),
        "device": arguments.device,
        "overwrite": arguments.overwrite,
    }
    if arguments.dry_run:
        found = plan(settings, schemes, **shared)
        print_plan(console, found)
    else:
        try:
            found = compare(settings, schemes, **shared, command=_command(arguments, settings), console=console)
        except RunError as error:
            raise type(error)(f"{error} Finished runs are kept in {out}.") from error
    if arguments.json:
        print(json.dumps(found, indent=1))
    return 0


def _command(arguments: argparse.Namespace, settings: Any) -> str:
    """Return the command that makes the same comparison again."""
    options = {
        "--data": settings.data,
        "--model": settings.model,
        "--schemes": arguments.schemes,
        "--seeds": arguments.seeds,
        "--epochs": settings.epochs,
        "--batch-size": settings.batch_size,
        "--lr": ",".join(f"{lr:g}" for lr in settings.lrs),
        "--layer-decay": settings.recipe.layer_decay,
        "--last-norm-bias-lr": None if settings.recipe.last_norm_bias_lr == 1 else settings.recipe.last_norm_bias_lr,
        "--trains": None if settings.recipe.trains == "all" else settings.recipe.trains,
        "--pretrained": "true" if settings.pretrained is True else settings.pretrained or None,
        "--val-fraction": settings.val_fraction,
        "--img-size": settings.img_size,
    }
    words = [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    switches = {"--no-preserve": not settings.preserve, "--skip-bad-images": settings.skip_bad_images}
    return shlex.join(["mpvg", "compare", *words, *(switch for switch, on in switches.items() if on)])
