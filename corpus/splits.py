"""The splits of a corpus."""

HELD_OUT = ("validation", "test")
SPLITS = ("train", *HELD_OUT)

# The share of a folder's files that are held out for validation, and for testing.
VALIDATION_SHARE = TEST_SHARE = 0.05
