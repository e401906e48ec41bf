"""The engine for many machines on Redis 7 or Valkey: one server, Sentinel or a cluster.

A channel belongs to one of the partitions; a partition has one sequence, one log of all its entries and one
generation. Live entries are published to the channel, so an entry without a subscriber on a worker costs that worker
nothing. The log repairs what a lost connection missed.
"""
