"""Webhooks: events of the log are stored in Django's database and sent to the endpoints of their application."""
