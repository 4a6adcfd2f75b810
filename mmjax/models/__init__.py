"""Systems: one file each, composed of shared parts."""
