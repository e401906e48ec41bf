"""Real server processes, and the clients that the integration and browser tests use against them."""
