"""Masks from scores, and what a mask keeps."""
