"""The desired document: typed, revisioned, commit-confirmed."""
