"""Judges of answers: one file each, and the rates made of their verdicts."""
