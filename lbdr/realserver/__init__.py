"""What runs on a real server: `lbdr solve-arp`. It needs nothing but pyroute2."""
