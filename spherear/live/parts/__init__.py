"""Parts that panels share: what closes them when their cell runs again, and what saves a file on the visitor's disk."""
