"""The benchmark: `python -m tests.load`. One server at a time on one core, the client on another, all on loopback.

Read in this order: `events` (what is published), `subscribers` (who receives and checks it), `publishers` (who sends
it), `subjects` (the servers, a module each), `rows` (what is measured, a module each), `bars` (what must be reached),
`report`.
"""
