"""What the user writes: its schema, loading it with places, its rules, its documentation."""
