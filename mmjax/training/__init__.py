"""One trainer for every system: configuration, optimizer, train step, loop, metrics and plots."""
