"""Where a result comes from: code, versions, machine."""

import os
import platform
import resource
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from normloss import __version__

PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf", "wandb")


def facts() -> dict[str, Any]:
    """Git commit and whether the code differs from it, versions, host."""
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")),
        "versions": {"normloss": __version__, "python": platform.python_version(), **versions()},
        "host": socket.gethostname(),
        "command": " ".join(sys.argv),
    }


def git(*arguments: str) -> str | None:
    """What git says of the checkout that this file is in; None outside one."""
    here = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def peak_memory_mb() -> float:
    """Of the CUDA device where one is in use, else of this process."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return round(kilobytes / 1024, 1)


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
