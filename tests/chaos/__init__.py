"""The chaos suite: a cluster, a database and workers are broken on purpose while books are kept outside of them.

`python -m tests.chaos --seed 1 --minutes 3`, or `make chaos SEED=1 MINUTES=3`; docs/chaos.md says what it proves.
"""
