"""What a regularizer asks of the CUDA stream that its step is launched on."""

import torch


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured now; without a driver CUDA must not even be asked."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def stream(device: torch.device) -> int:
    """The stream that a step launches on; 0 on a CPU."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
