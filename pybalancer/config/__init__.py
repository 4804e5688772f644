"""The configuration: one definition, from which checks, schema and reference are made."""
