"""Scores: how much each weight matters."""
