"""The measurements behind the claims; several claims may look at one."""
