"""Layer 7 virtual services, served by a companion HAProxy."""
