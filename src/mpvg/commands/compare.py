"""`mpvg compare`: options and words around `mpvg.compare.compare`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from mpvg.checkpoint import CLASSIFICATION, OF_SEQUENCES
from mpvg.commands.options import device, need, part, positive, rates, split_schemes
from mpvg.create import check_name
from mpvg.data.augmentation import Augmentation
from mpvg.errors import RunError, UserError
from mpvg.out import source_name
from mpvg.train.recipe import Recipe, default_lr

DEFAULT_SCHEMES = "default,gap,lape,lape_gap,pvg,mpvg"
_ON_A_GPU = 4  # workers that share it


class Defaults(NamedTuple):
    """What a task is compared on unless told."""

    data: str
    model: str
    epochs: int
    batch_size: int


DEFAULTS = {
    CLASSIFICATION: Defaults("digits", "mpvg_vit_nano", 50, 64),
    "text": Defaults("words", "mpvg_sequence", 40, 64),
    "series": Defaults("ItalyPowerDemand", "mpvg_sequence", 200, 16),
}

_EXAMPLES = """examples:
  mpvg compare
  mpvg compare --data my_images/ --img-size 32 --schemes default,mpvg --seeds 5 --epochs 30
  mpvg compare --data pathmnist.npz --lr 0.001,0.002,0.004 --dry-run
  mpvg compare --data FashionMNIST:/datasets --schemes 'mpvg,mpvg:last_norm=3,mpvg:hierarchical=false'
  mpvg compare --pretrained runs/fit/best.safetensors --schemes gap,mpvg --layer-decay 0.75
  mpvg compare --pretrained runs/fit/best.safetensors --schemes gap,lape_gap,mpvg --trains positions
  mpvg compare --task text --data reviews/ --epochs 6 --lr 0.0005,0.001,0.002
  mpvg compare --task series --data GunPoint_TRAIN.ts GunPoint_TEST.ts --seeds 5"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="train position schemes side by side on a set of images, sentences or time series",
        description="Train position schemes side by side on one labelled set and tell whether they differ.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add(
        "--task",
        choices=tuple(DEFAULTS),
        default=CLASSIFICATION,
        help=f"what is classified: images ({CLASSIFICATION}), text or series ({CLASSIFICATION})",
    )
    add(
        "--data",
        nargs="+",
        metavar="SOURCE",
        help="images: digits, a folder with train/ and test/, an .npz, or NAME:FOLDER of a torchvision set (digits); "
        "text: a folder with train.tsv, dev.tsv and test.tsv of sentence<TAB>label (words, synthetic); series: a file "
        "to train on and one to test on, .ts or .csv, or a set of sktime's (ItalyPowerDemand)",
    )
    add(
        "--model",
        metavar="NAME",
        help="an mpvg_* model, or one of timm's plain vision transformers and Swins (mpvg_vit_nano; mpvg_sequence for "
        "text and series)",
    )
    add("--schemes", default=DEFAULT_SCHEMES, metavar="A,B,...", help=f"compared to the first ({DEFAULT_SCHEMES})")
    add("--seeds", type=positive, default=3, metavar="N", help="runs a scheme, with seeds from 0 (3)")
    add("--epochs", type=positive, metavar="E", help="passes over the training split (50; text 40, series 200)")
    add("--batch-size", type=positive, metavar="B", help="samples a step (64; series 16)")
    add(
        "--lr",
        type=rates,
        metavar="A,B,...",
        help="peak learning rate of AdamW; of several, each scheme takes the best on the validation split "
        "(0.192 / the model's width: 0.004 for mpvg_vit_nano, 0.003 for mpvg_sequence)",
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
    add("--max-length", type=positive, metavar="N", help="cut longer sentences to N words, longer series to N steps")
    add("--patch-size", type=positive, metavar="P", help="steps of a series that make a token (at most 64 tokens)")
    add("--impute", action="store_true", help="fill in missing values of series, between their neighbours in time")
    add(
        "--shuffle-tokens",
        action="store_true",
        help="train and test with the tokens of each sequence in random order: what is left needs no order",
    )
    add("--out", type=Path, metavar="DIR", help="folder for results; finished runs are kept (runs/compare-DATA-MODEL)")
    add("--overwrite", action="store_true", help="begin anew where the folder holds another configuration")
    add("--device", type=device, default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    add("--workers", type=positive, metavar="N", help=f"runs at a time (one a core; {_ON_A_GPU} on a GPU)")
    add("--dry-run", action="store_true", help="say which runs there would be and how long they would take")
    add("--json", action="store_true", help="print the summary, or the plan, as JSON; all else goes to standard error")


def run(arguments: argparse.Namespace) -> int:
    need("compare", ("jinja2", "matplotlib", "PIL", "rich", "scipy", "sklearn"), extra="compare")
    if arguments.task == "text":
        need("compare --task text", ("tokenizers",), extra="sequences")
    from rich.console import Console

    from mpvg.compare import compare
    from mpvg.compare.console import print_plan
    from mpvg.compare.plan import plan
    from mpvg.compare.settings import Settings

    defaults, sequences = DEFAULTS[arguments.task], _of_sequences(arguments)
    model = arguments.model or defaults.model
    settings = Settings(
        data=_sources(arguments),
        model=model,
        epochs=arguments.epochs or defaults.epochs,
        batch_size=arguments.batch_size or defaults.batch_size,
        lrs=arguments.lr or (default_lr(check_name(model)),),
        recipe=Recipe(
            layer_decay=arguments.layer_decay,
            trains=arguments.trains,
            last_norm_bias_lr=arguments.last_norm_bias_lr,
            augmentation=Augmentation() if sequences is None else Augmentation(shift=0.0),
        ),
        val_fraction=arguments.val_fraction,
        img_size=arguments.img_size,
        skip_bad_images=arguments.skip_bad_images,
        pretrained=arguments.pretrained == "true" or arguments.pretrained,
        preserve=not arguments.no_preserve,
        sequences=sequences,
    )
    schemes = split_schemes(arguments.schemes)
    out = arguments.out or Path("runs", f"compare-{source_name(settings.sources[0])}-{settings.model}")
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


def _sources(arguments: argparse.Namespace) -> str | tuple[str, ...]:
    found: list[str] = arguments.data or [DEFAULTS[arguments.task].data]
    if arguments.task != CLASSIFICATION:
        return tuple(found)
    if len(found) > 1:
        raise UserError(f"--data {' '.join(found)}: images have one source. Several files are for --task series.")
    return found[0]


def _of_sequences(arguments: argparse.Namespace) -> Any:
    """Return what is asked of text or series, None for images; refuse what is another task's."""
    from mpvg.compare.settings import SequenceOptions

    asked = {
        "--max-length": (arguments.max_length, OF_SEQUENCES),
        "--shuffle-tokens": (arguments.shuffle_tokens, OF_SEQUENCES),
        "--patch-size": (arguments.patch_size, ("series",)),
        "--impute": (arguments.impute, ("series",)),
        "--img-size": (arguments.img_size, (CLASSIFICATION,)),
        "--skip-bad-images": (arguments.skip_bad_images, (CLASSIFICATION,)),
        "--pretrained": (arguments.pretrained, (CLASSIFICATION,)),
        "--no-preserve": (arguments.no_preserve, (CLASSIFICATION,)),
    }
    for option, (value, tasks) in asked.items():
        if value and arguments.task not in tasks:
            raise UserError(f"{option} is for --task {' or '.join(tasks)}, not for {arguments.task}: leave it out.")
    if arguments.task == CLASSIFICATION:
        return None
    return SequenceOptions(
        task=arguments.task,
        max_length=arguments.max_length,
        patch_size=arguments.patch_size,
        impute=arguments.impute,
        shuffle_tokens=arguments.shuffle_tokens,
    )


def _command(arguments: argparse.Namespace, settings: Any) -> str:
    """Return the command that makes the same comparison again."""
    sequences = settings.sequences
    options = {
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
        "--max-length": sequences and sequences.max_length,
        "--patch-size": sequences and sequences.patch_size,
    }
    words = [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    switches = {
        "--no-preserve": not settings.preserve,
        "--skip-bad-images": settings.skip_bad_images,
        "--impute": sequences is not None and sequences.impute,
        "--shuffle-tokens": sequences is not None and sequences.shuffle_tokens,
    }
    task = [] if sequences is None else ["--task", sequences.task]
    on = [switch for switch, is_on in switches.items() if is_on]
    return shlex.join(["mpvg", "compare", *task, "--data", *settings.sources, *words, *on])
