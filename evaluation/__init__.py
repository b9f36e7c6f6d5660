"""Judging finished music by number, eye and ear."""
