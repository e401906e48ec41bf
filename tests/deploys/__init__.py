"""Deploys with many open sockets: when each client is back, what is missing, and the delay of the others.

python -m tests.deploys --sockets 5000 --how hup
"""
