"""Services to the text of haproxy.cfg; pure. A file per subject; `whole` has them all."""
