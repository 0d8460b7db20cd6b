"""The command line: one thin file per verb, torch imported inside the verb."""
