"""Upgrades of a running server from earlier commits of this repository."""
