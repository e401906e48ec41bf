"""The engine of one machine: the workers share a SQLite file in WAL mode.

A worker reads in `reader` (scheduled by `read_scheduler`) and writes through `commit_queue` and `log_file`; the write
operations are in `appends`, `presence`, `counts`, `sessions` and `maintenance`. docs/explanation/local-engine.md
describes the whole.
"""
