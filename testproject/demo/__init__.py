"""The demo: real flights through Kafka into rows, and cancelled ones into dead letters. `make demo` runs it."""
