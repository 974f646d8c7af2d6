"""How an image is drawn: solvers, settings, the token loop and the pipeline around it."""
