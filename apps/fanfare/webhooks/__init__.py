"""Webhooks: events of the log become rows of Django's database, and are sent to the endpoints of their application."""
