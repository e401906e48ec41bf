"""The model: the real hub and protocol over an engine in memory whose steps a test orders. `python -m tests.model`."""
