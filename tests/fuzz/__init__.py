"""Fuzzing: inputs that no person wrote, held against a model of the protocol."""
