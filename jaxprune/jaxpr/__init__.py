"""What every reader of a jaxpr needs: how equations run other jaxprs."""
