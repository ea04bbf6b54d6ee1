"""The experiment: tasks, trials, the race and its verdict."""
