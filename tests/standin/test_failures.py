"""Placeholder."""
def test_nothing(): pass
