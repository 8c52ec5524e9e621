"""What every other package stands on: checks, dtypes, placement, `prunable`, counts."""
