"""Many runs: composing the members of a sweep, training each in a process of its own, queues and time budgets.

May import training and all below it; nothing of analysis or cli.
Start reading at members.py; durations.py alone knows how long a run takes.
"""
