"""The demo, sweeps of configurations, and the evidence for the claims."""
