"""Scores: the importance of each weight."""
