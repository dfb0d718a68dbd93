"""Fuzzing: what nobody thought of is sent by machines, and held against a model of the protocol."""
