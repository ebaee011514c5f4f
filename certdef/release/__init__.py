"""From a run to a release: what stands between a certified model and its deployment."""
