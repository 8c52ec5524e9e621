"""Masks from scores, and reports on masks."""
