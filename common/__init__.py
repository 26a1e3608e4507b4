"""Code that the scripts share: settings, run folders, resumable jobs, processes, errors."""

__version__ = "0.2.0"  # the one place: setup.cfg reads it, a test compares CITATION.cff
