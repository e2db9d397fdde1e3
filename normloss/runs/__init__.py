"""The store: one folder per run, written whole or not at all, with provenance; read, merged and archived.

May import config, errors, models and the library; neither training nor anything that chooses, draws or starts runs.
Start reading at records.py, a run as its readers see it; store.py writes it.
"""
