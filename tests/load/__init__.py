"""The benchmark: `python -m tests.load`. One server at a time on one core, the client on another, all on loopback.

Reading order: `events` (the published data), `subscribers` (receive and check it), `publishers`, `subjects` (the
servers, one module each), `rows` (the measurements, one module each), `targets`, `report`.
"""
