"""Ratios against the raw client, measured in one run on one real broker: `make bench`."""
