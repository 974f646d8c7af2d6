"""What JupyterLab and Voila read: default settings (`labconfig`), the template of the page, the limit of its visits."""
