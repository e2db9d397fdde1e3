"""What scripts/bench.py and scripts/gpu_check.py measure, one subject a file; timing.py holds how. Not installed."""
