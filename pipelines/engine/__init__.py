"""How tasks run, commit, resume and report, whichever stage they belong to."""
