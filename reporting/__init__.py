"""Runs read back and shown: paired comparison, tables, plots, the HTML page."""
