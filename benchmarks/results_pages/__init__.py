"""The pages of docs/results, written from the committed records."""
