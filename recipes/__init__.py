"""Rows of the experiment, a YAML file each, and the schema they are checked against."""
