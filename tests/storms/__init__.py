"""A storm: many clients return at once, and the connected ones must not notice.

python -m tests.storms --clients 10000
"""
