"""Every setting, its sources and its files."""
