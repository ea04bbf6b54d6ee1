"""The claims, one file each: what is said, what would refute it, how it is measured."""
