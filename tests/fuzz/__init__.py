"""Fuzzing with mutated frames over real sockets. `python -m tests.fuzz` sends a million; a test sends fewer."""
