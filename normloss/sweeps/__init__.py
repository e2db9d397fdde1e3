"""Many runs: composing the members of a sweep, training each in a process of its own, queues and time budgets.

May import training and all below it; nothing of analysis or cli.
Start reading at members.py, which calls the others.
"""
