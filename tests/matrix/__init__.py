"""The unit tests on each interpreter of this machine, with the oldest and the newest Django."""
