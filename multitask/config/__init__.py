"""Configuration: schema, loading and validation."""
