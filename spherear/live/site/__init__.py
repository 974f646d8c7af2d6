"""The static page: shipped models in a browser, without Python and without a network."""
