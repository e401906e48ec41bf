"""What survives a bad day: `python -m tests.kills`.

A publisher counts 1, 2, 3, … through the HTTP API, a thousand a second, and tries each call again until it is
acknowledged. Meanwhile connections are reset, workers are killed, ended, stopped and continued, and the whole server is
reloaded, restarted and killed. Then it is looked at what each kind of client has got. Ends with 1 where a promise was
broken.
"""
