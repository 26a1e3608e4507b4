"""Data: GSM8K and AILuminate, chat prompts and shots, training examples, scores and statistics.
Knows no model.
"""
