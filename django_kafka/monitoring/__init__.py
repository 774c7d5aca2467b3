"""What can be seen of producers and workers from outside."""
