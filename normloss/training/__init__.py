"""One run, from its first step to its last: the step, executors, trainer, schedules, device, progress and W&B.

May import data, models, runs, config and the library; nothing of sweeps, analysis or cli.
Start reading at step.py, the one step of every method, then trainer.py, which calls it.
"""
