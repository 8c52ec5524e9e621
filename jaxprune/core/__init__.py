"""Shared by all packages: checks, dtypes, placement, `prunable`, counts, tables."""
