"""Configurations for products, as text to start from."""
