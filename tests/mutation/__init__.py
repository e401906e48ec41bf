"""Mutation check of the protocol and of recovery. `python -m tests.mutation`."""
