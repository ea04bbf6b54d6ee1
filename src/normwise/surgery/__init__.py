"""Surgery: verbs that change a model in place, each returning a Plan that can undo it."""
