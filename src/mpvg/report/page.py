"""Templates of the reports."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from mpvg.report.wording import duration, percent, plain, points, rate, tenths


def template(name: str) -> Template:
    """Return a template of this package, in which undefined values are errors and text is escaped."""
    return _environment().get_template(name)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mpvg.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(percent=percent, points=points, tenths=tenths, duration=duration, plain=plain, rate=rate)
    return environment
