"""Runs side by side: the arms of a comparison and the statistics that say what can be told from them."""
