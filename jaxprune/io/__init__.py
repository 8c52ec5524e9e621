"""Masks and models in files."""
