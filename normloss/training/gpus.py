"""The GPUs of this machine, without touching CUDA: a process that has cannot be forked."""

import os
import subprocess


def visible() -> list[str]:
    """Return the devices that this process sees, as CUDA_VISIBLE_DEVICES names them: numbers or ids."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return []
    lines = listed.stdout.splitlines() if listed.returncode == 0 else []
    return [str(number) for number, _ in enumerate(line for line in lines if line.startswith("GPU "))]
