"""How long tests wait for what must come."""

#: Seconds: what comes is taken at once, and a busy machine may stand still for some of them.
PATIENCE = 30.0
