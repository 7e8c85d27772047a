"""The configuration: its schema, how it is read, what contradicts itself."""
