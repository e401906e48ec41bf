"""Webhooks: a durable outbox of what happens on channels, and its deliverer."""
