"""Help with testing other people's code on the engine."""
