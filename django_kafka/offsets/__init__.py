"""Where the groups of consumers stand in their topics, and how they are moved."""
