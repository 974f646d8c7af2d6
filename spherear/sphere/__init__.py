"""Points and distributions on a sphere, and the bottlenecks of the VAE."""
