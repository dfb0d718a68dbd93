"""The loop that sends requests, checks answers and measures. Standard library only: no Trio."""
