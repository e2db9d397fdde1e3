"""What scripts/bench.py and scripts/gpu_check.py measure, one subject per file; timing.py holds how. Not installed."""
