"""Schemas of what airports report: Avro, JSON Schema, and Protobuf with what `protoc` makes of it."""
