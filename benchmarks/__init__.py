"""The subjects of scripts/bench.py and scripts/gpu_check.py, one per file; timing.py holds how. Not installed."""
