"""The engine for one machine: a SQLite file is the log, and every worker opens it. Nothing to install.

Read in this order: `schema` (what is in the file), `operations` (what a transaction does), `writer` (who writes when),
`tail` (how a worker reads it back), `liveness` and `pokes` (how workers know of each other), `engine` (the parts put
together).
"""
