"""The clients ask and watch."""
