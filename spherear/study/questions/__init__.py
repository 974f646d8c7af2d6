"""Questions that the records of several heads, or of several studies, answer."""
