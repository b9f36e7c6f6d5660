"""Evaluate models and music: likelihood, statistics, originality, audio and pictures."""
