"""Write the tables of docs/dense.md from results/dense/*.csv: python docs/dense_learning_tables.py"""

from __future__ import annotations

from tables import DOCS, RESULTS, Row, Tables, rows, table, write

DOCUMENT = DOCS / "dense.md"
_WANTED = {"box_ap50": 0.8, "mask_ap50": 0.7, "miou": 0.7}


def learning() -> str:
    """Return the scores of each run beside what was wanted of it."""
    body = [
        [
            row["task"],
            f"`{row['scheme']}`",
            *(f"{float(row[name]):.3f}" if row[name] else "" for name in _WANTED),
            row["objects"],
            row["left_out"],
            row["steps"],
            row["minutes"],
        ]
        for row in rows(RESULTS / "dense" / "learning.csv")
    ]
    wanted = ["at least", "", *(f"{least:.2f}" for least in _WANTED.values()), "", "", "", ""]
    header = ["task", "scheme", "box AP50", "mask AP50", "mIoU", "objects", "too small", "steps of 4", "minutes"]
    return table(header, [wanted, *body])


def deformable_attention() -> str:
    """Return times and peaks beside those of transformers."""
    found = rows(RESULTS / "dense" / "deformable_attention.csv")
    body = [
        [
            row["shapes of"],
            row["transformers_ms"],
            row["mpvg_ms"],
            f"{float(row['ratio']):.2f} ({float(row['ratio_low']):.2f} to {float(row['ratio_high']):.2f})",
            row["transformers_mib"],
            row["mpvg_mib"],
            f"{float(row['memory_ratio']):.2f}",
        ]
        for row in found
    ]
    header = ["shapes of", "transformers, ms", "ours, ms", "ratio (95 %)", "transformers, MiB", "ours, MiB", "ratio"]
    return f"{_machine(found[0])}:\n\n{table(header, body)}"


def adapter_time() -> str:
    """Return the parts' times, and their share of the whole."""
    found = rows(RESULTS / "dense" / "adapter_time.csv")
    body = [[row["part"], row["milliseconds"], f"{100 * float(row['of_whole']):.0f} %"] for row in found]
    return f"{_machine(found[0])}:\n\n{table(['part', 'ms', 'of the whole'], body)}"


def _machine(row: Row) -> str:
    threads = f"{row['threads']} thread{'s' if int(row['threads']) > 1 else ''}"
    return f"{row['hardware']}, {threads}, load {row['load']}; torch {row['torch']}, transformers {row['transformers']}"


TABLES: Tables = {
    "learning": learning,
    "deformable attention": deformable_attention,
    "adapter time": adapter_time,
}

if __name__ == "__main__":
    write(DOCUMENT, TABLES)
