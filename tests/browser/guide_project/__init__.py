"""A project whose pages have the HTML of the guides, for tests/browser/test_guides.py."""
