"""Mutants that no test can kill: (module, line, changed line, why they are equivalent)."""

EQUIVALENT: tuple[tuple[str, str, str, str], ...] = ()
