"""The kill test: `python -m tests.kills`.

A publisher counts 1, 2, 3, … through the HTTP API, a thousand a second, and retries each call until it is
acknowledged. Meanwhile connections are reset, workers are killed, terminated, stopped and continued, and the whole
server is reloaded, restarted and killed. Afterwards the events that each kind of client received are checked. Exits
with 1 if a guarantee was broken.
"""
