"""The origin of a result: code, versions, machine."""

import os
import platform
import re
import resource
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from normloss import __version__

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf", "wandb")


def facts() -> dict[str, Any]:
    """Return the git commit and whether the code differs from it, versions, host and command."""
    return {
        **code(),
        "versions": {"normloss": __version__, "python": platform.python_version(), **versions()},
        "host": socket.gethostname(),
        "command": " ".join(sys.argv),
    }


def code() -> dict[str, Any]:
    """Return commit and dirty of the checkout that this file is in; null where it is in none of its own."""
    if Path(git("rev-parse", "--show-toplevel") or "/").resolve() != ROOT:  # unpacked, in somebody's repository perhaps
        return {"commit": None, "dirty": None}
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}


def git(*arguments: str) -> str | None:
    """Return what git prints for the folder that this file is in; None where git fails."""
    try:
        answer = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def cpu_model() -> str:
    """Return the maker's name of this machine's CPU: results depend on it as much as on a seed."""
    if sys.platform == "darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return asked.stdout.strip() or platform.machine()
    file, keys = Path("/proc/cpuinfo"), "model name|Model|Hardware|cpu model"  # x86, then what others call it
    found = re.search(rf"^(?:{keys})\s*:(.*\S)", file.read_text() if file.exists() else "", re.M)
    return " ".join(found[1].split()) if found else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on, of those that are installed."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def peak_memory_mb() -> float:
    """Return the peak memory in MB of the CUDA device where one is in use, else of this process."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return round(kilobytes / 1024, 1)


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
