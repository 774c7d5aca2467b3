"""Programs of the peers: each runs in an environment of its own and prints a line of JSON as our cases do."""
