"""The store: one folder per run, written whole or not at all, with provenance; read back, and merged from elsewhere.

May import config and errors; neither torch's training nor anything that chooses, draws or starts runs.
Start reading at store.py, how a run is written; records.py is how all others read it.
"""
