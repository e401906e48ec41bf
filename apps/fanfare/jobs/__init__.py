"""Background work above the engine: leader leases, consumers of the log, and the jobs that a worker runs.

Webhooks, signals, the outbox relay and the jobs that a project declares with `@periodic` and `@background` all run in
one `runner.Runner` per worker.
"""
