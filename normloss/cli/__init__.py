"""Parts that all commands share: exit statuses, and one line in place of a traceback for a user's mistake.

May import everything; nothing imports it but train.py and scripts/.
Start reading at entry.py.
"""
