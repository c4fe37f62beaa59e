"""Sentences and numbers of the reports."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mpvg.train.recipe import Recipe

NBSP = "\N{NO-BREAK SPACE}"

_NO_DIFFERENCE = "no difference shown"
_MINUS = "\N{MINUS SIGN}"
_ALWAYS_SHOWN = ("opt", "weight_decay", "label_smoothing", "shift")


def headline(summary: Mapping[str, Any]) -> str:
    """Say in one line what the comparison found, no more than the verdicts claim."""
    first, *others = summary["schemes"]
    start = f"{summary['model']} on {summary['data']['name']}"
    if not others:
        return f"{start}: {first['scheme']} reached {percent(first['mean'])}; no other scheme was run"
    if not several_seeds(summary["schemes"]):
        return f"{start}: {len(others) + 1} position schemes with one seed each, too few to tell them apart"
    groups: dict[str, list[str]] = {}
    for scheme in others:
        groups.setdefault(scheme["difference"]["verdict"], []).append(scheme["scheme"])
    parts = []
    # Claims first; the sort is stable, so within a rank the order of the table stays.
    for verdict in sorted(groups, key=lambda one: not one.startswith(("higher", "lower"))):
        names = listed(groups[verdict])
        if verdict.startswith(("higher", "lower")):
            parts.append(f"{names} scored {verdict}")
        elif verdict == _NO_DIFFERENCE:
            parts.append(f"{verdict} between {first['scheme']} and {listed(groups[verdict], last='or')}")
        else:
            parts.append(f"{names}: {verdict}")
    return f"{start}: {'; '.join(parts)}"


def lead(summary: Mapping[str, Any]) -> str:
    """Say what was trained on how many samples and seeds."""
    schemes, data = summary["schemes"], summary["data"]
    seeds = [[run["seed"] for run in scheme["runs"]] for scheme in schemes]
    fewest, most = min(map(len, seeds)), max(map(len, seeds))
    if fewest != most:
        count = f"{fewest} to {most} seeds per scheme"
    else:
        count = "one seed" if most == 1 else f"{most} seeds"
        if len(schemes) > 1:
            same = all(sorted(one) == sorted(seeds[0]) for one in seeds)
            count += ", the same for every scheme" if same else " per scheme"
    what = "with one position scheme" if len(schemes) == 1 else f"with each of {len(schemes)} position schemes"
    return (
        f"The model {summary['model']} was trained {what} on {data['train']:,} {data['unit']} of {data['name']} "
        f"({count}) and scored on {data['test']:,} test {data['unit']} kept apart."
    )


def shape_in_words(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a summary's data say of the samples' shape, as facts to list."""
    if "image_size" in data:
        return {"image size": " × ".join(map(str, data["image_size"])) + " pixels", "channels": data["channels"]}
    steps = "words" if "vocab_size" in data else "steps"
    shortest, middle, longest = data["lengths"]
    facts = {f"{steps} of training {data['unit']}": f"{shortest} to {longest}, median {middle}"}
    if "vocab_size" in data:
        held_out = sum(data["class_counts"]["train"]) > data["train"]
        of_part = "; each run knows those of the part that it is trained on" if held_out else ""
        facts["vocabulary"] = f"{data['vocab_size']:,} words of the training split{of_part}"
    else:
        facts |= {"channels": data["in_chans"], "steps a token": data["patch_size"]}
    return {**facts, "longest that the table takes": f"{data['max_length']:,} {steps}", "cut": data["cut"]}


def shown_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a recipe can set and this one did not."""
    unset = {**Recipe().as_dict(), "pretrained": False, "preserve": True}
    return {
        name: value
        for name, value in settings.items()
        if name in _ALWAYS_SHOWN or name not in unset or unset[name] != value
    }


def several_seeds(schemes: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether any scheme has more than one run."""
    return any(len(scheme["runs"]) > 1 for scheme in schemes)


def without_position(schemes: Sequence[Mapping[str, Any]]) -> str:
    """Name the schemes that deliver no position; empty where there is none."""
    names = [one["scheme"] for one in schemes if all(run["correlation"] is None for run in one["runs"])]
    if not names:
        return ""
    many = len(names) > 1
    verb, no_line = ("deliver", "have no line here") if many else ("delivers", "has no line here")
    if len(names) == len(schemes):
        no_line = "there is nothing to correlate with the tokens"
        return f"{listed(names)} {verb} no position to the blocks, so {no_line}."
    return f"{listed(names)} {verb} no position to the blocks and {no_line}."


def listed(names: Sequence[str], *, last: str = "and") -> str:
    """Join names as a sentence does."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {last} {names[-1]}"


def scaled(value: float | None) -> float | None:
    """Turn a fraction, if there is one, into percent."""
    return None if value is None else 100 * value


def percent(fraction: float) -> str:
    """Write a fraction in percent."""
    return f"{100 * fraction:.2f}{NBSP}%".replace("-", _MINUS)


def points(fraction: float) -> str:
    """Write a difference of fractions in percentage points, with its sign."""
    text = f"{100 * fraction:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", _MINUS)


def interval(entry: Mapping[str, Any], shown: Any) -> str:
    """Write an interval in parentheses; empty where there is none."""
    return "" if entry["low"] is None else f" ({shown(entry['low'])} to {shown(entry['high'])})"


def duration(seconds: float) -> str:
    """Write seconds as a reader tells time."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def plain(value: Any) -> str:
    """Write a JSON value without JSON's marks."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value)


def tenths(fraction: float) -> str:
    """Write a fraction in percent with one decimal, as fits a few images."""
    return f"{100 * fraction:.1f}{NBSP}%"


def number_range(numbers: Sequence[int]) -> str:
    """Write the smallest and the largest of some numbers, and how many times larger that is."""
    low, high = min(numbers), max(numbers)
    if low == high:
        return f"{low:,}"
    return f"{low:,} to {high:,}" + (f" (ratio {high / low:.1f})" if low else "")


def rate(value: float) -> str:
    """Write a learning rate so that it can be copied into a command."""
    return f"{value:g}"
