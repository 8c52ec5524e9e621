"""One module an experiment: its docstring is the lab notebook, its ``config`` runs."""
