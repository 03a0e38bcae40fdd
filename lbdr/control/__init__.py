"""The control protocol: one JSON object a line, on a unix socket."""
