"""Every setting once, the sources that they come from, and the files that they name.

What a setting does stands where it is used; what a flag looks like, in `cli`.
"""
