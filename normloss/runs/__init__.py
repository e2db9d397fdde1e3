"""The store: one folder per run, written whole or not at all, with provenance; read back, and merged from elsewhere.

May import config, errors, models and the library; neither training nor anything that chooses, draws or starts runs.
Start reading at contract.py, what a run folder holds; store.py writes it, records.py is how all others read it.
"""
