"""The lowest layer: tasks, timers, pauses and limits. It imports no Django and nothing else of Fanfare."""
