"""Commands that each print one table: ours and the alternative, from the same run."""
