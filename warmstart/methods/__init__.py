"""Fourth station: one file for each published way to start warm."""
