"""What numbers were measured on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch


def machine_name(device: str) -> str:
    """Return the GPU's name, or the processor's and its number of cores.

    Args:
        device: "cpu" or "cuda[:N]".
    """
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text(encoding="utf-8")) if info.exists() else None
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"
