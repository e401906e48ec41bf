"""Storms and attacks, which the connected clients must not notice.

python -m tests.storms --clients 10000
python -m tests.storms --attack
"""
