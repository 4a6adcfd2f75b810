"""The command `mmjax`: flags and wiring."""
