"""This machine's table of speed: normwise beside its peers, each in a process of its own, taking turns."""
