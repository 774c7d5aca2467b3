"""Apache Kafka for Django: produce from services and signals, consume in workers, replay what failed."""

__version__ = "0.1.0"
