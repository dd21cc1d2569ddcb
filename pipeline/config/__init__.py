"""The configuration: its schema, its presets, and how it is read."""
