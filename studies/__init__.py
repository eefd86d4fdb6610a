"""Research that is not installed with the package: run it from a clone of the repository."""
