"""Many runs: composing those of a sweep, training each in a process of its own, queues and time budgets.

May import training and all below it; nothing of analysis or cli.
Start reading at composing.py (words to configs) and launch.py (configs to processes or jobs).
"""
