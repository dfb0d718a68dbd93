"""The live page: what it shows, and its document. Nothing here answers a request."""
