"""What the integration and browser tests stand on: real server processes, and clients to talk to them."""
