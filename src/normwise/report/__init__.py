"""The report: draws from the content of results.json, a page and a terminal summary."""
