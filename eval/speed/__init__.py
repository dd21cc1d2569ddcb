"""Time, energy, and the machine they were measured on."""
