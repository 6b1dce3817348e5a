"""How long the server may take to end, and what of it is for whom: they come one after the other."""

GRACE_SECONDS = 30
"""From the signal to end until the process has. Kubernetes waits longer (``terminationGracePeriodSeconds``)."""

WATCH_SECONDS = 2
"""For the registry's watcher, whose request cannot be called off; its thread is a daemon, so the process does not wait for it."""

FLUSH_SECONDS = 8
"""For feedback that waits to be written; the rest is dropped."""

REQUEST_SECONDS = GRACE_SECONDS - WATCH_SECONDS - FLUSH_SECONDS
"""For requests that are running, which come first; those that take longer are told to go elsewhere."""
