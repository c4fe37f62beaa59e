"""Self-contained HTML reports; needs the optional dependencies jinja2 and matplotlib."""

from mpvg.report.compare import write_compare_report

__all__ = ["write_compare_report"]
