"""Looking at everything that the project stands on, without changing any of it: what `kafka_doctor` says."""
