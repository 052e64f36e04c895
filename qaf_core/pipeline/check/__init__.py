"""Checks: does the original do what it should, and is its exchange exact?"""
