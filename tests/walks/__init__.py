"""Walks: how many of our functions one unit of work calls, in how many files, and how often it changes file.

A reader who follows the work goes the same way, so these figures say how straight the code is. They are no times:
a test may hold them to a bound, as ``tests/unit/test_walks.py`` does.
"""
