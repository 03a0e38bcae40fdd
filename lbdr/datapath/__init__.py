"""The only code that touches the kernel, a file per subsystem."""
