"""Image quality: metrics, and the offline judge."""
