"""The PostgreSQL engine: one log for any number of machines, in a database that the team runs already.

It is the model of the local engine with other SQL. One function call per group, under an advisory lock, gives ids and
offsets, so the order of ids is the order of commits. A worker follows the log with a connection of its own, which a
notification wakes and a timer backs up.
"""
